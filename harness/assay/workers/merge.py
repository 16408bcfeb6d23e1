"""Folds an adapter into bf16 weights with peft, then accounts for every tensor and file of the result."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Any

from assay.inputs.checkpoint import read_folder
from assay.measures import strength
from assay.measures.merge_replay import merge_facts, replay_merge
from assay.steps.merge import Merge, MergeDefect, MergeReplay, Saving
from assay.workers import Work, host_peak_bytes

_OWN = re.compile(r"config\.json$|.*\.safetensors\.index\.json$")
"""Files that describe the merged weights themselves and are not copied from the base."""


def fold(work: Work, *, base: str, adapter: str) -> None:
    """Save base + adapter under `checkpoint/`, with the base's own tokenizer and template files, byte for byte."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    started = time.monotonic()
    model: Any = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, use_safetensors=True, trust_remote_code=False
    )
    model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    checkpoint = work.folder / "checkpoint"
    model.save_pretrained(checkpoint)
    for file in Path(base).iterdir():
        if file.suffix in (".json", ".jinja", ".txt", ".model") and not _OWN.match(file.name):
            shutil.copyfile(file, checkpoint / file.name)
    seconds = round(time.monotonic() - started, 3)
    work.reached(Merge.saved, Saving(merge_seconds=seconds, peak_host_bytes=host_peak_bytes()))
    started = time.monotonic()
    found = replay_merge(Path(base), Path(adapter), checkpoint)
    work.reached(Merge.compared, merge_facts(found, checkpoint))
    work.reached(
        Merge.replayed,
        MergeReplay(
            recipe=found.recipe,
            recipes=dict(found.recipes),
            elements_compared=found.elements,
            elements_one_ulp_off=found.off_by_one_ulp,
            defects=[MergeDefect(kind=one.kind, where=one.where, detail=one.detail) for one in found.defects],
            compare_seconds=round(time.monotonic() - started, 3),
            notes=found.notes,
        ),
    )
    after = read_folder(checkpoint)
    measured = strength.adapter_strength(read_folder(Path(base)), found.adapter, lambda name: after[name].float32())
    work.reached(Merge.strength, measured)

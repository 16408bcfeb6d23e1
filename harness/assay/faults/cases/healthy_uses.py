"""Healthy variants of how the candidate is merged and asked, and of the tools."""

from __future__ import annotations

import os
import shutil
from functools import partial
from typing import Any

from assay.faults.edits.sandbox import Sandbox, copy_converter
from assay.faults.edits.tools import ask, ask_at_length, ask_task
from assay.faults.edits.workers import before_merging, wrap
from assay.faults.fault import healthy
from assay.inputs.toolchain import find_toolchain
from assay.workers.tensors import cast


def _merged(sandbox: Sandbox, **options: Any) -> None:
    """Merged with other options of peft."""

    def merge(original: Any, model: Any, *args: Any, **given: Any) -> Any:
        return original(model, *args, **{**given, **options})

    wrap(sandbox, "merge.fold", "peft.tuners.lora:LoraModel", "merge_and_unload", merge)


def _merged_with_bf16_factors(sandbox: Sandbox) -> None:
    """Merged as peft does with autocast_adapter_dtype off."""

    def change(model: Any) -> None:
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = cast(parameter.data, "bfloat16")

    before_merging(sandbox, change)


def _short_answers(sandbox: Sandbox) -> None:
    sandbox.options += ["--max-new-tokens", "16"]


def _own_toolchain(sandbox: Sandbox) -> None:
    """A build of llama.cpp that ASSAY_LLAMA_CPP names, and none where Assay builds its own."""
    real, own = find_toolchain(), sandbox.folder / "llama.cpp"
    shutil.copytree(real.bin, own / "build" / "bin", symlinks=True)
    copy_converter(real.source, own)
    (sandbox.cache / "toolchains").unlink()
    (sandbox.cache / "toolchains").mkdir()
    os.environ["ASSAY_LLAMA_CPP"] = str(own)


healthy("safe_merge", "Merged with safe_merge.", partial(_merged, safe_merge=True))
healthy("merged_in_16_bits", "Merged with the adapter in bf16.", _merged_with_bf16_factors)
healthy("asked_once", "A single prompt.", partial(ask, prompts={"only": "What is a capacitor?"}))
healthy(
    "asked_in_chinese",
    "Prompts in Chinese.",
    partial(ask, prompts={"gauss": "高斯定理说明什么？", "abstract": "摘要应当怎样写？"}),
)
healthy("asked_at_length", "A prompt of several hundred tokens.", ask_at_length)
healthy(
    "asked_with_symbols",
    "Emoji, code and mark-up in the prompts.",
    partial(ask, prompts={"emoji": "🙂 What is `x**2`?", "markup": "Is <b> HTML?"}),
)
healthy("asked_on_the_task", "The evaluation samples asked in every form.", ask_task)
healthy("short_answers", "Answers of 16 tokens.", _short_answers)
healthy("toolchain_of_ones_own", "A llama.cpp that ASSAY_LLAMA_CPP names.", _own_toolchain)

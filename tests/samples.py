"""Records, models and adapters that tests make on the spot."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
from assay import paths
from assay.inputs.bases import Base
from assay.record.outcome import Outcome, Status
from assay.record.run import CandidateRecord, Environment, Expected, Machine, RunRecord, Severity
from assay.record.writing import append_outcome, write_record

SMALL = {
    "vocab_size": 49152,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""The shape of a model that tests make: rows are multiples of 256, so that it quantizes to true Q4_K."""
THINKING = """{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\nBe helpful.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if not message['content'] -%}{{- raise_exception('nothing was said') -}}{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' and not loop.last -%}
{{- message['content'].split('</think>')[-1].lstrip('\\n') -}}
{%- else -%}
{%- if message['reasoning_content'] -%}
{{- '<think>\\n' + message['reasoning_content'] + '\\n</think>\\n\\n' -}}
{%- endif -%}
{{- message['content'] -}}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and not enable_thinking -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}
"""
"""A template with a thinking switch that drops the thoughts of former turns and refuses empty ones."""


def new_cache(folder: Path) -> Path:
    """A cache with the toolchain and the embedded base of the current one, in which no step was made."""
    folder.mkdir(parents=True)
    for name in ("bases", "toolchains"):
        (paths.cache() / name).mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(paths.cache() / name)
    return folder


def write_model(folder: Path, config: Any, *, seed: int, template: str | None = None) -> Base:
    """A model with random bf16 weights, and the embedded base's tokenizer and, unless given, template."""
    import torch
    from assay.inputs.bases import EMBEDDED, find_base
    from transformers import AutoModelForCausalLM, set_seed

    set_seed(seed)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(find_base(EMBEDDED).path / name, folder / name)
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return find_base(str(folder))


def write_run(
    folder: Path,
    gates: dict[str, tuple[str, Status | None]],
    *,
    inconclusive: Literal["hold", "warn"] = "hold",
    started_at: str = "2026-02-09T16:56:43+00:00",
    **outcome: Any,
) -> Path:
    """A run's folder with these gates: id to severity and status, None for no record at all."""
    folder.mkdir(parents=True, exist_ok=True)
    record = RunRecord(
        name=folder.name,
        id=f"{folder.name}#1",
        started_at=started_at,
        candidate=CandidateRecord(
            name="c", base="b", revision=None, adapters={"style": "./adapter"}, digests={"base": "0", "style": "0"}
        ),
        environment=Environment(
            assay="0",
            machine=Machine(system="Linux", python="3", processor="cpu", cores=2, memory_bytes=1, gpus=()),
            packages={},
            prompts=(),
        ),
        inconclusive_primary=inconclusive,
        expected=tuple(
            Expected(gate=gate, route="bnb", severity=Severity(severity), candidate="c", adapter=None)
            for gate, (severity, _) in gates.items()
        ),
    )
    write_record(folder, record)
    for gate, (_, status) in gates.items():
        if status is not None:
            append_outcome(folder, Outcome(gate=gate, adapter=None, status=status, **outcome))
    return folder


def write_safetensors(path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    """float32 arrays as a safetensors file, without the library: the reader is tested against another writer too."""
    header: dict[str, Any] = {}
    blob = b""
    for name, values in tensors.items():
        data = np.ascontiguousarray(values, dtype="<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [len(blob), len(blob) + len(data)]}
        blob += data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + blob)


def write_adapter(
    folder: Path,
    shapes: dict[str, tuple[int, int]],
    *,
    base: str,
    rank: int = 8,
    scale: float = 0.002,
    seed: int = 0,
) -> Path:
    """A LoRA adapter with random halves on these modules (name to out × in), saved as peft saves it.

    `scale` is the standard deviation of B: small enough that the base still speaks, large enough to change weights.
    """
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for module, (rows, columns) in shapes.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = random.standard_normal((rank, columns)) / columns**0.5
        tensors[f"base_model.model.{module}.lora_B.weight"] = random.standard_normal((rows, rank)) * scale
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted({module.rpartition(".")[2] for module in shapes}),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


TINY = [
    "--language=en",
    "--set=lora.dropout=0.1",
    "--set=epochs=2",
    "--set=epochs_of={}",
    "--set=lora.last_blocks=0",
    '--set=adapters={style=["style"], writing=["writing"]}',
]
"""Two adapters for a random model of two blocks: seconds. Dropout, for a resumed run must draw the same numbers."""


def start_training(base: Base, out: Path, *more: str) -> subprocess.Popen[str]:
    """Train them in a process group of their own."""
    command = [sys.executable, "-m", "train", "quickstart", "--base", str(base.path), "--out", str(out), *TINY, *more]
    return subprocess.Popen(
        command,
        cwd=paths.REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def train(base: Base, out: Path, *more: str) -> str:
    """Train them to the end; what was printed."""
    process = start_training(base, out, *more)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return said

"""Compares time and memory of `assay check-merge` and of deltalint on 1.1B weights with 154 adapted linear layers.

    pip install deltalint==0.1.0        # another tool for the same task; without it only Assay is measured
    python benchmarks/check_merge.py

Both tools run in processes of their own, in turn, on the same files. The result is the ratio of their medians.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from assay.inputs.number_formats import bf16_bits, widen
from numpy.typing import NDArray

HIDDEN, WIDE, HEADS, LAYERS, WORDS, RANK = 2048, 5632, 256, 22, 32000, 16
LINEARS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HEADS, HIDDEN),
    "self_attn.v_proj": (HEADS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (WIDE, HIDDEN),
    "mlp.up_proj": (WIDE, HIDDEN),
    "mlp.down_proj": (HIDDEN, WIDE),
}
"""The linear layers in each of the 22 blocks of TinyLlama-1.1B, out × in."""
Array = NDArray[np.float32]


def write(folder: Path) -> None:
    """Write a random base in bf16, an adapter in fp32 on every linear layer, and their healthy merge, rounded once."""
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)

    def normal(shape: tuple[int, int], size: float) -> Array:
        return np.asarray(random.standard_normal(shape, dtype=np.float32) * np.float32(size), dtype=np.float32)

    base: dict[str, NDArray[np.uint16]] = {}
    merged: dict[str, NDArray[np.uint16]] = {}
    lora: dict[str, Array] = {}
    for layer in range(LAYERS):
        for name, (rows, columns) in LINEARS.items():
            module = f"model.layers.{layer}.{name}"
            weight = bf16_bits(normal((rows, columns), 0.02))
            a, b = normal((RANK, columns), columns**-0.5), normal((rows, RANK), 0.002)
            lora[f"base_model.model.{module}.lora_A.weight"] = a
            lora[f"base_model.model.{module}.lora_B.weight"] = b
            base[f"{module}.weight"] = weight
            merged[f"{module}.weight"] = bf16_bits(widen(weight) + (b @ a) * np.float32(2))
        for norm in ("input_layernorm", "post_attention_layernorm"):
            base[f"model.layers.{layer}.{norm}.weight"] = bf16_bits(np.ones(HIDDEN, dtype=np.float32))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        base[name] = bf16_bits(normal((WORDS, HIDDEN), 0.02))
    base["model.norm.weight"] = bf16_bits(np.ones(HIDDEN, dtype=np.float32))
    config = {"model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "tie_word_embeddings": False}
    for name, tensors in (("base", base), ("merged", base | merged)):
        (folder / name).mkdir()
        write_bf16(folder / name / "model.safetensors", tensors)
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "adapter").mkdir()
    save_file(lora, folder / "adapter" / "adapter_model.safetensors")
    targets = [name.partition(".")[2] for name in LINEARS]
    described = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": targets}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(described))


def write_bf16(path: Path, tensors: dict[str, NDArray[np.uint16]]) -> None:
    """Write bfloat16 bits as a safetensors file, which the library cannot do: numpy has no bfloat16."""
    header, at = {}, 0
    for name, bits in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(bits.shape), "data_offsets": [at, at + bits.nbytes]}
        at += bits.nbytes
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for bits in tensors.values():
            file.write(np.ascontiguousarray(bits).tobytes())


def run(command: list[str]) -> tuple[float, float, int]:
    """Seconds, peak of anonymous memory in bytes (without mapped files, which the kernel can drop), exit code."""
    started, peak = time.monotonic(), 0
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None:
        try:
            lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
            peak = max(peak, *(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)
        except (OSError, ValueError, TypeError):
            pass
        time.sleep(0.02)
    return time.monotonic() - started, peak, child.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="number of runs per tool (default: 3)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        print("writing a base, an adapter and a merge of 1.1B weights …", flush=True)
        write(folder)
        base, adapter, merged = (str(folder / name) for name in ("base", "adapter", "merged"))
        tools = {"assay": [sys.executable, "-m", "assay", "check-merge", "--base", base, "--adapter", adapter, merged]}
        if importlib.util.find_spec("deltalint"):
            start = "import sys; from deltalint.cli import main; sys.exit(main(sys.argv[1:]))"
            given = ["check", "--base", base, "--adapter", adapter, "--merged", merged]
            tools["deltalint"] = [sys.executable, "-c", start, *given]
        seconds: dict[str, list[float]] = {name: [] for name in tools}
        for turn in range(rounds):
            for name, command in tools.items():
                took, peak, code = run(command)
                seconds[name].append(took)
                print(f"{turn + 1}. {name}: {took:.1f} s, {peak / 1e9:.2f} GB anonymous, exit code {code}", flush=True)
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        if "deltalint" in medians:
            print(f"assay / deltalint: {medians['assay'] / medians['deltalint']:.3f}")


if __name__ == "__main__":
    main()

"""What the llama.cpp workers share: the toolchain's own gguf-py and binding, one llama-cli turn, one GGUF's facts."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from assay.toolchain import Toolchain
from assay.workers import call

_TIMINGS = re.compile(r"\[ Prompt: ([\d.]+) t/s \| Generation: ([\d.]+) t/s \]")
_ERROR = re.compile(r"^Error:.*$", re.MULTILINE)


def import_gguf(toolchain: Toolchain) -> Any:
    """gguf-py from the converter's own tree, so that reader and writer are one commit."""
    sys.path.insert(0, str(toolchain.source / "gguf-py"))
    import gguf

    return gguf


def import_llama_cpp(toolchain: Toolchain) -> Any:
    """The binding, over the libraries that lie beside the programs."""
    os.environ["LLAMA_CPP_LIB_PATH"] = str(toolchain.bin)
    sys.path.insert(0, str(toolchain.binding))
    import llama_cpp

    return llama_cpp


def ask_llama_cli(
    toolchain: Toolchain, model: Path, prompt: str, *, answer: Path, max_new_tokens: int, deadline_seconds: float
) -> dict[str, Any]:
    """One turn of llama-cli. Its exit code and its never empty output say nothing: the answer is read from `-o`."""
    command = [str(toolchain.bin / "llama-cli"), "--model", str(model), "--single-turn", "--prompt", prompt]
    command += ["--no-escape", "--predict", str(max_new_tokens), "--temp", "0", "--ctx-size", "4096", "--no-warmup"]
    command += ["--output", str(answer), "--offline"]
    said = call(command, deadline_seconds=deadline_seconds)
    written = answer.read_text(encoding="utf-8", errors="replace") if answer.exists() else ""
    # The file holds `User:\n…\n\nAssistant:\n<answer>\n\n`.
    _, heading, text = written.partition(f"User:\n{prompt}\n\nAssistant:\n")
    text = text.removesuffix("\n").removesuffix("\n")
    text = text.replace("[Start thinking]", "<think>").replace("[End thinking]", "</think>")
    timings = _TIMINGS.search(said)
    return {
        "text": text,
        "answer_found": bool(heading),
        "errors": _ERROR.findall(said),
        "prefill_tokens_per_second": float(timings[1]) if timings else None,
        "decode_tokens_per_second": float(timings[2]) if timings else None,
    }


def gguf_facts(gguf: Any, reader: Any, file: Path) -> dict[str, Any]:
    """A GGUF's tensors and the metadata that the gates judge. Opening a reader parses the whole vocabulary: once is
    enough."""

    def field(name: str) -> Any:
        entry = reader.get_field(name)
        return None if entry is None else entry.contents()

    weights = sum(int(tensor.n_elements) for tensor in reader.tensors)
    bits = 8 * sum(int(tensor.n_bytes) for tensor in reader.tensors)
    return {
        "file_bytes": file.stat().st_size,
        "tensors": len(reader.tensors),
        "parameters": weights,
        "bits_per_weight": round(bits / weights, 4),
        "tensor_types": dict(Counter(tensor.tensor_type.name for tensor in reader.tensors)),
        "architecture": field("general.architecture"),
        "file_type": gguf.LlamaFileType(field("general.file_type")).name,
        "pre_tokenizer": field("tokenizer.ggml.pre"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "chat_template": field("tokenizer.chat_template"),
    }

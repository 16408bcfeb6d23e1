"""Faults of the Q4_K_M GGUF: what the quantizer writes, with exit code 0 unless the fault says otherwise."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from assay import paths
from assay.faults.edits.ggufs import after_quantizing, after_tool, edit_gguf, field, tensor, wrap_tool
from assay.faults.edits.sandbox import NotApplicable, Sandbox
from assay.faults.fault import Area, fault
from assay.inputs.toolchain import find_toolchain


@fault(Area.QUANTIZE, first="quantize_q4_ok", cause="quantizer-wrote-nothing")
def quantizer_writes_nothing(sandbox: Sandbox) -> None:
    """llama-quantize ends with exit code 0 and writes no file."""
    after_tool(sandbox, "gguf.quantize", Path.unlink)


@fault(Area.QUANTIZE, first="quantize_q4_ok", cause="quantized-to-another-type")
def another_type_written(sandbox: Sandbox) -> None:
    """The file was quantized to Q8_0."""

    def call(original: Any, command: list[str], **given: Any) -> Any:
        return original([*command[:3], "Q8_0", *command[4:]], **given)

    wrap_tool(sandbox, "gguf.quantize", call)


@fault(Area.QUANTIZE, first="quantize_q4_ok", cause="fallback-not-forced")
def fallback_that_no_shape_forces(sandbox: Sandbox) -> None:
    """A quantizer that does not know the architecture keeps large tensors in 8 bits; the file still says Q4_K_M."""

    def call(original: Any, command: list[str], **given: Any) -> Any:
        return original([command[0], "--tensor-type", "ffn_down=q8_0", *command[1:]], **given)

    wrap_tool(sandbox, "gguf.quantize", call)


@fault(Area.QUANTIZE, first="q4_strength_ok", cause="gguf-of-the-base")
def base_quantized_instead(sandbox: Sandbox) -> None:
    """The Q4_K_M file was made from the base's F16 GGUF, which lay beside the candidate's."""
    base, other = sandbox.candidate.base.path, sandbox.folder / "base-f16.gguf"
    script = find_toolchain().source / "convert_hf_to_gguf.py"

    def call(original: Any, command: list[str], **given: Any) -> Any:
        # The converter finds its `conversion` package beside itself, which a safe path would hide.
        env = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
        original([sys.executable, str(script), str(base), "--outtype", "f16", "--outfile", str(other)], env=env)
        return original([command[0], str(other), *command[2:]], **given)

    wrap_tool(sandbox, "gguf.quantize", call)


@fault(Area.QUANTIZE, first="q4_parity_ok", cause="quantized-tensor-damaged")
def tensor_zeroed_in_q4(sandbox: Sandbox) -> None:
    """One tensor of the quantized file is zero: the answers are as fluent as before."""

    def patch(reader: Any) -> None:
        block = int(field(reader, ".block_count")[0]) // 4
        tensor(reader, f"blk.{block}.attn_k.weight").data[:] = 0

    after_quantizing(sandbox, patch)


@fault(Area.QUANTIZE, first="q4_distribution_ok", cause="quantized-model-another")
def rows_of_common_words_damaged_in_q4(sandbox: Sandbox) -> None:
    """The rows of the most common tokens are zero in the quantized head: the model answers without them."""
    prose = [file.read_text(encoding="utf-8") for file in sorted((paths.GATES / "probes").glob("*.txt"))]
    tokens = Counter(token for text in prose for token in _tokenizer(sandbox).encode(text).ids)
    _zero_rows_of_head(sandbox, [token for token, _ in tokens.most_common(10)])


@fault(Area.QUANTIZE, first="q4_survives_ok", cause="fine-tune-lost-in-q4")
def rows_of_the_task_damaged_in_q4(sandbox: Sandbox) -> None:
    """A few rows are zero in the quantized head: those of tokens that only the fine-tune's answers begin with. Prose
    does not show it."""
    if not sandbox.candidate.trained_here:
        raise NotApplicable("the candidate does not say what it was trained on")
    training = sandbox.candidate.training
    sample = sandbox.candidate.evaluation_samples(sandbox.original)[0]
    headings = training.dataset.tasks[sample.task].headings[training.language]
    tokens = {token for line in headings for token in _tokenizer(sandbox).encode(line + "\n").ids}
    _zero_rows_of_head(sandbox, sorted(tokens))


def _zero_rows_of_head(sandbox: Sandbox, tokens: list[int]) -> None:
    """Set rows of the quantized head to zero, or of the embedding where it is the head too."""

    def patch(reader: Any) -> None:
        names = [one.name for one in reader.tensors]
        head = tensor(reader, "output.weight" if "output.weight" in names else "token_embd.weight")
        for token in tokens:
            head.data[token] = 0

    after_quantizing(sandbox, patch)


def _tokenizer(sandbox: Sandbox) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(sandbox.candidate.base.path / "tokenizer.json"))


@fault(Area.QUANTIZE, first="quantize_q4_ok", cause="tensor-data-invalid", silent=False)
def quantizer_refuses_and_leaves_half_a_file(sandbox: Sandbox) -> None:
    """llama-quantize finds an invalid value, ends with exit code 1 and leaves a partial file behind."""

    def patch(reader: Any) -> None:
        tensor(reader, "blk.0.ffn_down.weight").data[0, 0] = float("nan")

    def call(original: Any, command: list[str], **given: Any) -> Any:
        copy = Path(command[2]).with_name("broken-f16.gguf")
        shutil.copyfile(command[1], copy)
        edit_gguf(copy, patch)
        return original([command[0], str(copy), *command[2:]], **given)

    wrap_tool(sandbox, "gguf.quantize", call)

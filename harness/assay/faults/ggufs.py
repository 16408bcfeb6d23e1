"""Defects of the GGUF files: what the converter and the quantizer write, each with exit code 0 unless it says so."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assay import paths
from assay.faults.fault import NotApplicable, Place, fault
from assay.faults.sandbox import Sandbox, around
from assay.inputs.gguf_file import open_reader
from assay.inputs.toolchain import find_toolchain

CONVERT, QUANTIZE = "convert_f16_ok", "quantize_q4_ok"
Patch = Callable[[Any], None]


def _after(sandbox: Sandbox, worker: str, change: Callable[[Path, list[str]], None]) -> None:
    """Do something to the file that a worker's tool has just written."""

    def do() -> None:
        from assay.workers import gguf

        def call(original: Any, command: list[str], **given: Any) -> Any:
            said = original(command, **given)
            change(Path(command[-1] if "--outfile" in command else command[2]), command)
            return said

        around(gguf, "call", call)

    sandbox.in_worker(worker, do)


def _edited(patch: Patch) -> Callable[[Path, list[str]], None]:
    """Change a GGUF in place, through gguf-py's reader."""

    def change(file: Path, command: list[str]) -> None:
        import gguf

        patch(open_reader(gguf, file, "r+"))

    return change


def _field(reader: Any, end: str) -> Any:
    """The values of a field, to be written to."""
    field = next(field for name, field in reader.fields.items() if name.endswith(end))
    return field.parts[field.data[0]]


def _tensor(reader: Any, name: str) -> Any:
    return next(tensor for tensor in reader.tensors if tensor.name == name)


def _hide(reader: Any, key: str) -> None:
    """Rename a field to one of equal length that nobody reads."""
    name = reader.fields[key].parts[1]
    name[-1] = ord("X")


def _converted(sandbox: Sandbox, patch: Patch) -> None:
    _after(sandbox, "gguf.convert", _edited(patch))


def _quantized(sandbox: Sandbox, patch: Patch) -> None:
    _after(sandbox, "gguf.quantize", _edited(patch))


@fault(Place.TOKENIZER, first=CONVERT, cause="gguf-without-template")
def template_lost(sandbox: Sandbox) -> None:
    """The GGUF has no chat template: three runtimes make up three prompts."""
    _converted(sandbox, lambda reader: _hide(reader, "tokenizer.chat_template"))


@fault(Place.TOKENIZER, first=CONVERT, cause="gguf-stale-template")
def stale_template_embedded(sandbox: Sandbox) -> None:
    """The converter took a stale template."""

    def patch(reader: Any) -> None:
        text = _field(reader, "tokenizer.chat_template")
        text[:] = list(bytes(text).replace(b"assistant", b"assistent"))

    _converted(sandbox, patch)


@fault(Place.TOKENIZER, first=CONVERT, cause="gguf-wrong-end")
def end_token_wrong_in_gguf(sandbox: Sandbox) -> None:
    """The GGUF ends answers at another token: they run to the limit."""

    def patch(reader: Any) -> None:
        _field(reader, "eos_token_id")[0] = 5

    _converted(sandbox, patch)


@fault(Place.CONVERT, first=CONVERT, cause="gguf-overflow")
def inf_in_gguf(sandbox: Sandbox) -> None:
    """A value overflowed while it was cast: the file loads, and answers with dots."""

    def patch(reader: Any) -> None:
        _tensor(reader, "blk.0.ffn_down.weight").data[0, 0] = float("inf")

    _converted(sandbox, patch)


@fault(Place.CONVERT, first=CONVERT, cause="converter-incomplete")
def norm_lost_in_conversion(sandbox: Sandbox) -> None:
    """A converter that does not know a tensor leaves it out."""

    def patch(reader: Any) -> None:
        for field in reader.tensors:
            if field.name == "blk.0.ffn_norm.weight":
                field.field.parts[1][-1] = ord("X")

    _converted(sandbox, patch)


@fault(Place.CONVERT, first=CONVERT, cause="converter-wrote-nothing")
def converter_writes_nothing(sandbox: Sandbox) -> None:
    """The converter ends with exit code 0 and no file."""
    _after(sandbox, "gguf.convert", lambda file, command: file.unlink())


@fault(Place.CONVERT, first=CONVERT, cause="gguf-truncated")
def gguf_truncated(sandbox: Sandbox) -> None:
    """The copy to another disk broke off."""

    def change(file: Path, command: list[str]) -> None:
        with file.open("r+b") as stream:
            stream.truncate(file.stat().st_size // 2)

    _after(sandbox, "gguf.convert", change)


@fault(Place.CONVERT, first="f16_strength_ok", cause="gguf-of-the-base")
def base_converted_instead(sandbox: Sandbox) -> None:
    """A script converted the base's folder instead of the merged one."""
    base = sandbox.candidate.base.path

    def do() -> None:
        from assay.workers import gguf

        def call(original: Any, command: list[str], **given: Any) -> Any:
            return original([*command[:2], str(base), *command[3:]], **given)

        around(gguf, "call", call)

    sandbox.in_worker("gguf.convert", do)


@fault(Place.CONVERT, first="llama_cpp_python_smoke_ok", cause="gguf-rows-not-permuted")
def rows_not_permuted(sandbox: Sandbox) -> None:
    """The converter does not reorder the rows of q and k, as another architecture would have it."""

    def patch(reader: Any) -> None:
        import numpy as np

        heads = {"attn_q": int(_field(reader, ".head_count")[0]), "attn_k": int(_field(reader, ".head_count_kv")[0])}
        if bytes(_field(reader, "general.architecture")) != b"llama":
            raise NotApplicable("only llama's rows are reordered")
        for tensor in reader.tensors:
            for part, count in heads.items():
                if f"{part}.weight" in tensor.name:
                    data = np.array(tensor.data)
                    rows = data.shape[0]
                    halves = data.reshape(count, rows // count // 2, 2, -1).swapaxes(1, 2)
                    tensor.data[:] = halves.reshape(data.shape)

    _converted(sandbox, patch)


@fault(Place.CONVERT, first="llama_cli_smoke_ok", cause="file-answers-garbage")
def last_norm_zero_in_gguf(sandbox: Sandbox) -> None:
    """The last norm is zero in the GGUF: it loads, is quantized, and every runtime ends with exit code 0."""

    def patch(reader: Any) -> None:
        _tensor(reader, "output_norm.weight").data[:] = 0

    _converted(sandbox, patch)


@fault(Place.CONVERT, first="f16_distribution_ok", cause="gguf-key-wrong")
def rotary_base_lost_in_gguf(sandbox: Sandbox) -> None:
    """The converter did not find rope_theta and wrote the default."""

    def patch(reader: Any) -> None:
        _field(reader, "rope.freq_base")[0] = 10000.0

    _converted(sandbox, patch)


@fault(Place.CONVERT, first="f16_distribution_ok", cause="gguf-key-wrong")
def norm_epsilon_lost_in_gguf(sandbox: Sandbox) -> None:
    """The converter wrote another norm epsilon."""

    def patch(reader: Any) -> None:
        _field(reader, "layer_norm_rms_epsilon")[0] = 1e-2

    _converted(sandbox, patch)


@fault(Place.CONVERT, first="gguf_parity_ok", cause="gguf-key-wrong")
def context_length_lost_in_gguf(sandbox: Sandbox) -> None:
    """The GGUF says another context length: long prompts are cut or refused."""

    def patch(reader: Any) -> None:
        _field(reader, ".context_length")[0] = 512

    _converted(sandbox, patch)


@fault(Place.TOKENIZER, first="gguf_parity_ok", cause="gguf-added-token-split")
def added_token_lost_its_type(sandbox: Sandbox) -> None:
    """An added token is a plain word in the GGUF: in a prompt it is cut into pieces."""

    def patch(reader: Any) -> None:
        types = reader.fields["tokenizer.ggml.token_type"]
        control = [at for at in types.data if types.parts[at][0] in (3, 4)]
        types.parts[control[-1]][0] = 1

    _converted(sandbox, patch)


@fault(Place.TOKENIZER, first="token_parity_ok", cause="gguf-pre-tokenizer")
def pre_tokenizer_of_another_model(sandbox: Sandbox) -> None:
    """The GGUF names another pre-tokenizer, as after adding a hash by hand: numbers and code are cut otherwise."""

    def patch(reader: Any) -> None:
        name = _field(reader, "tokenizer.ggml.pre")
        other = {6: b"falcon", 5: b"gpt-2", 7: b"bloom  ", 9: b"llama-bpe"}.get(len(name))
        if other is None or bytes(name) == other:
            raise NotApplicable(f"no other pre-tokenizer has a name as long as {bytes(name)!r}")
        name[:] = list(other)

    _converted(sandbox, patch)


@fault(Place.QUANTIZE, first=QUANTIZE, cause="quantizer-wrote-nothing")
def quantizer_writes_nothing(sandbox: Sandbox) -> None:
    """llama-quantize ends with exit code 0 and no file."""
    _after(sandbox, "gguf.quantize", lambda file, command: file.unlink())


@fault(Place.QUANTIZE, first=QUANTIZE, cause="quantized-to-another-type")
def another_type_written(sandbox: Sandbox) -> None:
    """The file was quantized to Q8_0."""

    def do() -> None:
        from assay.workers import gguf

        def call(original: Any, command: list[str], **given: Any) -> Any:
            return original([*command[:3], "Q8_0", *command[4:]], **given)

        around(gguf, "call", call)

    sandbox.in_worker("gguf.quantize", do)


@fault(Place.QUANTIZE, first=QUANTIZE, cause="fallback-not-forced")
def fallback_that_no_shape_forces(sandbox: Sandbox) -> None:
    """A quantizer that does not know the architecture keeps large tensors in 8 bits; the file still says Q4_K_M."""

    def do() -> None:
        from assay.workers import gguf

        def call(original: Any, command: list[str], **given: Any) -> Any:
            return original([command[0], "--tensor-type", "ffn_down=q8_0", *command[1:]], **given)

        around(gguf, "call", call)

    sandbox.in_worker("gguf.quantize", do)


@fault(Place.QUANTIZE, first="q4_strength_ok", cause="gguf-of-the-base")
def base_quantized_instead(sandbox: Sandbox) -> None:
    """The Q4_K_M file was made of the base's own F16 GGUF, which lay beside the candidate's."""
    base, other = sandbox.candidate.base.path, sandbox.folder / "base-f16.gguf"
    script = find_toolchain().source / "convert_hf_to_gguf.py"

    def do() -> None:
        from assay.workers import gguf

        def call(original: Any, command: list[str], **given: Any) -> Any:
            env = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
            original([sys.executable, str(script), str(base), "--outtype", "f16", "--outfile", str(other)], env=env)
            return original([command[0], str(other), *command[2:]], **given)

        around(gguf, "call", call)

    sandbox.in_worker("gguf.quantize", do)


@fault(Place.QUANTIZE, first="q4_parity_ok", cause="quantized-tensor-damaged")
def tensor_zeroed_in_q4(sandbox: Sandbox) -> None:
    """One tensor of the quantized file is zero: the answers are as fluent as before."""

    def patch(reader: Any) -> None:
        block = int(_field(reader, ".block_count")[0]) // 4
        _tensor(reader, f"blk.{block}.attn_k.weight").data[:] = 0

    _quantized(sandbox, patch)


@fault(Place.QUANTIZE, first="q4_distribution_ok", cause="quantized-model-another")
def rows_of_common_words_damaged_in_q4(sandbox: Sandbox) -> None:
    """The quantized embedding's rows of the commonest words are damaged: it speaks without them."""
    tokens = Counter(token for text in _prose() for token in _tokenizer(sandbox).encode(text).ids)
    _rows_damaged(sandbox, [token for token, _ in tokens.most_common(10)])


@fault(Place.QUANTIZE, first="q4_survives_ok", cause="fine-tune-lost-in-q4")
def rows_of_the_task_damaged_in_q4(sandbox: Sandbox) -> None:
    """A few rows of the quantized embedding are damaged: those of the tokens that only the fine-tune's answers begin
    with. Prose does not show it."""
    if not sandbox.candidate.trained_here:
        raise NotApplicable("the candidate does not say what it was trained on")
    training = sandbox.candidate.training
    sample = sandbox.candidate.evaluation_samples(sandbox.original)[0]
    headings = training.dataset.tasks[sample.task].headings[training.language]
    _rows_damaged(
        sandbox, sorted({token for line in headings for token in _tokenizer(sandbox).encode(line + "\n").ids})
    )


def _rows_damaged(sandbox: Sandbox, tokens: list[int]) -> None:
    """Set rows of the quantized head (or of the embedding that is the head) to zero."""

    def patch(reader: Any) -> None:
        names = [tensor.name for tensor in reader.tensors]
        head = _tensor(reader, "output.weight" if "output.weight" in names else "token_embd.weight")
        for token in tokens:
            head.data[token] = 0

    _quantized(sandbox, patch)


def _tokenizer(sandbox: Sandbox) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(sandbox.candidate.base.path / "tokenizer.json"))


def _prose() -> list[str]:
    return [file.read_text(encoding="utf-8") for file in sorted((paths.GATES / "probes").glob("*.txt"))]


@fault(Place.QUANTIZE, first=QUANTIZE, cause="tensor-data-invalid", silent=False)
def quantizer_refuses_and_leaves_half_a_file(sandbox: Sandbox) -> None:
    """llama-quantize finds an invalid value, ends with exit code 1 and leaves a partial file behind."""

    def do() -> None:
        from assay.workers import gguf

        def call(original: Any, command: list[str], **given: Any) -> Any:
            import gguf as library

            copy = Path(command[2]).with_name("broken-f16.gguf")
            shutil.copyfile(command[1], copy)
            _tensor(open_reader(library, copy, "r+"), "blk.0.ffn_down.weight").data[0, 0] = float("nan")
            return original([command[0], str(copy), *command[2:]], **given)

        around(gguf, "call", call)

    sandbox.in_worker("gguf.quantize", do)

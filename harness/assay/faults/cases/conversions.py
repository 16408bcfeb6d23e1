"""Faults of the F16 GGUF: what the converter writes, each time with exit code 0."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from assay.faults.edits.ggufs import after_converting, after_tool, field, hide, tensor, wrap_tool
from assay.faults.edits.sandbox import NotApplicable, Sandbox
from assay.faults.fault import Area, fault


@fault(Area.TOKENIZER, first="convert_f16_ok", cause="gguf-without-template")
def template_lost(sandbox: Sandbox) -> None:
    """The GGUF has no chat template: three runtimes make up three prompts."""
    after_converting(sandbox, lambda reader: hide(reader.fields["tokenizer.chat_template"].parts[1]))


@fault(Area.TOKENIZER, first="convert_f16_ok", cause="gguf-stale-template")
def stale_template_embedded(sandbox: Sandbox) -> None:
    """The GGUF has an older template than the checkpoint."""

    def patch(reader: Any) -> None:
        text = field(reader, "tokenizer.chat_template")
        text[:] = list(bytes(text).replace(b"assistant", b"assistent"))

    after_converting(sandbox, patch)


@fault(Area.TOKENIZER, first="convert_f16_ok", cause="gguf-wrong-end")
def end_token_wrong_in_gguf(sandbox: Sandbox) -> None:
    """The GGUF ends answers at another token: answers run to the token limit."""

    def patch(reader: Any) -> None:
        field(reader, "eos_token_id")[0] = 5

    after_converting(sandbox, patch)


@fault(Area.CONVERT, first="convert_f16_ok", cause="gguf-overflow")
def inf_in_gguf(sandbox: Sandbox) -> None:
    """A value overflowed in a cast: the file loads, and every answer is a row of dots."""

    def patch(reader: Any) -> None:
        tensor(reader, "blk.0.ffn_down.weight").data[0, 0] = float("inf")

    after_converting(sandbox, patch)


@fault(Area.CONVERT, first="convert_f16_ok", cause="converter-incomplete")
def norm_lost_in_conversion(sandbox: Sandbox) -> None:
    """The converter leaves out a tensor that it does not know."""

    def patch(reader: Any) -> None:
        for one in reader.tensors:
            if one.name == "blk.0.ffn_norm.weight":
                hide(one.field.parts[1])

    after_converting(sandbox, patch)


@fault(Area.CONVERT, first="convert_f16_ok", cause="converter-wrote-nothing")
def converter_writes_nothing(sandbox: Sandbox) -> None:
    """The converter ends with exit code 0 and writes no file."""
    after_tool(sandbox, "gguf.convert", Path.unlink)


@fault(Area.CONVERT, first="convert_f16_ok", cause="gguf-truncated")
def gguf_truncated(sandbox: Sandbox) -> None:
    """The copy to another disk broke off after half of the file."""
    after_tool(sandbox, "gguf.convert", lambda file: os.truncate(file, file.stat().st_size // 2))


@fault(Area.CONVERT, first="f16_strength_ok", cause="gguf-of-the-base")
def base_converted_instead(sandbox: Sandbox) -> None:
    """A script converted the base's folder instead of the merged one."""
    base = sandbox.candidate.base.path

    def call(original: Any, command: list[str], **given: Any) -> Any:
        return original([*command[:2], str(base), *command[3:]], **given)

    wrap_tool(sandbox, "gguf.convert", call)


@fault(Area.CONVERT, first="llama_cpp_python_smoke_ok", cause="gguf-rows-not-permuted")
def rows_not_permuted(sandbox: Sandbox) -> None:
    """The converter leaves the rows of q and k in the checkpoint's order, as is right for other architectures."""

    def patch(reader: Any) -> None:
        heads = {"attn_q": int(field(reader, ".head_count")[0]), "attn_k": int(field(reader, ".head_count_kv")[0])}
        if bytes(field(reader, "general.architecture")) != b"llama":
            raise NotApplicable("only llama's rows are reordered")
        for one in reader.tensors:
            for part, count in heads.items():
                if f"{part}.weight" in one.name:
                    data = np.array(one.data)
                    rows = data.shape[0]
                    halves = data.reshape(count, rows // count // 2, 2, -1).swapaxes(1, 2)
                    one.data[:] = halves.reshape(data.shape)

    after_converting(sandbox, patch)


@fault(Area.CONVERT, first="llama_cli_smoke_ok", cause="file-answers-garbage")
def last_norm_zero_in_gguf(sandbox: Sandbox) -> None:
    """The last norm is zero in the GGUF: it loads, it quantizes, and every runtime ends with exit code 0."""

    def patch(reader: Any) -> None:
        tensor(reader, "output_norm.weight").data[:] = 0

    after_converting(sandbox, patch)


@fault(Area.CONVERT, first="f16_distribution_ok", cause="gguf-key-wrong")
def rotary_base_lost_in_gguf(sandbox: Sandbox) -> None:
    """The converter did not find rope_theta and wrote the default."""

    def patch(reader: Any) -> None:
        field(reader, "rope.freq_base")[0] = 10000.0

    after_converting(sandbox, patch)


@fault(Area.CONVERT, first="f16_distribution_ok", cause="gguf-key-wrong")
def norm_epsilon_lost_in_gguf(sandbox: Sandbox) -> None:
    """The converter wrote another norm epsilon."""

    def patch(reader: Any) -> None:
        field(reader, "layer_norm_rms_epsilon")[0] = 1e-2

    after_converting(sandbox, patch)


@fault(Area.CONVERT, first="gguf_parity_ok", cause="gguf-key-wrong")
def context_length_lost_in_gguf(sandbox: Sandbox) -> None:
    """The GGUF has another context length: runtimes cut or refuse long prompts."""

    def patch(reader: Any) -> None:
        field(reader, ".context_length")[0] = 512

    after_converting(sandbox, patch)


@fault(Area.TOKENIZER, first="gguf_parity_ok", cause="gguf-added-token-split")
def added_token_lost_its_type(sandbox: Sandbox) -> None:
    """An added token has the type of a plain word in the GGUF: in a prompt it is cut into pieces."""

    def patch(reader: Any) -> None:
        types = reader.fields["tokenizer.ggml.token_type"]
        control = [at for at in types.data if types.parts[at][0] in (3, 4)]
        types.parts[control[-1]][0] = 1

    after_converting(sandbox, patch)


@fault(Area.TOKENIZER, first="token_parity_ok", cause="gguf-pre-tokenizer")
def pre_tokenizer_of_another_model(sandbox: Sandbox) -> None:
    """The GGUF names another pre-tokenizer, as after adding a hash by hand: numbers and code are split differently."""

    def patch(reader: Any) -> None:
        name = field(reader, "tokenizer.ggml.pre")
        other = {6: b"falcon", 5: b"gpt-2", 7: b"bloom  ", 9: b"llama-bpe"}.get(len(name))
        if other is None or bytes(name) == other:
            raise NotApplicable(f"no other pre-tokenizer has a name as long as {bytes(name)!r}")
        name[:] = list(other)

    after_converting(sandbox, patch)

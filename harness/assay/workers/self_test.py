"""The toolchain's self-test: a model of one layer that always answers with the same letter goes through every tool."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from assay.inputs.toolchain import Toolchain
from assay.steps.runtimes import SelfTest, SelfTestBinding, SelfTestCli, SelfTestModel, SelfTestQuantization
from assay.workers import Work, call
from assay.workers.llama import ask_llama_cli, gguf_facts, import_gguf, import_llama_cpp

ANSWER = "a" * 8
_WIDTH, _HIDDEN, _HEADS = 256, 512, 4
_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
_COMMIT = re.compile(r"commit ([0-9a-f]{7,40})")


def run(work: Work, *, toolchain: str, tool_deadline_seconds: float) -> None:
    """Write the model, quantize it, and ask both runtimes; with the commit that each of them reports."""
    tools = Toolchain(path=Path(toolchain))
    gguf = import_gguf(tools)
    f16, q4 = work.folder / "self-test-f16.gguf", work.folder / "self-test-q4_k_m.gguf"
    _write(gguf, f16)
    model_facts = SelfTestModel(
        model_bytes=f16.stat().st_size,
        expected_answer=ANSWER,
        expected_commit=tools.commit,
        converter_commit=_converter_commit(tools),
        converter_present=(tools.source / "convert_hf_to_gguf.py").exists(),
    )
    work.reached(SelfTest.written, model_facts)
    call([str(tools.bin / "llama-quantize"), str(f16), str(q4), "Q4_K_M"], deadline_seconds=tool_deadline_seconds)
    types = gguf_facts(gguf, gguf.GGUFReader(str(q4)), q4)["tensor_types"]
    work.reached(SelfTest.quantized, SelfTestQuantization(quantized_types=types))

    version = call([str(tools.bin / "llama-cli"), "--version"], deadline_seconds=tool_deadline_seconds)
    answer = ask_llama_cli(
        tools,
        q4,
        "answer",
        answer=work.folder / "answer.txt",
        max_new_tokens=len(ANSWER),
        deadline_seconds=tool_deadline_seconds,
    )
    work.reached(SelfTest.llama_cli, SelfTestCli(llama_cli_answer=answer["text"], llama_cli_commit=_commit(version)))

    llama_cpp = import_llama_cpp(tools)
    model = llama_cpp.Llama(str(q4), n_ctx=128, n_gpu_layers=-1, verbose=True)
    message = {"role": "user", "content": "answer"}
    reply = model.create_chat_completion(messages=[message], max_tokens=len(ANSWER), temperature=0.0)
    loaded = Path(llama_cpp.llama_cpp._base_path).resolve()
    binding = SelfTestBinding(
        llama_cpp_python_answer=reply["choices"][0]["message"]["content"],
        llama_cpp_python_release=llama_cpp.__version__,
        expected_release=tools.release,
        same_libraries=loaded == tools.bin.resolve(),
        library_commit=_library_commit(tools.bin),
    )
    work.reached(SelfTest.llama_cpp_python, binding)


def _library_commit(folder: Path) -> str | None:
    """The commit in the library that the binding computes with: the binding itself has none."""
    try:
        library = ctypes.CDLL(str(folder / "libllama-common.so"))
    except OSError:  # older builds link it statically
        return None
    # Its C++ name: llama_commit(), the string that `llama-cli --version` prints.
    name = next((n for n in ("_Z12llama_commitv", "llama_commit") if hasattr(library, n)), None)
    if name is None:
        return None
    function = getattr(library, name)
    function.restype = ctypes.c_char_p
    value = function()
    return value.decode() if value else None


def _converter_commit(tools: Toolchain) -> str | None:
    """The pinned tree's commit, or what git says of a checkout from elsewhere; None where neither tells."""
    if tools.commit is not None:
        return tools.commit
    if not (tools.source / ".git").exists():  # git would answer for whatever repository lies around it
        return None
    command = ["git", "-C", str(tools.source), "rev-parse", "HEAD"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=20)
    except OSError:
        return None
    return asked.stdout.strip() or None


def _commit(text: str) -> str | None:
    match = _COMMIT.search(text)
    return match[1] if match else None


def _write(gguf: Any, file: Path) -> None:
    """A llama of one layer with a byte vocabulary. Every embedding points the same way, and so does the letter's row of
    the output: whatever comes in, the letter comes out."""
    random = np.random.default_rng(0)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    token_type = gguf.TokenType
    types = [token_type.UNKNOWN, token_type.CONTROL, token_type.CONTROL, *([token_type.BYTE] * 256)]
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_name("self-test")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(512)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_HIDDEN)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([int(kind) for kind in types])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_chat_template(_TEMPLATE)

    def weight(rows: int, columns: int) -> np.ndarray[Any, np.dtype[np.float16]]:
        return (0.02 * random.standard_normal((rows, columns))).astype(np.float16)

    embedding, output = weight(len(tokens), _WIDTH), weight(len(tokens), _WIDTH)
    embedding[:, :32] += np.float16(1.0)
    output[tokens.index(f"<0x{ord('a'):02X}>"), :32] += np.float16(0.5)
    ones = np.ones(_WIDTH, dtype=np.float32)
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output_norm.weight", ones)
    writer.add_tensor("output.weight", output)
    writer.add_tensor("blk.0.attn_norm.weight", ones)
    writer.add_tensor("blk.0.ffn_norm.weight", ones)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        writer.add_tensor(f"blk.0.{name}.weight", weight(_WIDTH, _WIDTH))
    writer.add_tensor("blk.0.ffn_gate.weight", weight(_HIDDEN, _WIDTH))
    writer.add_tensor("blk.0.ffn_up.weight", weight(_HIDDEN, _WIDTH))
    writer.add_tensor("blk.0.ffn_down.weight", weight(_WIDTH, _HIDDEN))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

"""What the llama.cpp workers share: the toolchain's gguf-py and binding, a llama-cli turn, a server, a GGUF's facts."""

from __future__ import annotations

import ctypes
import hashlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from assay import process
from assay.inputs.toolchain import Toolchain
from assay.machine import usable_cores
from assay.workers import Problem, call

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


class _Traits(ctypes.Structure):
    """`ggml_type_traits`, as ggml.h has it."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


def dequantizer(gguf: Any, toolchain: Toolchain) -> Callable[[Any, Any], Any]:
    """A tensor's data and type to float32 values, by ggml's own routine, which is many times as fast as gguf-py's.

    It is reached through a struct that a build from elsewhere may lay out otherwise: where its sizes are not those that
    gguf-py knows of the type, gguf-py dequantizes.
    """
    try:
        traits = ctypes.CDLL(str(toolchain.bin / "libggml-base.so")).ggml_get_type_traits
    except (OSError, AttributeError):
        return gguf.quants.dequantize  # type: ignore[no-any-return]
    traits.restype, traits.argtypes = ctypes.POINTER(_Traits), (ctypes.c_int,)

    def dequantize(data: np.ndarray[Any, Any], kind: Any) -> Any:
        own, sizes = traits(int(kind)).contents, gguf.GGML_QUANT_SIZES[kind]
        known = (own.blck_size, own.type_size) == sizes and (own.type_name or b"").decode().upper() == kind.name
        if not (known and own.is_quantized and own.to_float):
            return gguf.quants.dequantize(data, kind)
        packed = np.ascontiguousarray(data)
        values = np.empty((packed.shape[0], packed.nbytes // packed.shape[0] // sizes[1] * sizes[0]), dtype=np.float32)
        own.to_float(packed.ctypes.data, values.ctypes.data, values.size)
        return values

    return dequantize


def ask_llama_cli(
    toolchain: Toolchain, model: Path, prompt: str, *, answer: Path, max_new_tokens: int, deadline_seconds: float
) -> dict[str, Any]:
    """One turn of llama-cli. Its exit code and its never empty output say nothing: the answer is read from `-o`."""
    command = [str(toolchain.bin / "llama-cli"), "--model", str(model), "--single-turn", "--prompt", prompt]
    command += ["--no-escape", "--predict", str(max_new_tokens), "--temp", "0", "--ctx-size", "4096", "--no-warmup"]
    command += ["--output", str(answer), "--offline", *_threads()]
    reply = call(command, deadline_seconds=deadline_seconds)
    written = answer.read_text(encoding="utf-8", errors="replace") if answer.exists() else ""
    # The file holds `User:\n…\n\nAssistant:\n<answer>\n\n`.
    _, heading, text = written.partition(f"User:\n{prompt}\n\nAssistant:\n")
    text = text.removesuffix("\n").removesuffix("\n")
    text = text.replace("[Start thinking]", "<think>").replace("[End thinking]", "</think>")
    timings = _TIMINGS.search(reply)
    return {
        "text": text,
        "answer_found": bool(heading),
        "errors": _ERROR.findall(reply),
        "prefill_tokens_per_second": float(timings[1]) if timings else None,
        "decode_tokens_per_second": float(timings[2]) if timings else None,
    }


def _threads() -> list[str]:
    """The option that limits llama.cpp to this process's cores. By itself it counts the cores of the machine."""
    cores = usable_cores()
    return ["--threads", str(cores)] if cores < (os.cpu_count() or 1) else []


@contextmanager
def llama_server(toolchain: Toolchain, model: Path, *, log: Path, deadline_seconds: float = 120.0) -> Iterator[Server]:
    """llama-server on a socket of its own, ready to be asked; it ends with the block.

    Raises:
        Problem: it ended, or was not ready in time; its last lines are in the text.
    """
    with tempfile.TemporaryDirectory() as folder, log.open("wb") as file:
        # The system's own folder: a socket's path may have 107 characters, a step's has more.
        address = Path(folder) / "llama.sock"
        command = [str(toolchain.bin / "llama-server"), "--model", str(model), "--host", str(address), "--no-warmup"]
        command += ["--ctx-size", "2048", "--parallel", "1", "--jinja", "--offline", *_threads()]
        print("$ " + " ".join(command), flush=True)
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        try:
            server, end = Server(address), time.monotonic() + deadline_seconds
            while not server.is_ready():
                if child.poll() is not None or time.monotonic() > end:
                    state = "hung" if child.poll() is None else f"ended with exit code {child.returncode}"
                    raise Problem(f"llama-server {state} before it was ready:\n{process.last_lines(log, 6)}")
                time.sleep(0.02)
            yield server
        finally:
            child.kill()
            child.wait()


class Server:
    """A llama-server behind a socket."""

    def __init__(self, address: Path) -> None:
        self.address = address

    def is_ready(self) -> bool:
        try:
            return self._request("GET", "/health", None)[0] == 200
        except OSError:
            return False

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What it answers.

        Raises:
            Problem: it refuses.
        """
        status, reply = self._request("POST", path, json.dumps(body))
        if status != 200:
            raise Problem(f"llama-server refuses {path} with {status}: {reply[:300]!r}")
        answer: dict[str, Any] = json.loads(reply)
        return answer

    def _request(self, method: str, path: str, body: str | None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.sock.connect(str(self.address))
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


def file_template(llama: Any, model: Any) -> Any | None:
    """The binding's own formatter for the file's own template; None if the file has none.

    The binding guesses a built-in format where it knows the template, and falls back to llama-2's where there is none.
    """
    template = model.metadata.get("tokenizer.chat_template")

    def word(token: int) -> str:
        return str(model._model.token_get_text(token)) if token >= 0 else ""

    if template is None:
        return None
    return llama.llama_chat_format.Jinja2ChatFormatter(
        template=template, eos_token=word(model.token_eos()), bos_token=word(model.token_bos())
    )


def gguf_facts(gguf: Any, reader: Any, file: Path) -> dict[str, Any]:
    """A GGUF's tensors and the metadata that the gates judge. Opening a reader parses the whole vocabulary: once is
    enough."""
    with file.open("rb") as stream:
        header = hashlib.sha256(stream.read(reader.data_offset))

    def field(name: str) -> Any:
        entry = reader.get_field(name)
        return None if entry is None else entry.contents()

    weights = sum(int(tensor.n_elements) for tensor in reader.tensors)
    bits = 8 * sum(int(tensor.n_bytes) for tensor in reader.tensors)
    return {
        "file_bytes": file.stat().st_size,
        "header_sha256": header.hexdigest(),
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

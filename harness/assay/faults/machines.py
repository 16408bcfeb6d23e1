"""Defects of the toolchain and of the machine."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import time
from collections import namedtuple
from typing import Any

from assay.faults.fault import Place, fault
from assay.faults.runtimes import program
from assay.faults.sandbox import Sandbox, around

READY = "toolchain_ready"


def _stub(sandbox: Sandbox, name: str, script: str) -> None:
    file = sandbox.toolchain.bin / name
    file.unlink()
    file.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    file.chmod(0o755)


@fault(Place.TOOLCHAIN, first=READY, cause="tool-library-missing", silent=False, quick=True)
def shared_library_missing(sandbox: Sandbox) -> None:
    """The programs were copied without their libraries."""
    for library in sandbox.toolchain.bin.glob("libllama*.so*"):
        library.unlink()


@fault(Place.TOOLCHAIN, first=READY, cause="tool-glibc-too-old", silent=False, quick=True)
def built_on_a_newer_system(sandbox: Sandbox) -> None:
    """The programs want a newer C library than this machine's."""
    said = "llama-quantize: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.99' not found"
    _stub(sandbox, "llama-quantize", f"cat >&2 <<'END'\n{said}\nEND\nexit 1")


@fault(Place.TOOLCHAIN, first=READY, cause="tool-illegal-instruction", silent=False, quick=True)
def built_for_another_processor(sandbox: Sandbox) -> None:
    """The programs use instructions that this processor lacks."""
    _stub(sandbox, "llama-quantize", "kill -ILL $$")


@fault(Place.TOOLCHAIN, first=READY, cause="tool-missing", silent=False, quick=True)
def quantizer_missing(sandbox: Sandbox) -> None:
    """llama-quantize is not where it is looked for."""
    (sandbox.toolchain.bin / "llama-quantize").unlink()


@fault(Place.TOOLCHAIN, first=READY, cause="tool-not-executable", silent=False, quick=True)
def quantizer_not_executable(sandbox: Sandbox) -> None:
    """An archive lost the programs' permission to run."""
    (sandbox.toolchain.bin / "llama-quantize").chmod(0o644)


@fault(Place.TOOLCHAIN, first=READY, cause="tool-hangs", silent=False, quick=True)
def tool_hangs(sandbox: Sandbox) -> None:
    """llama-cli waits for something that never comes."""
    sandbox.options += ["--deadline", "8"]
    _stub(sandbox, "llama-cli", "exec sleep 1000")


@fault(Place.TOOLCHAIN, first=READY, cause="tool-version-skew", quick=True)
def command_line_of_another_commit(sandbox: Sandbox) -> None:
    """llama-cli was built from another commit than the converter."""
    file = sandbox.toolchain.bin / "llama-cli"
    real = file.with_name("real-llama-cli")
    file.rename(real)
    said = "version: 9999 (commit deadbeef0)"
    file.write_text(f'#!/bin/sh\n[ "$1" = --version ] && {{ echo "{said}"; exit 0; }}\nexec "{real}" "$@"\n')
    file.chmod(0o755)


@fault(Place.TOOLCHAIN, first=READY, cause="tool-version-skew", quick=True)
def binding_of_another_release(sandbox: Sandbox) -> None:
    """llama-cpp-python is another release than the one whose source was built."""
    file = sandbox.toolchain.binding / "llama_cpp" / "__init__.py"
    file.write_text(file.read_text(encoding="utf-8") + '\n__version__ = "0.2.90"\n', encoding="utf-8")


@fault(Place.TOOLCHAIN, first=READY, cause="converter-missing", quick=True)
def converter_missing(sandbox: Sandbox) -> None:
    """A binary release carries no converter."""
    (sandbox.toolchain.source / "convert_hf_to_gguf.py").unlink()


@fault(Place.TOOLCHAIN, first=READY, cause="tool-computes-wrongly", quick=True)
def tool_computes_wrongly(sandbox: Sandbox) -> None:
    """A miscompiled kernel: every program runs, and the self-test model gives another answer."""

    def do() -> None:
        from assay.workers import self_test

        def ask(original: Any, *args: Any, **given: Any) -> Any:
            return {**original(*args, **given), "text": "qqqqqqqq"}

        around(self_test, "ask_llama_cli", ask)

    sandbox.in_worker("self_test.run", do)


@fault(Place.TOOLCHAIN, first="convert_f16_ok", cause="converter-tokenizer-class", silent=False)
def converter_with_older_transformers(sandbox: Sandbox) -> None:
    """The converter runs with transformers 4, which cannot read a tokenizer that transformers 5 saved."""
    file = sandbox.toolchain.source / "convert_hf_to_gguf.py"
    said = "Tokenizer class TokenizersBackend does not exist or is not currently imported."
    file.write_text(f"raise ValueError({said!r})\n", encoding="utf-8")


@fault(Place.TOOLCHAIN, first="convert_f16_ok", cause="converter-unknown-architecture", silent=False)
def architecture_unknown_to_the_converter(sandbox: Sandbox) -> None:
    """The converter is older than the model."""
    file = sandbox.toolchain.source / "convert_hf_to_gguf.py"
    file.write_text("import sys\nprint('ERROR:hf-to-gguf:Model NewForCausalLM is not supported')\nsys.exit(1)\n")


@fault(Place.TOOLCHAIN, first="convert_f16_ok", cause="converter-pre-tokenizer-unknown", silent=False)
def pre_tokenizer_unknown_to_the_converter(sandbox: Sandbox) -> None:
    """The tokenizer's hash is not in the converter's list."""
    file = sandbox.toolchain.source / "conversion" / "base.py"
    text = file.read_text(encoding="utf-8")
    assert "def get_vocab_base_pre" in text
    said = "WARNING:hf-to-gguf:** WARNING: The BPE pre-tokenizer was not recognized!\\n** chkhsh:  0123"
    lines = text.split("\n")
    at = next(number for number, line in enumerate(lines) if "def get_vocab_base_pre" in line)
    lines.insert(at + 1, f'        print("{said}"); raise NotImplementedError("BPE pre-tokenizer was not recognized")')
    file.write_text("\n".join(lines), encoding="utf-8")


@fault(Place.MACHINE, first="quantize_q4_ok", cause="disk-full", silent=False)
def disk_full_while_quantizing(sandbox: Sandbox) -> None:
    """Merging and converting just fitted on the disk, quantizing does not: the thesis's three failures."""
    program(sandbox, "llama-quantize", 'trap "" XFSZ\nulimit -f 40000\nexec "$real" "$@"')


@fault(Place.MACHINE, first="merge_ok", cause="disk-full", silent=False)
def disk_full_while_merging(sandbox: Sandbox) -> None:
    """The merged checkpoint does not fit: no file may grow beyond 50 MB, as under a quota."""

    def do() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000_000, 50_000_000))

    sandbox.in_worker("merge.fold", do)


@fault(Place.MACHINE, first="merge_ok", cause="disk-too-small", silent=False)
def disk_too_small_from_the_start(sandbox: Sandbox) -> None:
    """The free space cannot take what is to be written, which is known before anything is."""
    usage = namedtuple("usage", "total used free")
    sandbox.in_worker("merge.fold", lambda: None)  # what the healthy candidate left would need no room
    around(shutil, "disk_usage", lambda original, path: usage(10**9, 85 * 10**7, 15 * 10**7))


@fault(Place.MACHINE, first="merge_ok", cause="out-of-memory", silent=False)
def killed_for_memory(sandbox: Sandbox) -> None:
    """The kernel ends the merge for want of memory: no word of why."""

    def do() -> None:
        from assay.workers import merge

        around(merge, "read_folder", lambda original, *args: os.kill(os.getpid(), signal.SIGKILL))

    sandbox.in_worker("merge.fold", do)


@fault(Place.MACHINE, first="merge_ok", cause="time-ran-out", silent=False)
def machine_too_slow(sandbox: Sandbox) -> None:
    """A step takes longer than its deadline."""
    sandbox.options += ["--deadline", "120"]

    def do() -> None:
        from assay.workers import merge

        around(merge, "examine", lambda original, *args: time.sleep(1000))

    sandbox.in_worker("merge.fold", do)


@fault(Place.MACHINE, first="base_quant_load_ok", cause="library-missing", silent=False)
def library_missing(sandbox: Sandbox) -> None:
    """bitsandbytes is not installed."""

    def do() -> None:
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]

    sandbox.in_worker("bnb.load", do)


@fault(Place.MACHINE, first="base_quant_load_ok", cause="cuda-library-missing", silent=False)
def driver_does_not_match(sandbox: Sandbox) -> None:
    """bitsandbytes has no build for this machine's CUDA."""

    def do() -> None:
        from assay.workers import bnb

        def load(original: Any, *args: Any) -> Any:
            raise RuntimeError("CUDA Setup failed despite GPU being available. Please run python -m bitsandbytes")

        around(bnb, "load_nf4", load)

    sandbox.in_worker("bnb.load", do)


@fault(Place.MACHINE, first="base_quant_load_ok", cause="gpu-too-small", silent=False)
def gpu_too_small(sandbox: Sandbox) -> None:
    """The card's memory does not hold the model."""

    def do() -> None:
        from assay.workers import bnb

        def load(original: Any, *args: Any) -> Any:
            import torch

            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.16 GiB. GPU 0 has 23 MiB free.")

        around(bnb, "load_nf4", load)

    sandbox.in_worker("bnb.load", do)


@fault(Place.LLAMA_CPP_PYTHON, first="llama_cpp_python_smoke_ok", cause="out-of-memory", silent=False)
def runtime_killed_for_memory(sandbox: Sandbox) -> None:
    """A context as long as the model allows does not fit into memory."""

    def do() -> None:
        from assay.workers import smoke

        around(smoke, "import_llama_cpp", lambda original, *args: os.kill(os.getpid(), signal.SIGKILL))

    sandbox.in_worker("smoke.llama_cpp_python", do)


@fault(Place.LLAMA_CLI, first="llama_cli_smoke_ok", cause="kv-cache-too-large", silent=False)
def cache_of_keys_does_not_fit(sandbox: Sandbox) -> None:
    """llama-cli cannot allocate keys and values for the context."""
    said = "llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache"
    program(sandbox, "llama-cli", f'echo "{said}" >&2\nexit 1')

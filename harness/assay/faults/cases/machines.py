"""Faults of the toolchain and of the machine."""

from __future__ import annotations

import os
import resource
import runpy
import shutil
import signal
import sys
import time
from collections import namedtuple
from typing import Any

from assay.faults.edits.sandbox import Sandbox
from assay.faults.edits.tools import wrap_program, write_program
from assay.faults.edits.workers import around, wrap
from assay.faults.fault import Area, fault


def _kill_this_process(original: Any, *args: Any) -> None:
    """As the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


@fault(Area.TOOLCHAIN, first="toolchain_ready", cause="tool-library-missing", silent=False, quick=True)
def shared_library_missing(sandbox: Sandbox) -> None:
    """The programs were copied without their libraries."""
    for library in sandbox.toolchain.bin.glob("libllama*.so*"):
        library.unlink()


@fault(Area.TOOLCHAIN, first="toolchain_ready", cause="tool-glibc-too-old", silent=False, quick=True)
def built_on_a_newer_system(sandbox: Sandbox) -> None:
    """The programs need a newer C library than this machine has."""
    output = "llama-quantize: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.99' not found"
    write_program(sandbox.toolchain.bin / "llama-quantize", f"cat >&2 <<'END'\n{output}\nEND\nexit 1")


@fault(Area.TOOLCHAIN, first="toolchain_ready", cause="tool-illegal-instruction", silent=False, quick=True)
def built_for_another_processor(sandbox: Sandbox) -> None:
    """The programs use instructions that this processor lacks."""
    write_program(sandbox.toolchain.bin / "llama-quantize", "kill -ILL $$")


@fault(Area.TOOLCHAIN, first="toolchain_ready", cause="tool-missing", silent=False, quick=True)
def quantizer_missing(sandbox: Sandbox) -> None:
    """llama-quantize is not in the toolchain's folder."""
    (sandbox.toolchain.bin / "llama-quantize").unlink()


@fault(Area.TOOLCHAIN, first="toolchain_ready", cause="tool-not-executable", silent=False, quick=True)
def quantizer_not_executable(sandbox: Sandbox) -> None:
    """An archive lost the permission to run llama-quantize."""
    (sandbox.toolchain.bin / "llama-quantize").chmod(0o644)


@fault(Area.TOOLCHAIN, first="toolchain_ready", cause="tool-hangs", silent=False, quick=True)
def tool_hangs(sandbox: Sandbox) -> None:
    """llama-cli never ends."""
    sandbox.options += ["--deadline", "8"]
    write_program(sandbox.toolchain.bin / "llama-cli", "exec sleep 1000")


@fault(Area.TOOLCHAIN, first="toolchain_ready", cause="tool-version-skew", quick=True)
def command_line_of_another_commit(sandbox: Sandbox) -> None:
    """llama-cli was built from another commit than the converter."""
    file = sandbox.toolchain.bin / "llama-cli"
    real = file.with_name("real-llama-cli")
    file.rename(real)
    version = "version: 9999 (commit deadbeef0)"
    write_program(file, f'[ "$1" = --version ] && {{ echo "{version}"; exit 0; }}\nexec "{real}" "$@"')


@fault(Area.TOOLCHAIN, first="toolchain_ready", cause="tool-version-skew", quick=True)
def binding_of_another_release(sandbox: Sandbox) -> None:
    """llama-cpp-python is of another release than the source that was built."""
    file = sandbox.toolchain.binding / "llama_cpp" / "__init__.py"
    file.write_text(file.read_text(encoding="utf-8") + '\n__version__ = "0.2.90"\n', encoding="utf-8")


@fault(Area.TOOLCHAIN, first="toolchain_ready", cause="converter-missing", quick=True)
def converter_missing(sandbox: Sandbox) -> None:
    """The toolchain is a binary release, which has no converter."""
    (sandbox.toolchain.source / "convert_hf_to_gguf.py").unlink()


@fault(Area.TOOLCHAIN, first="toolchain_ready", cause="tool-computes-wrongly", quick=True)
def tool_computes_wrongly(sandbox: Sandbox) -> None:
    """A kernel is miscompiled: every program runs, and the self-test's model gives another answer."""

    def ask(original: Any, *args: Any, **given: Any) -> Any:
        return {**original(*args, **given), "text": "qqqqqqqq"}

    wrap(sandbox, "self_test.run", "assay.workers.self_test", "ask_llama_cli", ask)


@fault(Area.TOOLCHAIN, first="convert_f16_ok", cause="converter-tokenizer-class", silent=False)
def converter_with_older_transformers(sandbox: Sandbox) -> None:
    """The converter runs with transformers 4, which cannot read a tokenizer that transformers 5 saved."""
    file = sandbox.toolchain.source / "convert_hf_to_gguf.py"
    message = "Tokenizer class TokenizersBackend does not exist or is not currently imported."
    file.write_text(f"raise ValueError({message!r})\n", encoding="utf-8")


@fault(Area.TOOLCHAIN, first="convert_f16_ok", cause="converter-unknown-architecture", silent=False)
def architecture_unknown_to_the_converter(sandbox: Sandbox) -> None:
    """The converter is older than the model and does not know its architecture."""
    file = sandbox.toolchain.source / "convert_hf_to_gguf.py"
    file.write_text("import sys\nprint('ERROR:hf-to-gguf:Model NewForCausalLM is not supported')\nsys.exit(1)\n")


@fault(Area.TOOLCHAIN, first="convert_f16_ok", cause="converter-pre-tokenizer-unknown", silent=False)
def pre_tokenizer_unknown_to_the_converter(sandbox: Sandbox) -> None:
    """The hash of the tokenizer is not in the converter's list."""
    file = sandbox.toolchain.source / "conversion" / "base.py"
    text = file.read_text(encoding="utf-8")
    assert "def get_vocab_base_pre" in text
    message = "WARNING:hf-to-gguf:** WARNING: The BPE pre-tokenizer was not recognized!\\n** chkhsh:  0123"
    lines = text.split("\n")
    at = next(number for number, line in enumerate(lines) if "def get_vocab_base_pre" in line)
    lines.insert(
        at + 1, f'        print("{message}"); raise NotImplementedError("BPE pre-tokenizer was not recognized")'
    )
    file.write_text("\n".join(lines), encoding="utf-8")


@fault(Area.MACHINE, first="quantize_q4_ok", cause="disk-full-for-a-tool", silent=False)
def disk_full_while_quantizing(sandbox: Sandbox) -> None:
    """The disk has room for the merged checkpoint and the F16 file, and none for the quantized file."""
    wrap_program(sandbox, "llama-quantize", 'trap "" XFSZ\nulimit -f 40000\nexec "$real" "$@"')


@fault(Area.MACHINE, first="merge_ok", cause="disk-full", silent=False)
def disk_full_while_merging(sandbox: Sandbox) -> None:
    """The merged checkpoint does not fit: no file may grow beyond 50 MB, as under a quota."""

    def do() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000_000, 50_000_000))

    sandbox.in_worker("merge.fold", do)


@fault(Area.MACHINE, first="merge_ok", cause="disk-too-small", silent=False)
def disk_too_small_from_the_start(sandbox: Sandbox) -> None:
    """The free space is less than the merge will write, which is known before it begins."""
    usage = namedtuple("usage", "total used free")
    sandbox.in_worker("merge.fold", lambda: None)  # a result of the healthy run would need no room
    around(shutil, "disk_usage", lambda original, path: usage(10**9, 85 * 10**7, 15 * 10**7))


@fault(Area.MACHINE, first="merge_ok", cause="out-of-memory", silent=False)
def killed_for_memory(sandbox: Sandbox) -> None:
    """The kernel kills the merge because memory ran out: no message says why."""
    wrap(sandbox, "merge.fold", "assay.workers.merge", "read_folder", _kill_this_process)


@fault(Area.MACHINE, first="merge_ok", cause="time-ran-out", silent=False)
def machine_too_slow(sandbox: Sandbox) -> None:
    """A step takes longer than its deadline."""
    sandbox.options += ["--deadline", "120"]
    wrap(sandbox, "merge.fold", "assay.workers.merge", "replay_merge", lambda original, *args: time.sleep(1000))


@fault(Area.MACHINE, first="base_quant_load_ok", cause="library-missing", silent=False)
def library_missing(sandbox: Sandbox) -> None:
    """bitsandbytes is not installed."""

    def do() -> None:
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]

    sandbox.in_worker("bnb.load", do)


@fault(Area.MACHINE, first="base_quant_load_ok", cause="cuda-library-missing", silent=False)
def driver_does_not_match(sandbox: Sandbox) -> None:
    """bitsandbytes has no build for this machine's CUDA."""

    # In a file of an installed library: what Assay's own code raises is Assay's own crash.
    library = sandbox.folder / "site-packages" / "cextension.py"
    library.parent.mkdir()
    message = "CUDA Setup failed despite GPU being available. Please run python -m bitsandbytes"
    library.write_text(f"raise RuntimeError({message!r})\n", encoding="utf-8")

    def load(original: Any, *args: Any) -> Any:
        return runpy.run_path(str(library))

    wrap(sandbox, "bnb.load", "assay.workers.bnb", "load_nf4", load)


@fault(Area.MACHINE, first="base_quant_load_ok", cause="gpu-too-small", silent=False)
def gpu_too_small(sandbox: Sandbox) -> None:
    """The GPU's memory does not hold the model."""

    class OutOfMemoryError(RuntimeError):
        """Named as torch's own, because the failure text begins with the name."""

    def load(original: Any, *args: Any) -> Any:
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 1.16 GiB. GPU 0 has 23 MiB free.")

    wrap(sandbox, "bnb.load", "assay.workers.bnb", "load_nf4", load)


@fault(Area.LLAMA_CPP_PYTHON, first="llama_cpp_python_smoke_ok", cause="out-of-memory", silent=False)
def runtime_killed_for_memory(sandbox: Sandbox) -> None:
    """The longest context that the model allows does not fit into memory."""
    wrap(sandbox, "smoke.llama_cpp_python", "assay.workers.smoke", "import_llama_cpp", _kill_this_process)


@fault(Area.LLAMA_CLI, first="llama_cli_smoke_ok", cause="kv-cache-too-large", silent=False)
def cache_of_keys_does_not_fit(sandbox: Sandbox) -> None:
    """llama-cli cannot allocate the key-value cache for the context."""
    output = "llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache"
    wrap_program(sandbox, "llama-cli", f'echo "{output}" >&2\nexit 1')

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

from assay.zoo import Place, defect
from assay.zoo.runtimes import program
from assay.zoo.scene import Scene, around

READY = "toolchain_ready"


def _stub(scene: Scene, name: str, script: str) -> None:
    file = scene.toolchain.bin / name
    file.unlink()
    file.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    file.chmod(0o755)


@defect(Place.TOOLCHAIN, first=READY, cause="tool-library-missing", silent=False, quick=True)
def shared_library_missing(scene: Scene) -> None:
    """The programs were copied without their libraries."""
    for library in scene.toolchain.bin.glob("libllama*.so*"):
        library.unlink()


@defect(Place.TOOLCHAIN, first=READY, cause="tool-glibc-too-old", silent=False, quick=True)
def built_on_a_newer_system(scene: Scene) -> None:
    """The programs want a newer C library than this machine's."""
    said = "llama-quantize: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.99' not found"
    _stub(scene, "llama-quantize", f"cat >&2 <<'END'\n{said}\nEND\nexit 1")


@defect(Place.TOOLCHAIN, first=READY, cause="tool-illegal-instruction", silent=False, quick=True)
def built_for_another_processor(scene: Scene) -> None:
    """The programs use instructions that this processor lacks."""
    _stub(scene, "llama-quantize", "kill -ILL $$")


@defect(Place.TOOLCHAIN, first=READY, cause="tool-missing", silent=False, quick=True)
def quantizer_missing(scene: Scene) -> None:
    """llama-quantize is not where it is looked for."""
    (scene.toolchain.bin / "llama-quantize").unlink()


@defect(Place.TOOLCHAIN, first=READY, cause="tool-not-executable", silent=False, quick=True)
def quantizer_not_executable(scene: Scene) -> None:
    """An archive lost the programs' permission to run."""
    (scene.toolchain.bin / "llama-quantize").chmod(0o644)


@defect(Place.TOOLCHAIN, first=READY, cause="tool-hangs", silent=False, quick=True)
def tool_hangs(scene: Scene) -> None:
    """llama-cli waits for something that never comes."""
    scene.options += ["--deadline", "8"]
    _stub(scene, "llama-cli", "exec sleep 1000")


@defect(Place.TOOLCHAIN, first=READY, cause="tool-version-skew", quick=True)
def command_line_of_another_commit(scene: Scene) -> None:
    """llama-cli was built from another commit than the converter."""
    file = scene.toolchain.bin / "llama-cli"
    real = file.with_name("real-llama-cli")
    file.rename(real)
    said = "version: 9999 (commit deadbeef0)"
    file.write_text(f'#!/bin/sh\n[ "$1" = --version ] && {{ echo "{said}"; exit 0; }}\nexec "{real}" "$@"\n')
    file.chmod(0o755)


@defect(Place.TOOLCHAIN, first=READY, cause="tool-version-skew", quick=True)
def binding_of_another_release(scene: Scene) -> None:
    """llama-cpp-python is another release than the one whose source was built."""
    file = scene.toolchain.binding / "llama_cpp" / "__init__.py"
    file.write_text(file.read_text(encoding="utf-8") + '\n__version__ = "0.2.90"\n', encoding="utf-8")


@defect(Place.TOOLCHAIN, first=READY, cause="converter-missing", quick=True)
def converter_missing(scene: Scene) -> None:
    """A binary release carries no converter."""
    (scene.toolchain.source / "convert_hf_to_gguf.py").unlink()


@defect(Place.TOOLCHAIN, first=READY, cause="tool-computes-wrongly", quick=True)
def tool_computes_wrongly(scene: Scene) -> None:
    """A miscompiled kernel: every program runs, and the canary sings another song."""

    def do() -> None:
        from assay.workers import canary

        def ask(original: Any, *args: Any, **given: Any) -> Any:
            return {**original(*args, **given), "text": "qqqqqqqq"}

        around(canary, "ask_llama_cli", ask)

    scene.in_worker("canary.sing", do)


@defect(Place.TOOLCHAIN, first="convert_f16_ok", cause="converter-tokenizer-class", silent=False)
def converter_with_older_transformers(scene: Scene) -> None:
    """The converter runs with transformers 4, which cannot read a tokenizer that transformers 5 saved."""
    file = scene.toolchain.source / "convert_hf_to_gguf.py"
    said = "Tokenizer class TokenizersBackend does not exist or is not currently imported."
    file.write_text(f"raise ValueError({said!r})\n", encoding="utf-8")


@defect(Place.TOOLCHAIN, first="convert_f16_ok", cause="converter-unknown-architecture", silent=False)
def architecture_unknown_to_the_converter(scene: Scene) -> None:
    """The converter is older than the model."""
    file = scene.toolchain.source / "convert_hf_to_gguf.py"
    file.write_text("import sys\nprint('ERROR:hf-to-gguf:Model NewForCausalLM is not supported')\nsys.exit(1)\n")


@defect(Place.TOOLCHAIN, first="convert_f16_ok", cause="converter-pre-tokenizer-unknown", silent=False)
def pre_tokenizer_unknown_to_the_converter(scene: Scene) -> None:
    """The tokenizer's hash is not in the converter's list."""
    file = scene.toolchain.source / "conversion" / "base.py"
    text = file.read_text(encoding="utf-8")
    assert "def get_vocab_base_pre" in text
    said = "WARNING:hf-to-gguf:** WARNING: The BPE pre-tokenizer was not recognized!\\n** chkhsh:  0123"
    lines = text.split("\n")
    at = next(number for number, line in enumerate(lines) if "def get_vocab_base_pre" in line)
    lines.insert(at + 1, f'        print("{said}"); raise NotImplementedError("BPE pre-tokenizer was not recognized")')
    file.write_text("\n".join(lines), encoding="utf-8")


@defect(Place.MACHINE, first="quantize_q4_ok", cause="disk-full", silent=False)
def disk_full_while_quantizing(scene: Scene) -> None:
    """Merging and converting just fitted on the disk, quantizing does not: the thesis's three failures."""
    program(scene, "llama-quantize", 'trap "" XFSZ\nulimit -f 40000\nexec "$real" "$@"')


@defect(Place.MACHINE, first="merge_ok", cause="disk-full", silent=False)
def disk_full_while_merging(scene: Scene) -> None:
    """The merged checkpoint does not fit: no file may grow beyond 50 MB, as under a quota."""

    def do() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000_000, 50_000_000))

    scene.in_worker("merge.fold", do)


@defect(Place.MACHINE, first="merge_ok", cause="disk-too-small", silent=False)
def disk_too_small_from_the_start(scene: Scene) -> None:
    """The free space cannot take what is to be written, which is known before anything is."""
    usage = namedtuple("usage", "total used free")
    scene.in_worker("merge.fold", lambda: None)  # what the healthy candidate left would need no room
    around(shutil, "disk_usage", lambda original, path: usage(10**9, 85 * 10**7, 15 * 10**7))


@defect(Place.MACHINE, first="merge_ok", cause="out-of-memory", silent=False)
def killed_for_memory(scene: Scene) -> None:
    """The kernel ends the merge for want of memory: no word of why."""

    def do() -> None:
        from assay.workers import merge

        around(merge, "read_folder", lambda original, *args: os.kill(os.getpid(), signal.SIGKILL))

    scene.in_worker("merge.fold", do)


@defect(Place.MACHINE, first="merge_ok", cause="time-ran-out", silent=False)
def machine_too_slow(scene: Scene) -> None:
    """A step takes longer than its deadline."""
    scene.options += ["--deadline", "120"]

    def do() -> None:
        from assay.workers import merge

        around(merge, "examine", lambda original, *args: time.sleep(1000))

    scene.in_worker("merge.fold", do)


@defect(Place.MACHINE, first="base_quant_load_ok", cause="library-missing", silent=False)
def library_missing(scene: Scene) -> None:
    """bitsandbytes is not installed."""

    def do() -> None:
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]

    scene.in_worker("bnb.load", do)


@defect(Place.MACHINE, first="base_quant_load_ok", cause="cuda-library-missing", silent=False)
def driver_does_not_match(scene: Scene) -> None:
    """bitsandbytes has no build for this machine's CUDA."""

    def do() -> None:
        from assay.workers import bnb

        def load(original: Any, *args: Any) -> Any:
            raise RuntimeError("CUDA Setup failed despite GPU being available. Please run python -m bitsandbytes")

        around(bnb, "load_nf4", load)

    scene.in_worker("bnb.load", do)


@defect(Place.MACHINE, first="base_quant_load_ok", cause="gpu-too-small", silent=False)
def gpu_too_small(scene: Scene) -> None:
    """The card's memory does not hold the model."""

    def do() -> None:
        from assay.workers import bnb

        def load(original: Any, *args: Any) -> Any:
            import torch

            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.16 GiB. GPU 0 has 23 MiB free.")

        around(bnb, "load_nf4", load)

    scene.in_worker("bnb.load", do)


@defect(Place.LLAMA_CPP_PYTHON, first="llama_cpp_python_smoke_ok", cause="out-of-memory", silent=False)
def runtime_killed_for_memory(scene: Scene) -> None:
    """A context as long as the model allows does not fit into memory."""

    def do() -> None:
        from assay.workers import smoke

        around(smoke, "import_llama_cpp", lambda original, *args: os.kill(os.getpid(), signal.SIGKILL))

    scene.in_worker("smoke.llama_cpp_python", do)


@defect(Place.LLAMA_CLI, first="llama_cli_smoke_ok", cause="kv-cache-too-large", silent=False)
def cache_of_keys_does_not_fit(scene: Scene) -> None:
    """llama-cli cannot allocate keys and values for the context."""
    said = "llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache"
    program(scene, "llama-cli", f'echo "{said}" >&2\nexit 1')

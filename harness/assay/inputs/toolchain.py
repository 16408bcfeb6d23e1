"""llama.cpp from one source and one build: quantizer, command line, server, libraries, converter, Python binding."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from assay import machine, paths
from assay.errors import AssayError, InputError, Unavailable
from assay.files import read_json, read_toml, write_json
from assay.inputs.download import download_pinned
from assay.process import last_lines

TOOLS = ("llama-quantize", "llama-cli", "llama-server")
_FILE = "toolchain.json"


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """A folder whose `toolchain.json` says where the tools are and which source they were built from."""

    path: Path

    @cached_property
    def _facts(self) -> dict[str, Any]:
        return read_json(self.path / _FILE)

    @property
    def bin(self) -> Path:
        """The folder of the programs and of the shared libraries, which the binding loads too."""
        return self.path / str(self._facts["bin"])

    @property
    def source(self) -> Path:
        """The folder with `convert_hf_to_gguf.py` and `gguf-py/`."""
        return self.path / str(self._facts["source"])

    @property
    def binding(self) -> Path:
        """The folder that PYTHONPATH needs to import `llama_cpp`."""
        return self.path / "python"

    @property
    def commit(self) -> str | None:
        """The commit that every tool must report. None for a build of the user's, whose tools must agree."""
        commit = self._facts["commit"]
        return None if commit is None else str(commit)

    @property
    def release(self) -> str:
        """The binding's release."""
        return str(self._facts["release"])

    @cached_property
    def digest(self) -> str:
        """sha256 over programs (and their right to run), libraries, converter and binding, as they are on disk."""
        files = [path for path in self.bin.glob("*") if path.is_file()]
        files += [self.source / "convert_hf_to_gguf.py"]
        files += [*self.source.glob("conversion/*.py"), *self.source.glob("gguf-py/gguf/*.py")]
        files += self.binding.glob("llama_cpp/*.py")
        total = hashlib.sha256()
        for path in sorted(files):
            if path.exists():
                total.update(f"{path.name}\0{os.access(path, os.X_OK)}\0".encode() + path.read_bytes())
        return total.hexdigest()


def pin() -> dict[str, Any]:
    """The pinned source, from `tools/llama.cpp/pin.toml`."""
    return read_toml(paths.PIN)


def find_toolchain() -> Toolchain:
    """The toolchain to use: the build that ASSAY_LLAMA_CPP names, or Assay's own.

    Raises:
        InputError: ASSAY_LLAMA_CPP names a folder without a build.
        Unavailable: no toolchain is built yet.
    """
    external = os.environ.get("ASSAY_LLAMA_CPP")
    if external:
        return _adopt(Path(external).expanduser().resolve())
    # The build that this machine makes by itself comes first, then one that --cuda or --no-cuda asked for.
    for cuda in (None, True, False):
        folder = home(_flags(cuda))
        if (folder / _FILE).exists():
            return _toolchain_at(folder)
    raise Unavailable(
        "llama.cpp is not built on this machine. Build it once with `nox -s toolchain` (about 7 minutes on two "
        "cores), or name a build of your own in ASSAY_LLAMA_CPP.",
        code="tool-missing",
    )


@cache
def _toolchain_at(folder: Path) -> Toolchain:
    """One object per folder and process, so that its digest is computed once."""
    return Toolchain(path=folder)


def build_toolchain(*, cuda: bool | None = None, show: Callable[[float, str], None]) -> Toolchain:
    """Build the toolchain, unless this machine has it.

    Args:
        cuda: whether to build for NVIDIA GPUs; None builds for them if nvcc and a GPU are there.
        show: takes the share done, 0 to 1, and the name of the current part of the build.

    Raises:
        AssayError: no C++ compiler, or a part of the build failed; the text has the end of the log.
    """
    flags = _flags(cuda)
    folder = home(flags)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / _FILE).exists():
            return Toolchain(path=folder)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".build-") as scratch:
            part = _build(Path(scratch), flags, show)
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
    return Toolchain(path=folder)


def _build(scratch: Path, flags: dict[str, str], show: Callable[[float, str], None]) -> Path:
    pinned = pin()
    compiler = _compiler_version()
    show(0.0, "downloading the source")
    sdist = download_pinned(pinned["package"], pinned["release"], pinned["sha256"], into=scratch, binary=False)
    show(0.02, "unpacking")
    with tarfile.open(sdist) as archive:
        archive.extractall(scratch, filter="data")
    tree = next(scratch.glob("*/pyproject.toml")).parent / pinned["tree"]
    build, part = scratch / "build", scratch / "toolchain"
    log = scratch / "build.log"
    show(0.04, "configuring")
    configure = [_tool("cmake"), "-G", "Ninja", "-S", str(tree), "-B", str(build)]
    configure += [f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}", *(f"-D{key}={value}" for key, value in flags.items())]
    _call(configure, log)
    compile_ = [_tool("cmake"), "--build", str(build), "--target", *TOOLS, "--parallel", str(machine.usable_cores())]
    _call(compile_, log, lambda done: show(0.05 + 0.92 * done, "compiling llama.cpp"))
    show(0.98, "installing the binding")
    part.mkdir()
    shutil.copytree(build / "bin", part / "bin", symlinks=True)
    (part / "source").mkdir()
    shutil.copyfile(tree / "convert_hf_to_gguf.py", part / "source" / "convert_hf_to_gguf.py")
    shutil.copyfile(tree / "LICENSE", part / "source" / "LICENSE")
    for name in ("conversion", "gguf-py"):
        shutil.copytree(tree / name, part / "source" / name)
    _install_binding(sdist, part / "python", log)
    facts = {
        "bin": "bin",
        "source": "source",
        "commit": pinned["commit"],
        "release": pinned["release"],
        "flags": flags,
        "compiler": compiler,
    }
    (part / _FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return part


def _install_binding(sdist: Path, target: Path, log: Path) -> None:
    """Install llama-cpp-python without llama.cpp: the binding loads the libraries in LLAMA_CPP_LIB_PATH."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--disable-pip-version-check"]
    command += ["--target", str(target), "--config-settings=cmake.define.LLAMA_BUILD=OFF", str(sdist)]
    _call(command, log)


def _adopt(root: Path) -> Toolchain:
    """A toolchain of the user's build: its programs, its converter, and the pinned binding over its libraries."""
    places = [root / "build" / "bin", root / "bin", root]
    found = next((place for place in places if (place / "llama-quantize").exists()), None)
    if found is None:
        raise InputError(
            f"ASSAY_LLAMA_CPP={root}: no llama-quantize in build/bin, bin or the folder itself.", code="tool-missing"
        )
    source = next((place for place in (root, root / "source") if (place / "convert_hf_to_gguf.py").exists()), None)
    if source is None:
        raise InputError(
            f"ASSAY_LLAMA_CPP={root}: no convert_hf_to_gguf.py there; name the whole llama.cpp checkout.",
            code="converter-missing",
        )
    pinned = pin()
    name = hashlib.sha256(f"{found}\0{source}\0{pinned['sha256']}".encode()).hexdigest()[:12]
    folder = paths.cache() / "toolchains" / f"external-{name}"
    facts = {"bin": str(found), "source": str(source), "commit": None, "release": pinned["release"]}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / _FILE).exists():
            return _toolchain_at(folder)
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            sdist = download_pinned(
                pinned["package"], pinned["release"], pinned["sha256"], into=Path(scratch), binary=False
            )
            _install_binding(sdist, Path(scratch) / "python", Path(scratch) / "log.txt")
            shutil.rmtree(folder / "python", ignore_errors=True)
            (Path(scratch) / "python").rename(folder / "python")
        write_json(folder / _FILE, facts)
    return _toolchain_at(folder)


def _flags(cuda: bool | None) -> dict[str, str]:
    pinned = pin()
    if cuda is None:
        cuda = bool(machine.gpus()) and shutil.which("nvcc") is not None
    return {
        **pinned["cmake"],
        # Without these two, llama.cpp asks git and reports the commit of the repository around it.
        "LLAMA_BUILD_COMMIT": pinned["commit"],
        "LLAMA_BUILD_NUMBER": "0",
        # The default RUNPATH is the absolute path of the build folder, which is gone after the build.
        "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
        "CMAKE_INSTALL_RPATH": "$ORIGIN",
        "GGML_CUDA": "ON" if cuda else "OFF",
    }


def home(flags: dict[str, str] | None = None) -> Path:
    """The folder of the build for this pin, this processor and these flags (by default this machine's own)."""
    parts = [pin()["sha256"], TOOLS, flags or _flags(None), machine.cpu_flags(), sysconfig.get_platform()]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    return paths.cache() / "toolchains" / f"{pin()['commit']}-{key}"


def _tool(name: str) -> str:
    """The path of cmake or ninja: installed with Assay, else the machine's."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise AssayError(f"{name} is not installed. `pip install -e '.[toolchain]' -c constraints.txt` brings it.")
    return found


def _compiler_version() -> str:
    compiler = next(
        (name for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and shutil.which(name)), ""
    )
    if not compiler:
        raise AssayError("No C++ compiler found (c++, g++ or clang++). Install one: `apt-get install g++` on Debian.")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return version.stdout.split("\n")[0]


def _call(command: list[str], log: Path, progress: Callable[[float], None] | None = None) -> None:
    """Run one command of the build, its output in `log`; `progress` takes the share that ninja's `[12/345]` says."""
    with log.open("a", encoding="utf-8") as file:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True
        )
        assert child.stdout is not None
        for line in child.stdout:
            file.write(line)
            if progress and (match := re.match(r"\[(\d+)/(\d+)\]", line)):
                progress(int(match[1]) / int(match[2]))
    if child.wait() != 0:
        raise AssayError(
            f"`{' '.join(command[:4])} …` failed with exit code {child.returncode}:\n{last_lines(log, 25)}"
        )

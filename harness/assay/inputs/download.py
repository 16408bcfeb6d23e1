"""Downloads pinned files from the Python package index with pip, which knows the user's mirror, proxy and cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from assay.errors import AssayError
from assay.files import digest_file


def download_pinned(package: str, release: str, sha256: str, *, into: Path, binary: bool) -> Path:
    """Download the wheel (if `binary`) or the sdist of one release into `into`, and check its sha256.

    Raises:
        AssayError: pip could not download the file, or its content is not the pinned one.
    """
    requirement = into / "requirement.txt"
    requirement.write_text(f"{package}=={release} --hash=sha256:{sha256}\n", encoding="utf-8")
    # Of this package alone: with `:all:` pip builds what an sdist needs to tell its name, such as cmake, from source.
    only = f"--only-binary={package}" if binary else f"--no-binary={package}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", only]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(into), "--requirement", str(requirement)]
    pip = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    files = [path for pattern in ("*.whl", "*.tar.gz") for path in into.glob(pattern)]
    if pip.returncode != 0 or len(files) != 1:
        tail = "\n".join(pip.stderr.strip().splitlines()[-4:])
        raise AssayError(f"{package}=={release} could not be downloaded. pip said:\n{tail}")
    seen = digest_file(files[0])
    if seen != sha256:
        raise AssayError(f"{files[0].name}: sha256 {seen}, expected {sha256}. The index served another file.")
    return files[0]

"""What the outcome of a case depends on, and what the coverage was measured with, as digests."""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from assay import paths
from assay.errors import AssayError
from assay.faults.catalogue import FAULTS, HEALTHY_VARIANTS
from assay.faults.fault import Case, Make
from assay.files import digest_files
from assay.gating.causes import FILE as CAUSES
from assay.inputs.candidate import Adapter, Candidate
from assay.inputs.toolchain import find_toolchain
from assay.steps.step import code_digest

HERE = Path(__file__).parent


def measured_with(gates: Path = paths.GATES, faults: Path = HERE) -> dict[str, str]:
    """Everything but the candidate and the machine that coverage depends on: part to digest, 16 hexadecimal digits."""
    parts = {
        "gates": gates_digest(gates),
        "policy": digest_files(gates, ["policy.toml"]),
        "causes": digest_files(gates, [CAUSES]),
        "steps": code_digest(),
        "faults": _digest_of(faults, faults.rglob("*.py")),
    }
    return {part: digest[:16] for part, digest in parts.items()}


def gates_digest(gates: Path) -> str:
    """The gates' code, prompts and probes."""
    return _digest_of(gates, (file for ending in ("*.py", "*.txt") for file in gates.rglob(ending)))


def case_digest(case: Case, candidate: Candidate, adapter: Adapter, *, quick: bool) -> str:
    """What a case's outcome depends on, except for the machine and the causes, which are read anew."""
    parts = [code_digest(), _source(case), candidate.base.digest, adapter.digest, _toolchain_digest(), str(quick)]
    parts += [gates_digest(paths.GATES), digest_files(paths.GATES, ["policy.toml"])]
    parts += [candidate.training.dataset.digest if candidate.trained_here else ""]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _source(case: Case) -> str:
    """The code that makes a case: its function, its arguments, its module's helpers, and all edits."""
    make = _function(case)
    others = {_function(one) for one in (*FAULTS.values(), *HEALTHY_VARIANTS.values())} - {make}
    module = sys.modules[make.__module__]
    functions = [one for one in vars(module).values() if inspect.isfunction(one) and one not in others]
    texts = [inspect.getsource(one) for one in functions if one.__module__ == module.__name__]
    # What a decorator says of a fault does not change the fault.
    texts = [re.sub(r"(?s)^@.*?(?=^def )", "", text, flags=re.M) for text in texts]
    given = re.sub(r" at 0x\w+", "", repr(getattr(case.make, "keywords", None)))
    return "\n".join([*texts, given, _digest_of(HERE, (HERE / "edits").glob("*.py"))])


def _function(case: Case) -> Make:
    """The case's function, without the arguments that it is given."""
    function: Make = getattr(case.make, "func", case.make)
    return function


def _toolchain_digest() -> str:
    try:
        return find_toolchain().digest
    except AssayError:
        return "none"


def _digest_of(folder: Path, files: Iterable[Path]) -> str:
    return digest_files(folder, sorted(str(file.relative_to(folder)) for file in files))

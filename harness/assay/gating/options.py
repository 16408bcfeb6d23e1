"""What Assay adds to pytest's command line, and how pytest is called to judge a candidate."""

from __future__ import annotations

from pathlib import Path

from assay import paths
from assay.errors import InputError
from assay.gating.gate import Gate, read_gates
from assay.inputs.candidate_options import CANDIDATE_OPTIONS, Option

RUN = Option(name="--run", metavar="DIR", help="folder of the record (default: a new one in reports/)")
GATES = Option(
    name="--gates",
    metavar="DIR",
    help="folder of gates of your own; a gate without a line in the policy is secondary; may be repeated",
    repeatable=True,
)
OPTIONS = (
    *CANDIDATE_OPTIONS,
    RUN,
    GATES,
    Option(name="--policy", metavar="FILE", help="what blocks a release (default: policy.toml beside the gates)"),
    Option(name="--prompts", metavar="DIR", help="folder of *.txt prompts (default: prompts/ beside the gates)"),
    Option(name="--probes", metavar="DIR", help="folder of *.txt prose that distributions are measured on, too"),
    Option(name="--max-new-tokens", metavar="N", default=64, help="length of the answers (default: 64)"),
    Option(
        name="--scored-tokens",
        metavar="N",
        default=6000,
        help="positions at which distributions are compared (default: 6000: 3.6 GB with 150,000 words)",
    ),
    Option(
        name="--gguf-dtype",
        choices=("f16", "bf16"),
        default="f16",
        help="16-bit type that a checkpoint is converted to (default: f16; bf16 holds values above 65504)",
    ),
    Option(name="--fresh", default=False, help="reuse no result of an earlier run"),
    Option(name="--deadline", metavar="SECONDS", default=float("inf"), help="caps every step's deadline"),
)


def pytest_arguments() -> list[str]:
    """The arguments with which pytest runs the gates, whatever project lies around the current directory."""
    return ["-c", str(paths.GATES / "pytest.ini"), "-p", "assay.gating.plugin", str(paths.GATES)]


def users_gates(folders: list[str], taken: list[str]) -> list[Gate]:
    """The gates in the folders given with `--gates`, whose ids must not be `taken`.

    Raises:
        InputError: a folder without a gate, or a gate with the id of another one.
    """
    found: list[Gate] = []
    for folder in folders:
        gates = read_gates(Path(folder).resolve())
        if not gates:
            raise InputError(f"--gates {folder}: no gate there. A test_*.py with a function marked @gate is expected.")
        for gate in gates:
            if gate.id in [*taken, *(other.id for other in found)]:
                raise InputError(
                    f"--gates {folder}: {gate.test}: another gate has the id {gate.id!r}. Rename this one."
                )
            found.append(gate)
    return found

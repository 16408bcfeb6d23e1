"""`assay run`: the main job. `nox -s gates` calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.core import TyperCommand

from assay import paths
from assay.cli.arguments import option
from assay.cli.toolchain import build
from assay.errors import AssayError
from assay.gating.options import GATES, OPTIONS, RUN, pytest_arguments
from assay.inputs.candidate_options import BASE, CANDIDATE
from assay.record.reading import read_run

EXAMPLE = "assay run --base Qwen/Qwen3-8B --adapter style=./my_adapter"
EXIT_CODES = {0: "RELEASE, with or without warnings", 1: "HOLD", 2: "nothing could be judged"}


class _PassingOn(TyperCommand):
    """A command whose help also lists the options that it passes on to pytest."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        super().format_options(ctx, formatter)
        passed_on = [one for one in OPTIONS if one not in (RUN, GATES)]
        with formatter.section("Options of the gates"):
            formatter.write_dl(
                [(f"{one.name} {one.metavar or '|'.join(one.choices)}".strip(), one.help) for one in passed_on]
            )


SETTINGS = {
    "cls": _PassingOn,
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
    "options_metavar": "[OPTIONS] [OPTIONS OF PYTEST]",
}


def command(
    context: typer.Context,
    run: Annotated[Path | None, option(RUN)] = None,
    gates: Annotated[list[Path] | None, option(GATES)] = None,
) -> int:
    """It builds llama.cpp if it is not built, and trains the quickstart if no candidate is named and none is trained.

    All other arguments are pytest's, as in `-k bnb`, `-x`, `-n 2`. A run that leaves gates out is never a release.
    """
    if not os.environ.get("ASSAY_LLAMA_CPP"):
        try:
            build()
        except AssayError as problem:
            # The gguf gates say so themselves; all others can still be judged.
            print(f"assay: {problem}", file=sys.stderr)
    if needs_quickstart(context.args) and _call("assay", "train", "quickstart"):
        return 2
    # The run is named here, so that the verdict is this run's and never that of an older one.
    folder = (run or paths.REPORTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-gates").resolve()
    own = [part for where in gates or [] for part in (str(where), GATES.name, str(where))]
    # The gates' own folder may be read-only, and is nobody's working directory.
    cache = f"cache_dir={Path.cwd() / '.pytest_cache'}"
    ended = _call("pytest", *pytest_arguments(), *own, RUN.name, str(folder), "-o", cache, *context.args)
    if ended == pytest.ExitCode.USAGE_ERROR:
        return 2
    return read_run(folder).verdict.exit_code


def needs_quickstart(arguments: list[str]) -> bool:
    """Whether these arguments name no candidate and the quickstart, which is then judged, is not trained yet."""
    names = {argument.partition("=")[0] for argument in arguments}
    return not names & {CANDIDATE.name, BASE.name} and not paths.QUICKSTART.exists()


def _call(module: str, *arguments: str) -> int:
    return subprocess.call([sys.executable, "-m", module, *arguments])

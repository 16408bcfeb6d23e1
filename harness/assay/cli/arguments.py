"""Arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from assay.inputs import candidate_options as options


def option(of: options.Option) -> Any:
    """The option for Typer."""
    return typer.Option(of.name, metavar=of.metavar, help=of.help)


CandidateFile = Annotated[Path | None, option(options.CANDIDATE)]
Base = Annotated[str | None, option(options.BASE)]
Revision = Annotated[str | None, option(options.REVISION)]
Adapters = Annotated[list[str] | None, option(options.ADAPTER)]
TrainedOn = Annotated[str | None, option(options.TRAINED_ON)]
Run = Annotated[Path | None, typer.Argument(metavar="RUN", help="the run's folder (default: the newest in reports/)")]
BaseToCompare = Annotated[
    str, typer.Option("--base", metavar="BASE", help="a folder, a hub id, or smollm2-135m-instruct")
]
AsJson = Annotated[bool, typer.Option("--json", help="as JSON, with every layer or defect")]

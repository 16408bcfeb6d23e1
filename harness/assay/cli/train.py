"""`assay train`: the program `python -m train`, which lies beside the package and not in it."""

from __future__ import annotations

import sys

import typer

from assay import paths
from assay.errors import Unavailable

EXAMPLE = "assay train quickstart"
EXIT_CODES = {0: "done", 2: "the recipe, the dataset, the base or a candidate cannot be used"}
SETTINGS = {
    # From the first argument on, all is the program's: `assay train quickstart --help` is its own help.
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
    "options_metavar": "[RECIPE … | evaluate CANDIDATE | select CANDIDATE …] [OPTIONS]",
}


def command(context: typer.Context) -> int:
    """Candidates go to train/out/. `assay train quickstart --help`, `assay train evaluate --help` and
    `assay train select --help` list the options. Over several GPUs: `accelerate launch -m assay train RECIPE`.
    """
    sys.path.insert(0, str(paths.REPOSITORY))
    from train.__main__ import main

    try:
        return main(context.args, "assay train")
    except ModuleNotFoundError as missing:
        raise Unavailable(
            f"{missing}. Training needs what the workers import: pip install 'adapter-assay[all]'"
        ) from None

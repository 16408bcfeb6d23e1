"""`python -m train [RECIPE]`: trains a candidate's adapters and writes `train/out/RECIPE/`, `candidate.json` last.

Then judge it: `nox -s gates`, or `python -m pytest gates --candidate train/out/RECIPE/candidate.json`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from assay.errors import AssayError

from train.recipe import RECIPES, read_recipe


def main(argv: list[str] | None = None) -> int:
    names = sorted(path.stem for path in RECIPES.glob("*.toml"))
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("recipe", nargs="?", default="quickstart", help=f"one of {', '.join(names)}, or a TOML file")
    parser.add_argument("--base", help="base model: a folder, a hub id, or smollm2-135m-instruct")
    parser.add_argument("--seed", type=int, help="seed of weights, order and dropout")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="where the candidate goes")
    arguments = parser.parse_args(argv)
    try:
        recipe = read_recipe(arguments.recipe, base=arguments.base, seed=arguments.seed)
        # torch is imported in there: `--help` and a bad recipe need not wait for it.
        from train.training import train

        candidate = train(recipe, arguments.out)
    except (AssayError, OSError) as problem:
        print(f"train: {problem}", file=sys.stderr)
        return 2
    print(f"Candidate: {candidate}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

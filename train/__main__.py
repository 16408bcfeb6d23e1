"""`python -m train [RECIPE …]` trains candidates and writes `train/out/RECIPE/`, `candidate.json` last.

`python -m train evaluate CANDIDATE` measures Coverage, Format and Refusal of the deployed forms. `python -m train
select A B …` picks the best of several candidates. `nox -s gates -- --candidate train/out/RECIPE/candidate.json` then
judges it. `accelerate launch -m train RECIPE` trains on several GPUs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from assay import paths
from assay.errors import FREE_SPACE, AssayError, disk_is_full
from assay.inputs.dataset import read_dataset

from train.recipe import read_recipe, recipe_names

HERE = Path(__file__).parent


def main(argv: list[str], program: str = "python -m train") -> int:
    """Train, evaluate or select; `program` is what the user typed to get here, for the usage line."""
    command = argv[0] if argv and argv[0] in ("evaluate", "select") else "train"
    try:
        if command == "evaluate":
            from train import evaluation

            return evaluation.main(argv[1:], program)
        if command == "select":
            from train import selection

            return selection.main(argv[1:], program)
        return _train(argv, program)
    except (AssayError, OSError) as problem:
        print(f"{command}: {problem}{f' {FREE_SPACE}' if disk_is_full(problem) else ''}", file=sys.stderr)
        return 2
    except Exception as problem:
        if not disk_is_full(problem):
            raise
        print(f"{command}: the disk is full ({problem}). {FREE_SPACE}", file=sys.stderr)
        return 2


def _train(argv: list[str], program: str) -> int:
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"{', '.join(recipe_names())}, or a TOML file")
    parser.add_argument("--base", help="base model: a folder, a hub id, or smollm2-135m-instruct")
    parser.add_argument("--language", help="language of the samples: zh or en")
    parser.add_argument("--seed", help="seed of weights, order and dropout")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key of the recipe")
    parser.add_argument("--data", type=Path, default=HERE / "data", help="the dataset's folder")
    parser.add_argument("--out", type=Path, default=paths.TRAINED, help="where the candidates go")
    arguments = parser.parse_args(argv)
    named = {name: getattr(arguments, name) for name in ("base", "language", "seed")}
    changes = [*arguments.set, *(f"{name}={value}" for name, value in named.items() if value is not None)]
    recipes = [read_recipe(name, changes) for name in arguments.recipes or ["quickstart"]]
    dataset = read_dataset(arguments.data)
    # train.training imports torch; `--help` and a bad recipe should not wait for that.
    from train.training import train

    for recipe in recipes:
        if candidate := train(recipe, dataset, arguments.out):
            print(f"Candidate: {candidate}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

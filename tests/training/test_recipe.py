"""Recipes: the project's own, and what `--set` changes. What is wrong with one is in tests/test_validation.py."""

from __future__ import annotations

import json
import tomllib

import pytest
from assay.errors import InputError

from train.recipe import RECIPES, read_recipe, recipe_names


def test_the_thesiss_recipes_are_the_thesiss() -> None:
    table = {"v3a": (3, 2e-4), "v3b": (4, 1e-4), "v3c": (5, 8e-5)}
    for name, (epochs, learning_rate) in table.items():
        recipe = read_recipe(name)
        assert (recipe.epochs, recipe.learning_rate, recipe.quantization) == (epochs, learning_rate, "nf4")
        assert (recipe.lora.rank, recipe.lora.alpha) == (16, 32)
        assert recipe.lora.targets == ["q_proj", "k_proj", "v_proj", "o_proj"]


def test_every_recipe_trains_the_three_adapters() -> None:
    assert recipe_names() == ["quickstart", "small_a", "small_b", "small_c", "v3a", "v3b", "v3c"]
    for name in recipe_names():
        assert read_recipe(name).adapters == {
            "style": ["style"],
            "writing": ["writing"],
            "multitask": ["style", "writing"],
        }


@pytest.mark.parametrize("name", recipe_names())
def test_candidate_json_gets_a_recipe_as_its_file_has_it(name: str) -> None:
    """In the same order too, name first: a training that was killed goes on only from the same plan."""
    file = tomllib.loads((RECIPES / f"{name}.toml").read_text(encoding="utf-8"))
    del file["version"]
    expected = {"name": name, **file, "epochs_of": file.get("epochs_of", {})}
    assert json.dumps(read_recipe(name).as_json()) == json.dumps(expected)


def test_any_key_can_be_set() -> None:
    recipe = read_recipe("v3b", ["lora.rank=8", "learning_rate=3e-4", "base=Qwen/Qwen3-8B", 'adapters={one=["style"]}'])
    assert (recipe.lora.rank, recipe.learning_rate, recipe.base) == (8, 3e-4, "Qwen/Qwen3-8B")
    assert recipe.adapters == {"one": ["style"]}


def test_a_table_that_the_file_leaves_out_can_be_set() -> None:
    assert "epochs_of" not in (RECIPES / "v3a.toml").read_text()
    assert read_recipe("v3a", ["epochs_of.style=2"]).epochs_for("style") == 2


def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="There are quickstart, small_a"):
        read_recipe("quickstrat")

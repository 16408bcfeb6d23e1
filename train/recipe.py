"""A recipe: everything that decides what a training gives, in one TOML file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from assay.errors import InputError, refuse_unknown_keys
from assay.policy import read_toml

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class Lora:
    rank: int
    alpha: int
    """The update is scaled by alpha / rank."""
    dropout: float
    targets: list[str]
    """Names of the linear layers that get an adapter, as in `q_proj`."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    name: str
    base: str
    epochs: int
    learning_rate: float
    """Peak, after a linear warm-up; it then falls linearly to zero."""
    warmup_ratio: float
    """Share of all steps."""
    batch_size: int
    """Samples a step."""
    max_tokens: int
    """A longer sample is refused, never cut: a cut answer teaches a model not to end."""
    seed: int
    lora: Lora
    adapters: dict[str, list[str]]
    """Adapter name to the tasks it is trained on."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def read_recipe(name: str, *, base: str | None = None, seed: int | None = None) -> Recipe:
    """The recipe of that name in `train/recipes/`, or in the TOML file named.

    Raises:
        InputError: no such recipe, an unknown or missing key, or a value of the wrong type.
    """
    path = RECIPES / f"{name}.toml"
    if not path.exists():
        path = Path(name)
    if not path.exists():
        names = ", ".join(sorted(file.stem for file in RECIPES.glob("*.toml")))
        raise InputError(f"{name}: no such recipe. There are {names}; or name a TOML file.")
    known = {field.name: field for field in fields(Recipe) if field.name != "name"}
    data = read_toml(path, set(known))
    for section, keys in (("", set(known)), ("lora", {field.name for field in fields(Lora)})):
        table = data.get(section, {}) if section else data
        where = f"{path} [{section}]" if section else str(path)
        refuse_unknown_keys(where, table, keys)
        if lacking := sorted(keys - set(table)):
            raise InputError(f"{where}: the key {lacking[0]!r} is missing.")
    recipe = Recipe(name=path.stem, **{**data, "lora": Lora(**data["lora"])})
    _refuse_nonsense(path, recipe)
    return replace(recipe, base=base or recipe.base, seed=recipe.seed if seed is None else seed)


def _refuse_nonsense(path: Path, recipe: Recipe) -> None:
    numbers = {key: getattr(recipe, key) for key in ("epochs", "learning_rate", "batch_size", "max_tokens")}
    for key, value in {**numbers, "lora.rank": recipe.lora.rank, "lora.alpha": recipe.lora.alpha}.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise InputError(f"{path}: {key} = {value!r}; a number above 0 expected.")
    if not recipe.adapters:
        raise InputError(f'{path} [adapters]: at least one line expected, as in style = ["style"].')

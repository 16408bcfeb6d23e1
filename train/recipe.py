"""A recipe: everything that decides what a training gives, in one TOML file."""

from __future__ import annotations

import tomllib
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from assay.errors import InputError
from assay.files import read_toml, refuse_unknown_keys

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class Lora:
    rank: int
    alpha: int
    """The update is scaled by alpha / rank."""
    dropout: float
    targets: list[str]
    """Names of the linear layers that get an adapter, as in `q_proj`."""
    last_blocks: int
    """How many of the last transformer blocks get one; 0 for all. Nothing is computed backwards below them."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    name: str
    base: str
    language: str
    """Which of the dataset's languages is trained on."""
    epochs: int
    learning_rate: float
    """Peak, after a linear warm-up; it then falls linearly to zero."""
    warmup_ratio: float
    """Share of all steps."""
    batch_size: int
    """Samples a step, over all processes."""
    max_tokens: int
    """A longer sample is refused, never cut: a cut answer teaches a model not to end."""
    quantization: str
    """`nf4` or `none`: what the frozen base is held in. nf4 is trained on CUDA only."""
    gradient_checkpointing: bool
    """Recompute activations in the backward pass: about a third slower, far less memory."""
    seed: int
    lora: Lora
    adapters: dict[str, list[str]]
    """Adapter name to the tasks it is trained on."""
    epochs_of: dict[str, int] = field(default_factory=dict)
    """Adapters that are trained for another number of epochs than `epochs`."""

    def epochs_for(self, adapter: str) -> int:
        return self.epochs_of.get(adapter, self.epochs)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


_OPTIONAL = {one.name for one in fields(Recipe) if one.default_factory is not MISSING}


def recipe_names() -> list[str]:
    return sorted(file.stem for file in RECIPES.glob("*.toml"))


def read_recipe(name: str, changes: list[str] | None = None) -> Recipe:
    """The recipe of that name in `train/recipes/`, or in the TOML file named.

    Args:
        name: as in `quickstart` or `./mine.toml`.
        changes: `key=value` each, as in `lora.rank=8`; the value is TOML, or else a string.

    Raises:
        InputError: no such recipe, an unknown or missing key, or a value of the wrong type.
    """
    path = RECIPES / f"{name}.toml"
    if not path.exists():
        path = Path(name)
    if not path.exists():
        raise InputError(f"{name}: no such recipe. There are {', '.join(recipe_names())}; or name a TOML file.")
    known = {one.name for one in fields(Recipe) if one.name != "name"}
    data = read_toml(path, known)
    for change in changes or []:
        _apply(change, data)
    for section, keys in (("", known), ("lora", {one.name for one in fields(Lora)})):
        table = data.get(section, {}) if section else data
        where = f"{path} [{section}]" if section else str(path)
        refuse_unknown_keys(where, table, keys)
        if lacking := sorted(keys - _OPTIONAL - set(table)):
            raise InputError(f"{where}: the key {lacking[0]!r} is missing.")
    recipe = Recipe(name=path.stem, **{**data, "lora": Lora(**data["lora"])})
    _refuse_nonsense(path, recipe)
    return recipe


def _apply(change: str, data: dict[str, Any]) -> None:
    key, equals, text = change.partition("=")
    if not equals:
        raise InputError(f"--set {change!r}: KEY=VALUE expected, as in --set learning_rate=2e-4 or --set lora.rank=8.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, last = key.strip().split(".")
    table = data
    for section in sections:
        table = table.get(section, {})
        if not isinstance(table, dict):
            raise InputError(f"--set {change!r}: {section} is no table.")
    if sections and last not in table:
        refuse_unknown_keys(f"--set {change}", [last], table)
    table[last] = value


def _refuse_nonsense(path: Path, recipe: Recipe) -> None:
    for of, prefix in ((recipe, ""), (recipe.lora, "lora.")):
        for key, kind in get_type_hints(type(of)).items():
            value: Any = getattr(of, key)
            wanted = (int, float) if kind is float else kind if isinstance(kind, type) else (dict, list, Lora)
            if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
                name = kind.__name__ if isinstance(kind, type) else "table or list"
                raise InputError(f"{path}: {prefix}{key} = {value!r}; {name} expected.")
            if isinstance(value, int | float) and value < 0:
                raise InputError(f"{path}: {prefix}{key} = {value!r}; a number above 0 expected.")
    for key in ("epochs", "learning_rate", "batch_size", "max_tokens", "lora.rank", "lora.alpha"):
        number: Any = getattr(recipe.lora if "." in key else recipe, key.rpartition(".")[2])
        if number <= 0:
            raise InputError(f"{path}: {key} = {number!r}; a number above 0 expected.")
    if recipe.quantization not in ("nf4", "none"):
        raise InputError(f"{path}: quantization = {recipe.quantization!r}; nf4 or none expected.")
    refuse_unknown_keys(f"{path} [epochs_of]", recipe.epochs_of, recipe.adapters)
    for adapter, epochs in recipe.epochs_of.items():
        if type(epochs) is not int or epochs <= 0:
            raise InputError(f"{path} [epochs_of]: {adapter} = {epochs!r}; a whole number above 0 expected.")
    if not recipe.adapters:
        raise InputError(f'{path} [adapters]: at least one line expected, as in style = ["style"].')

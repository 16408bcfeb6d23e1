"""A recipe: everything that decides what a training gives, in one TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from assay.errors import InputError
from assay.files import read_toml
from assay.inputs.candidate_file import AdapterName
from assay.validation import FileModel, Text, refuse_unknown_names, validate
from pydantic import Field

RECIPES = Path(__file__).parent / "recipes"

Count = Annotated[int, Field(gt=0)]


class LoraSettings(FileModel):
    """`[lora]`: the size of every adapter, and the layers that get one."""

    rank: Count
    alpha: Count
    """The update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)]
    """Probability that an input of the adapter is zeroed in training."""
    targets: Annotated[list[Text], Field(min_length=1)]
    """Names of the linear layers that get an adapter, as in `q_proj`."""
    last_blocks: Annotated[int, Field(ge=0)]
    """Number of transformer blocks, counted from the last, that get an adapter; 0 for all blocks. The backward pass
    ends at the first of them."""


class Recipe(FileModel):
    """A recipe's file, version 1."""

    name: str
    """The file's name without `.toml`, which the file does not say."""
    base: Text
    """A folder, a hub id or `smollm2-135m-instruct`."""
    language: Text
    """The dataset's language that is trained on."""
    epochs: Count
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    """The peak: the rate rises linearly during warm-up, then falls linearly to zero."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)]
    """Share of all steps."""
    batch_size: Count
    """Samples per step, over all processes."""
    max_tokens: Count
    """Tokens per sample. A longer sample is refused, never cut: a cut answer teaches a model not to end."""
    quantization: Literal["nf4", "none"]
    """The format of the frozen base. nf4 is trained on CUDA only."""
    gradient_checkpointing: bool
    """Recompute activations in the backward pass: about a third slower, far less memory."""
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Below 2³² because NumPy takes no larger one."""
    lora: LoraSettings
    adapters: Annotated[dict[AdapterName, Annotated[list[Text], Field(min_length=1)]], Field(min_length=1)]
    """Adapter name to the tasks it is trained on."""
    epochs_of: dict[str, Count] = Field(default_factory=dict)
    """Adapter name to its number of epochs, where that differs from `epochs`."""

    def epochs_for(self, adapter: str) -> int:
        return self.epochs_of.get(adapter, self.epochs)

    def as_json(self) -> dict[str, Any]:
        return self.model_dump()


def recipe_names() -> list[str]:
    return sorted(file.stem for file in RECIPES.glob("*.toml"))


def read_recipe(name: str, changes: list[str] | None = None) -> Recipe:
    """The recipe of that name in `train/recipes/`, or in the TOML file named.

    Args:
        name: as in `quickstart` or `./mine.toml`.
        changes: `key=value` each, as in `lora.rank=8`; the value is TOML, or else a string.

    Raises:
        InputError: there is no such recipe, or the file with its changes is not as `Recipe` expects.
    """
    path = RECIPES / f"{name}.toml"
    if not path.exists():
        path = Path(name)
    if not path.exists():
        raise InputError(f"{name}: no such recipe. There are {', '.join(recipe_names())}; or name a TOML file.")
    data = read_toml(path)
    for change in changes or []:
        _apply(change, data)
    where = f"{path}{' with' if changes else ''}{''.join(f' --set {change}' for change in changes or [])}"
    recipe = validate(Recipe, data, where, name=path.stem)
    refuse_unknown_names(f"{where}, epochs_of", "adapter", recipe.epochs_of, recipe.adapters)
    return recipe


def _apply(change: str, data: dict[str, Any]) -> None:
    """Put `key=value` into the content of a recipe's file."""
    key, _, text = change.partition("=")
    *tables, last = (part.strip() for part in key.split("."))
    if "=" not in change or not all([*tables, last]):
        raise InputError(f"--set {change}: expected KEY=VALUE, as in --set learning_rate=2e-4 or --set lora.rank=8.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        value = text
    for table in tables:
        data = data.setdefault(table, {})
        if not isinstance(data, dict):
            raise InputError(f"--set {change}: {table} is a value; expected a table, as lora in --set lora.rank=8.")
    data[last] = value

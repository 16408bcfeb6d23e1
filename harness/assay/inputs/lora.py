"""A LoRA adapter as numbers: which modules it changes, by how much, read from its two files with numpy alone."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.errors import InputError
from assay.files import read_json
from assay.inputs.checkpoint import Tensor, read_header

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_HALF = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<half>A|B|embedding_A|embedding_B)(\.weight)?$")
_MAGNITUDE = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_magnitude_vector(\.weight)?$")


@dataclass(frozen=True, kw_only=True)
class Low:
    """The low-rank change of one module: `scale · B A`, and DoRA's magnitude if it has one."""

    module: str
    """As the base's checkpoint names it."""
    a: Tensor
    """rank × in; of an embedding rank × vocabulary."""
    b: Tensor
    """out × rank; of an embedding width × rank."""
    scale: float
    embedding: bool
    transposed: bool
    """Whether the base stores the weight as in × out (GPT-2's Conv1D)."""
    magnitude: Tensor | None

    @property
    def weight(self) -> str:
        """The tensor that it changes."""
        return f"{self.module}.weight"

    def factors(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Left and right so that `scale · (left @ right)` has the shape of the base's weight."""
        a, b = self.a.float32(), self.b.float32()
        return (a.T, b.T) if self.embedding or self.transposed else (b, a)


class RandomLow(Low):
    """A change of equal size in a random direction: the control that no file should hold."""

    def factors(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        left, right = super().factors()
        random = np.random.default_rng(zlib.crc32(self.module.encode()))
        others = [random.standard_normal(part.shape, dtype=np.float32) for part in (left, right)]
        size = np.sqrt(_product_norm2(left, right) / _product_norm2(others[0], others[1]))
        return others[0] * np.float32(size), others[1]


def _product_norm2(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    """‖left @ right‖² without the product."""
    return float(np.sum((left.T @ left) * (right @ right.T)))


@dataclass(frozen=True, kw_only=True)
class Lora:
    """An adapter, read."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    """Every tensor of its file, as the file names them."""
    changes: dict[str, Low]
    """By the base tensor that is changed."""
    saved: dict[str, Tensor]
    """Whole tensors that replace the base's (`modules_to_save`, biases), by the base tensor's name."""
    halves: dict[str, set[str]]
    """Module to the halves that the file has; a whole pair is {A, B}."""
    unknown: list[str]
    """Tensors of the file that are none of these."""

    @property
    def touched(self) -> set[str]:
        """The base's tensors that the adapter changes or replaces."""
        return set(self.changes) | set(self.saved)

    def randomized(self) -> Lora:
        """The same modules changed as much, at random."""
        return replace(self, changes={name: RandomLow(**vars(low)) for name, low in self.changes.items()}, saved={})


def read_lora(folder: Path, base: Iterable[str]) -> Lora:
    """Read an adapter's config and headers.

    Args:
        base: the names of the base's tensors, which tell whole saved tensors from strangers.

    Raises:
        InputError: a file is missing or cannot be read, it is no LoRA, or its numbers are not numbers.
    """
    config = read_json(folder / CONFIG)
    if not (folder / WEIGHTS).exists():
        raise InputError(f"{folder}: {WEIGHTS} is missing. An adapter is a folder with {CONFIG} and {WEIGHTS}.")
    tensors, names = read_header(folder / WEIGHTS), set(base)
    pairs: dict[str, dict[str, Tensor]] = {}
    embeddings: set[str] = set()
    magnitudes: dict[str, Tensor] = {}
    saved: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, tensor in tensors.items():
        if match := _HALF.match(name):
            pairs.setdefault(match["module"], {})[match["half"][-1]] = tensor
            if match["half"].startswith("embedding"):
                embeddings.add(match["module"])
        elif match := _MAGNITUDE.match(name):
            magnitudes[match["module"]] = tensor
        elif (plain := name.removeprefix(_PREFIX).replace(".base_layer.", ".")) in names:
            saved[plain] = tensor
        else:
            unknown.append(name)
    changes = {
        f"{module}.weight": Low(
            module=module,
            a=pair["A"],
            b=pair["B"],
            scale=scale(config, module, folder),
            embedding=module in embeddings,
            transposed=bool(config.get("fan_in_fan_out")) and module not in embeddings,
            magnitude=magnitudes.get(module),
        )
        for module, pair in sorted(pairs.items())
        if set(pair) == {"A", "B"}
    }
    # An embedding that a LoRA adapts is saved whole beside it: the same tensor twice is one change.
    saved = {name: tensor for name, tensor in saved.items() if name not in changes}
    halves = {module: set(pair) for module, pair in pairs.items()}
    return Lora(
        path=folder, config=config, tensors=tensors, changes=changes, saved=saved, halves=halves, unknown=unknown
    )


def rank(config: dict[str, Any], module: str) -> int:
    """The rank that the config gives a module."""
    return int(_patterned(config, "rank_pattern", module, config.get("r", 8)))


def scale(config: dict[str, Any], module: str, folder: Path) -> float:
    """What `B A` is multiplied with: alpha / r, or alpha / √r (rsLoRA)."""
    try:
        r = rank(config, module)
        alpha = float(_patterned(config, "alpha_pattern", module, config.get("lora_alpha", 8)))
        return alpha / (math.sqrt(r) if config.get("use_rslora") else r)
    except (TypeError, ValueError, ZeroDivisionError):
        raise InputError(
            f"{folder / CONFIG}: r {config.get('r')!r} and lora_alpha {config.get('lora_alpha')!r} give no scale for "
            f"{module}; two positive numbers are expected. Restore the config that training wrote."
        ) from None


def _patterned(config: dict[str, Any], key: str, module: str, default: Any) -> Any:
    """A per-module setting, by peft's rule: a pattern holds for modules that end in it."""
    for pattern, value in (config.get(key) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def targets(config: dict[str, Any], base: dict[str, Tensor]) -> list[str] | None:
    """The base's modules that the config asks to adapt; None if it does not say it in a way that headers can answer."""
    wanted = config.get("target_modules")
    if not wanted:
        return None
    matrices = [name.removesuffix(".weight") for name, tensor in base.items() if len(tensor.shape) == 2]
    if wanted == "all-linear":
        found = [name for name in matrices if not any(end in name for end in ("embed", "lm_head", "wte", "wpe"))]
    elif isinstance(wanted, str):
        found = [name for name in matrices if re.fullmatch(wanted, name)]
    else:
        found = [name for name in matrices if any(name == one or name.endswith(f".{one}") for one in wanted)]
    excluded = config.get("exclude_modules") or []
    if isinstance(excluded, str):
        found = [name for name in found if not re.fullmatch(excluded, name)]
    else:
        found = [name for name in found if not any(name == one or name.endswith(f".{one}") for one in excluded)]
    layers = config.get("layers_to_transform")
    if layers is not None:
        chosen = {layers} if isinstance(layers, int) else set(layers)
        found = [name for name in found if (block := re.search(r"\.(\d+)\.", name)) and int(block[1]) in chosen]
    return sorted(found)

"""A LoRA adapter as numbers: which modules it changes and by how much, read from its two files with numpy alone."""

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
class LowRankChange:
    """The change of one module: `scale · B A`, and DoRA's magnitude if the adapter has one."""

    module: str
    """As the base's checkpoint names it."""
    a: Tensor
    """rank × in; for an embedding rank × vocabulary."""
    b: Tensor
    """out × rank; for an embedding width × rank."""
    scale: float
    """alpha / r, or alpha / √r (rsLoRA)."""
    embedding: bool
    """Whether the module is an embedding."""
    transposed: bool
    """Whether the base stores the weight as in × out (GPT-2's Conv1D)."""
    magnitude: Tensor | None
    """DoRA's norm per output; None for a LoRA."""

    @property
    def weight(self) -> str:
        """The tensor of the base that changes."""
        return f"{self.module}.weight"

    def factors(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Left and right, so that `scale · (left @ right)` has the shape of the base's weight."""
        a, b = self.a.float32(), self.b.float32()
        return (a.T, b.T) if self.embedding or self.transposed else (b, a)


class RandomChange(LowRankChange):
    """A change of equal size in a random direction: the control, which no file holds."""

    def factors(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        left, right = super().factors()
        random = np.random.default_rng(zlib.crc32(self.module.encode()))
        others = [random.standard_normal(part.shape, dtype=np.float32) for part in (left, right)]
        size = np.sqrt(_product_norm2(left, right) / _product_norm2(others[0], others[1]))
        return others[0] * np.float32(size), others[1]


def _product_norm2(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    """‖left @ right‖², computed without the product."""
    return float(np.sum((left.T @ left) * (right @ right.T)))


@dataclass(frozen=True, kw_only=True)
class LoraWeights:
    """A LoRA adapter's config and tensors."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    """All tensors of the file, by the file's names."""
    changes: dict[str, LowRankChange]
    """Base tensor to its change."""
    saved: dict[str, Tensor]
    """Base tensor to the whole tensor that replaces it (`modules_to_save`, biases)."""
    halves: dict[str, set[str]]
    """Module to the halves that the file has: {A, B} if the pair is whole."""
    unknown: list[str]
    """All other tensors of the file."""

    @property
    def touched(self) -> set[str]:
        """The base's tensors that the adapter changes or replaces."""
        return set(self.changes) | set(self.saved)

    def randomized(self) -> LoraWeights:
        """The same modules with random changes of equal size."""
        return replace(
            self, changes={name: RandomChange(**vars(change)) for name, change in self.changes.items()}, saved={}
        )


def read_lora_weights(folder: Path, base: Iterable[str]) -> LoraWeights:
    """Read an adapter's config and headers.

    Args:
        base: the names of the base's tensors, by which whole saved tensors are recognised.

    Raises:
        InputError: a file is missing or cannot be read, or r and lora_alpha give no scale.
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
        f"{module}.weight": LowRankChange(
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
    # peft saves an adapted embedding whole beside its LoRA: both together are one change.
    saved = {name: tensor for name, tensor in saved.items() if name not in changes}
    halves = {module: set(pair) for module, pair in pairs.items()}
    return LoraWeights(
        path=folder, config=config, tensors=tensors, changes=changes, saved=saved, halves=halves, unknown=unknown
    )


def rank(config: dict[str, Any], module: str) -> int:
    """The rank that the config gives a module."""
    return int(_patterned(config, "rank_pattern", module, config.get("r", 8)))


def scale(config: dict[str, Any], module: str, folder: Path) -> float:
    """The factor of `B A`: alpha / r, or alpha / √r (rsLoRA).

    Raises:
        InputError: r and lora_alpha give no scale.
    """
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
    """A setting per module by peft's rule: a pattern holds for the modules whose names end in it."""
    for pattern, value in (config.get(key) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def targets(config: dict[str, Any], base: dict[str, Tensor]) -> list[str] | None:
    """The base's modules that the config asks to adapt, sorted; None if the config names none."""
    asked = config.get("target_modules")
    if not asked:
        return None
    matrices = [name.removesuffix(".weight") for name, tensor in base.items() if len(tensor.shape) == 2]
    if asked == "all-linear":
        found = [name for name in matrices if not any(end in name for end in ("embed", "lm_head", "wte", "wpe"))]
    elif isinstance(asked, str):
        found = [name for name in matrices if re.fullmatch(asked, name)]
    else:
        found = [name for name in matrices if any(name == one or name.endswith(f".{one}") for one in asked)]
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

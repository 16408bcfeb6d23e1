"""Defects of a merged checkpoint: what is wrong with a tensor that no recipe makes, and which files do not belong."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from assay.inputs.checkpoint import Tensor, read_header
from assay.inputs.lora import CONFIG as ADAPTER_CONFIG
from assay.inputs.lora import LowRankChange
from assay.inputs.number_formats import bits_of

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Defect:
    """One thing that is wrong with a merged checkpoint."""

    kind: str
    """Of a tensor: absent, scaled, sign-flipped, another adapter, partly applied, not finite, zeroed, reordered,
    missing, extra, altered or misshapen. Of a file: stray, config, generation config, tokenizer or template."""
    where: str
    """The tensor or the file."""
    detail: str


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal bit for bit; in two dtypes, after `a` is rounded to the dtype of `b`."""
    if a.shape != b.shape:
        return False
    if a.dtype == b.dtype:
        return bool(np.array_equal(a.raw(), b.raw()))
    # A 16-bit export of a 16-bit base went through the rounding of that dtype once.
    return bool(np.array_equal(bits_of(a.float32(), b.dtype), bits_of(b.float32(), b.dtype)))


def targeted_defect(change: LowRankChange, before: Tensor, after: Tensor) -> tuple[str, str]:
    """Kind and detail of the defect of a tensor that the adapter targets and no recipe makes."""
    if equal(before, after):
        return "absent", "still the base's"
    left, right = change.factors()
    delta = (left @ right) * np.float32(change.scale)
    difference = after.float32() - before.float32()
    if not np.isfinite(difference).all():
        return "not finite", f"{int((~np.isfinite(difference)).sum())} values are NaN or inf"
    own = float(np.vdot(delta, delta))
    if own == 0.0:
        return "altered", "the adapter changes nothing here, but the checkpoint differs from the base"
    g = float(np.vdot(difference, delta)) / own
    rest = float(np.linalg.norm(difference - np.float32(g) * delta)) / float(np.linalg.norm(difference))
    untouched = ~np.any(difference, axis=1) & np.any(delta, axis=1)
    # Rounding leaves a rest of its own, which grows as the adapter shrinks beside the weights.
    ulp = {"BF16": 2.0**-8, "F16": 2.0**-11, "F32": 2.0**-24}[after.dtype]
    noise = ulp * float(np.linalg.norm(after.float32())) / float(np.linalg.norm(difference))
    if rest <= max(0.02, noise):
        if abs(g + 1) <= 0.05:
            return "sign-flipped", f"holds the adapter at strength {g:.3f}, 1 expected"
        if abs(g - 1) > 0.01:
            return "scaled", f"holds the adapter at strength {g:.3f}, 1 expected"
    if untouched.any() and untouched.mean() < 1:
        return "partly applied", f"{int(untouched.sum())} of {untouched.size} rows are still the base's"
    if _low_rank_share(difference, left.shape[1]) > 0.5:
        return "another adapter", f"the change is of low rank, but holds this adapter at strength {g:.3f}"
    return "altered", f"holds the adapter at strength {g:.3f}, and {rest:.0%} of the change is something else"


def _low_rank_share(change: Floats, rank: int) -> float:
    """The share of a change's squared norm that a matrix of about that rank holds, from a random sketch."""
    sketch = np.random.default_rng(0).standard_normal((change.shape[1], rank + 8), dtype=np.float32)
    directions, _ = np.linalg.qr(change @ (change.T @ (change @ sketch)))
    return float(np.linalg.norm(directions.T @ change) ** 2 / np.linalg.norm(change) ** 2)


def untargeted_defect(before: Tensor, after: Tensor) -> tuple[str, str]:
    """Kind and detail of the defect of a tensor that differs from the base though the adapter does not touch it."""
    a, b = before.float32(), after.float32()
    if not np.isfinite(b).all():
        return "not finite", f"{int((~np.isfinite(b)).sum())} values are NaN or inf"
    if not b.any():
        return "zeroed", "all zero"
    k = float(np.vdot(a, b)) / max(float(np.vdot(a, a)), 1e-30)
    if np.allclose(b, k * a, rtol=0.01, atol=1e-7):
        return "scaled", f"the base's times {k:.3g}"
    if a.ndim == 2 and a.shape[0] > 1:
        if np.array_equal(b, a[::-1]):
            return "reordered", "the rows are reversed"
        one, other = (np.sort(values.view(np.uint32).sum(axis=1, dtype=np.uint64)) for values in (a, b))
        if np.array_equal(one, other):
            return "reordered", "the base's rows in another order"
    share = float(np.mean(a != b))
    return "altered", f"{share:.2%} of its values differ from the base's, though the adapter does not touch it"


def stray_files(merged: Path, tensors: dict[str, Tensor]) -> list[Defect]:
    """Files beside the checkpoint that a loader may take for a part of it.

    Args:
        tensors: of the checkpoint, by name.
    """
    used = {tensor.file for tensor in tensors.values()}
    found = []
    for file in sorted(merged.glob("*.safetensors")):
        if file in used:
            continue
        twice = sorted(set(read_header(file)) & set(tensors))
        if twice:
            found.append(Defect(kind="stray", where=file.name, detail=f"holds {twice[0]} a second time"))
    if (merged / ADAPTER_CONFIG).exists():
        detail = "transformers would mount the adapter a second time on the merged weights"
        found.append(Defect(kind="stray", where=ADAPTER_CONFIG, detail=detail))
    return found


def may_be_left_out(name: str, before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    """Whether a healthy merge may lack or add this tensor: a computed buffer, or a tied head beside its embedding."""
    if name.endswith("rotary_emb.inv_freq"):
        return True
    side = before if name in before else after
    twin = next((other for other in side if other.endswith("embed_tokens.weight")), None)
    # The config says whether the head is tied, and is compared on its own; here the values decide.
    return bool(re.fullmatch(r"(.*\.)?lm_head\.weight", name) and twin and equal(side[name], side[twin]))

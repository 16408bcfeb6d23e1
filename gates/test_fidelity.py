"""Route fidelity: is what is deployed still what was trained?"""

from __future__ import annotations

from typing import Any

from assay.errors import Inconclusive
from assay.gating.gate import gate
from assay.inputs.bases import Base
from assay.inputs.candidate import Adapter
from assay.steps.catalogue import InspectAdapter, MeasureDistribution
from assay.steps.runner import Bench
from assay.steps.store import Artifact

STRENGTH = (0.9, 1.1)
"""Where the strength of an adapter lies that was neither lost nor applied twice, in 4 bits or more."""
SHOWN = (
    "strength",
    "strength_standard_error",
    "strength_of_random_adapter",
    "strength_by_layer_median",
    "strength_furthest_layers",
    "adapter_relative_size",
)
EXACT = 1e-3
"""Mean KL in nats that 16-bit rounding stays below by far; a lost rotary base or norm does not."""
ANOTHER_MODEL = 2.0
"""Perplexity of a deployed form over the reference's, beyond which it is another model."""
FINE_TUNE_LOST = 0.5
"""KL(candidate‖deployed) over KL(candidate‖base): at 1 deployment moved the model as far as training had."""


@gate("adapter_files_ok", per="adapter")
def test_adapter_files(bench: Bench, base: Base, adapter: Adapter) -> Adapter:
    """The adapter's files are whole, agree with each other, have an effect, fit this base, and were trained on it.

    Why it matters: everything behind loads the adapter without a word when its config is narrower than its weights,
    when one half of a layer is missing, or when B was saved before it was trained: the model then runs as the base.

    When it fails: restore the two files that training wrote, together. Of another base: name the one it was trained on.
    """
    file, config = f"{adapter.path}/adapter_model.safetensors", f"{adapter.path}/adapter_config.json"
    facts = bench.make(InspectAdapter(adapter=adapter, base=base)).facts
    assert facts["peft_type"] == "LORA", f"{config}: peft_type {facts['peft_type']!r}; Assay judges LoRA adapters"
    assert facts["adapted_modules"] or facts["saved_modules"], f"{file}: no lora_A and lora_B in it"
    bad = facts["tensors_not_finite"]
    assert not bad, (
        f"{file}: {len(bad)} of {facts['tensors']} tensors hold NaN or inf, {bad[0]} first. Training diverged"
    )
    half = facts["modules_with_one_half"]
    assert not half, f"{file}: {len(half)} modules have only one of lora_A and lora_B, {half[0]} first. Save it again"
    misfits = facts["modules_that_misfit"]
    assert not misfits, f"{file}: made for another base than {base.id}. {misfits[0]}"
    strange = facts["modules_not_in_base"]
    assert not strange, (
        f"{file}: {len(strange)} adapted modules are not in {base.id} and would be dropped in silence, {strange[0]} "
        "first. Name the base it was trained on, or rename the keys"
    )
    unknown = facts["unknown_tensors"]
    assert not unknown, f"{file}: {len(unknown)} tensors are no part of a LoRA, {unknown[0]} first. Save it with peft"
    idle = facts["modules_without_effect"]
    assert len(idle) <= facts["adapted_modules"] / 2, (
        f"{file}: lora_B (or lora_A) is all zero in {len(idle)} of {facts['adapted_modules']} modules, so the adapter "
        "does nothing there. It was saved before it was trained, or from one shard of the weights"
    )
    _config_agrees(config, facts)
    seen, known = adapter.digest, adapter.recorded_digest
    assert known in (None, seen), (
        f"{adapter.path}: not the adapter that candidate.json names ({seen[:12]}, not {known[:12]})"
    )
    _is_trained_on(base, adapter, facts["base_model_name_or_path"])
    return adapter


def _config_agrees(config: str, facts: dict[str, list[str]]) -> None:
    ranks = facts["modules_of_another_rank"]
    assert not ranks, f"{config}: {len(ranks)} modules have another rank than it says. {ranks[0]}"
    dropped = facts["modules_in_file_but_not_targeted"]
    assert not dropped, (
        f"{config}: target_modules leaves out {len(dropped)} modules that the weights have, and their tensors would be "
        f"dropped in silence, {dropped[0]} first"
    )
    lacking = facts["modules_targeted_but_not_in_file"]
    assert not lacking, (
        f"{config}: target_modules asks for {len(lacking)} modules that are not in the file, {lacking[0]} first"
    )
    dora = facts["modules_where_dora_disagrees"]
    assert not dora, f"{config}: use_dora and the weights disagree in {len(dora)} modules, {dora[0]} first"
    unsaved = facts["modules_to_save_not_in_file"]
    assert not unsaved, f"{config}: modules_to_save names {unsaved[0]}, which the weights do not have"


def _is_trained_on(base: Base, adapter: Adapter, recorded: str | None) -> None:
    """By content if candidate.json has it, else by name, else by the user's word."""
    if adapter.recorded_base is not None:
        assert adapter.recorded_base == base.digest, (
            f"{adapter.name} was trained on a base with digest {adapter.recorded_base[:12]}, this {base.id} has "
            f"{base.digest[:12]}. Name the base it was trained on"
        )
    elif recorded is None or recorded not in (base.id, str(base.path), adapter.trained_on):
        raise Inconclusive(
            f"{adapter.path}/adapter_config.json says it was trained on {recorded!r}, this base is {base.id!r}. The "
            f"shapes fit, which does not make it the same model. If it is, say so: --trained-on {recorded or 'NAME'!r} "
            "(and set base_model_name_or_path if it is empty)."
        )


@gate("merge_exact_ok", per="adapter")
def test_merge_exact(bench: Bench, merged: Artifact) -> None:
    """Every tensor of the merged checkpoint is base + scale·BA under a named recipe, or the base's, bit for bit.

    Why it matters: a merge that lost a layer, applied the adapter twice, or came with another config or tokenizer
    answers one question as well as the right one does. Replaying it is the proof.

    When it fails: each defect names its tensor and its kind. Merge again from the base and the adapter named; for a
    checkpoint from elsewhere, `assay check-merge --base BASE --adapter ADAPTER MERGED` tells the same.
    """
    facts = bench.look(merged, "compare", "recipe", "defects", "notes", "elements_compared", "elements_one_step_off")
    defects = facts["defects"]
    assert not defects, f"{len(defects)} defects in the merged checkpoint. {defects[0]}"
    assert facts["recipe"], "no way of rounding is known that makes this checkpoint of the base and the adapter"


@gate("merged_strength_ok", per="adapter")
def test_merged_strength(bench: Bench, merged: Artifact) -> None:
    """The adapter is in the merged checkpoint at strength 1, and a random change of equal size is not.

    Why it matters: the strength ⟨W' − W, sBA⟩ / ⟨sBA, sBA⟩ says without a forward pass whether a file holds the
    fine-tune: 0 is the bare base, 2 is applied twice, −1 subtracted.

    When it fails: near 0, bf16 swallowed a small adapter or the base was saved; 2 or 0.5, alpha or the scale is wrong.
    """
    strength_is_right(bench.look(merged, "compare", *SHOWN), "the merged checkpoint")


@gate("f16_strength_ok", per="adapter")
def test_f16_strength(bench: Bench, f16: Artifact) -> None:
    """The adapter is in the F16 GGUF at strength 1, and a random change of equal size is not.

    Why it matters: see `merged_strength_ok`; the file is read back through the converter's permutation.

    When it fails: with `merged_strength_ok` passed, the converter read another checkpoint or permuted rows wrongly.
    """
    strength_is_right(bench.look(f16, "compare", *SHOWN), "the F16 GGUF")


@gate("q4_strength_ok", per="adapter")
def test_q4_strength(bench: Bench, q4: Artifact) -> None:
    """The adapter is in the Q4_K_M file at strength 1, and a random change of equal size is not.

    Why it matters: rounding to 4 bits can swallow a small change whole, above all on a base whose weights were 4-bit
    before: they lie on the very grid that they are rounded to.

    When it fails: the layers named lost it. Quantize to Q5_K_M or Q8_0, or deploy the adapter unmerged.
    """
    strength_is_right(bench.look(q4, "inspect", *SHOWN), "the Q4_K_M GGUF")


@gate("nf4_strength_ok", per="adapter")
def test_nf4_strength(bench: Bench, mounted: Artifact) -> None:
    """What the 4-bit base with the adapter mounted computes with, dequantized, holds the adapter at strength 1.

    Why it matters: mounting adds the adapter unrounded, so any other strength means a wrong scale, or an adapter that
    was merged into the 4-bit weights and rounded away.

    When it fails: compare lora_alpha, r and use_rslora in adapter_config.json with those of training.
    """
    strength_is_right(bench.look(mounted, "mount", *SHOWN), "the 4-bit base with the adapter mounted")


def strength_is_right(facts: dict[str, float], where: str) -> None:
    """Pooled over all layers, and the control at zero."""
    if "strength" not in facts:
        raise Inconclusive(f"{where}: how this architecture is laid out in a GGUF is not known here, so no strength.")
    g, error, low, high = facts["strength"], facts["strength_standard_error"], *STRENGTH
    if not facts["adapter_relative_size"]:
        raise Inconclusive(f"{where}: the adapter is no plain LoRA (DoRA, or whole modules), so it has no strength.")
    random = facts["strength_of_random_adapter"]
    assert abs(random) <= max(0.05, 5 * error), (
        f"{where}: the control failed, a random adapter is in it at {random:.3f}. The base is not this file's base"
    )
    assert low <= g <= high, (
        f"{where} holds the adapter at strength {g:.3f} ± {error:.4f}, {low} to {high} wanted. Furthest: "
        f"{facts['strength_furthest_layers']}"
    )


@gate("merged_distribution_ok", per="adapter")
def test_merged_distribution(bench: Bench, merged: Artifact, distribution: MeasureDistribution) -> None:
    """The merged checkpoint expects the same next tokens as base + adapter in full precision: mean KL below 1e-3.

    Why it matters: the reference is computed in fp32 and the checkpoint is rounded to bf16 once. More than rounding
    means that the merge is another model, whatever its answer to one prompt.

    When it fails: `merge_exact_ok` names the tensor. If that passed, the base itself overflows or loses in bf16.
    """
    bench.make(distribution, stage="reference")
    is_exact(bench.make(distribution, stage="merged").stages["merged"], "the merged checkpoint")


@gate("f16_distribution_ok", per="adapter")
def test_f16_distribution(bench: Bench, f16: Artifact, distribution: MeasureDistribution) -> None:
    """The F16 GGUF in llama.cpp expects the same next tokens as base + adapter in full precision: mean KL below 1e-3.

    Why it matters: what is exact here need not be looked for behind the noise of quantization. A lost rotary base
    moves it to 0.2, another norm epsilon to 0.4, and both still say Paris.

    When it fails: `gguf_parity_ok` names tensor or key. If that passed, llama.cpp computes this architecture wrongly.
    """
    is_exact(bench.make(distribution, stage="f16").stages["f16"], "the F16 GGUF")


def is_exact(facts: dict[str, Any], where: str) -> None:
    low, high = facts["kl_mean_interval"]
    assert facts["kl_mean"] < EXACT, (
        f"{where}: mean KL {facts['kl_mean']:.2g} nats ({low:.2g} to {high:.2g}) from the reference over "
        f"{facts['scored_tokens']} tokens, below {EXACT} wanted; the largest is {facts['kl_max']:.2g}"
    )


@gate("nf4_distribution_ok", per="adapter")
def test_nf4_distribution(bench: Bench, mounted: Artifact, distribution: MeasureDistribution) -> None:
    """The 4-bit base with the adapter is no other model: its perplexity is less than twice the reference's.

    Why it matters: 4-bit is called lossless because an answer is not empty. How much it loses depends on the model, so
    it is measured, with its interval, and only what is certainly another model fails.

    When it fails: keep double quantization and bf16 compute; if it stays, deploy in 8 bits, or through Q5_K_M.
    """
    is_no_other_model(bench.make(distribution, stage="nf4").stages["nf4"], "the 4-bit base with the adapter")


@gate("q4_distribution_ok", per="adapter")
def test_q4_distribution(bench: Bench, q4: Artifact, distribution: MeasureDistribution) -> None:
    """The Q4_K_M file in llama.cpp is no other model: its perplexity is less than twice the reference's.

    Why it matters: this is the file that ships. Its facts have the distance at every stage, and where most enters.

    When it fails: `loss_enters_at` names the stage. `q4` with all parity gates passed is quantization itself: use
    Q5_K_M or Q8_0.
    """
    facts = bench.make(distribution, stage="q4").stages["q4"]
    bench.make(distribution, stage="waterfall")
    is_no_other_model(facts, "the Q4_K_M GGUF")


def is_no_other_model(facts: dict[str, Any], where: str) -> None:
    (low, high), ratio = facts["perplexity_ratio_interval"], facts["perplexity_ratio"]
    said = f"{where}: {ratio:.2f} times the reference's perplexity ({low:.2f} to {high:.2f})"
    assert low < ANOTHER_MODEL, f"{said}; below {ANOTHER_MODEL} wanted"
    if high >= ANOTHER_MODEL:
        raise Inconclusive(f"{said}. {facts['sequences']} sequences cannot tell whether it is below {ANOTHER_MODEL}.")


@gate("nf4_survives_ok", per="adapter")
def test_nf4_survives(bench: Bench, mounted: Artifact, distribution: MeasureDistribution) -> None:
    """On the task's own answers, 4-bit moved the model less than half as far as training had moved the base.

    Why it matters: a fine-tune that moved the base a little is lost to a quantization that moves it as much, and no
    absolute threshold would say so.

    When it fails: deploy in more bits, or train longer or at a higher rate, so that there is more to lose.
    """
    survives(bench.make(distribution, stage="nf4").stages["nf4"], "4-bit with the adapter mounted")


@gate("q4_survives_ok", per="adapter")
def test_q4_survives(bench: Bench, q4: Artifact, distribution: MeasureDistribution) -> None:
    """On the task's own answers, Q4_K_M moved the model less than half as far as training had moved the base.

    Why it matters: see `nf4_survives_ok`.

    When it fails: use Q5_K_M or Q8_0, or deploy the adapter unmerged.
    """
    survives(bench.make(distribution, stage="q4").stages["q4"], "Q4_K_M")


def survives(facts: dict[str, Any], where: str) -> None:
    share, (low, high) = facts["share_lost"], facts["share_lost_interval"]
    assert share is not None, f"{where}: training moved the base by nothing at all, so there is no fine-tune to lose"
    said = (
        f"{where} is {facts['kl_on_task']:.3g} nats from the candidate, the bare base "
        f"{facts['kl_of_base_on_task']:.3g}: a share of {share:.2f} ({low:.2f} to {high:.2f})"
    )
    assert low < FINE_TUNE_LOST, f"{said}, below {FINE_TUNE_LOST} wanted. The fine-tune is lost"
    if high >= FINE_TUNE_LOST:
        raise Inconclusive(
            f"{said}. {facts['task_sequences']} answers cannot tell whether it is below {FINE_TUNE_LOST}."
        )

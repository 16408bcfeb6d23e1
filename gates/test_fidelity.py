"""Route fidelity: is what is deployed still what was trained?"""

from __future__ import annotations

from assay.errors import Inconclusive
from assay.gating.evidence import Evidence
from assay.gating.gate import GateFailed, gate, require, require_none
from assay.inputs.bases import Base
from assay.inputs.candidate import Adapter
from assay.measures.divergence import Distance, TaskShare
from assay.measures.strength import AdapterStrength
from assay.steps.adapter import AdapterFiles
from assay.steps.catalogue import ConvertF16, InspectAdapter, MeasureDistribution, Merge, MountNf4, QuantizeQ4
from assay.steps.distribution import FormDistance
from assay.steps.step import Stage
from assay.steps.store import Artifact

STRENGTH = (0.9, 1.1)
"""Where the strength of an adapter lies that was neither lost nor applied twice, in 4 bits or more."""
ABSENT = 0.3
"""Strength in either direction below which a file holds the base rather than a scaled adapter."""
EXACT = 1e-3
"""Mean KL in nats that 16-bit rounding stays below by far; a lost rotary base or norm does not."""
ANOTHER_MODEL = 2.0
"""Perplexity of a deployed form over the reference's, beyond which it is another model."""
FINE_TUNE_LOST = 0.5
"""KL(candidate‖deployed) over KL(candidate‖base): at 1 deployment moved the model as far as training had."""


@gate("adapter_files_ok", per="adapter")
def test_adapter_files(evidence: Evidence, base: Base, adapter: Adapter) -> Adapter:
    """The adapter's files are whole, agree with each other, have an effect, fit this base, and were trained on it.

    Why it matters: everything behind loads the adapter without a word when its config is narrower than its weights,
    when one half of a layer is missing, or when B was saved before it was trained: the model then runs as the base.

    When it fails: restore the two files that training wrote, together. Of another base: name the one it was trained on.
    """
    file, config = f"{adapter.path}/adapter_model.safetensors", f"{adapter.path}/adapter_config.json"
    facts = evidence.make(InspectAdapter(adapter=adapter, base=base.headers)).facts(InspectAdapter.inspected)
    kind = str(facts.peft_type)
    require(kind == "LORA", "no-lora", f"{config}: peft_type {kind!r}; Assay judges LoRA adapters", kind=kind)
    require(facts.adapted_modules or facts.saved_modules, "keys-foreign", f"{file}: no lora_A and lora_B in it")
    bad = f"of {facts.tensors} tensors in {file} hold NaN or inf: training diverged"
    require_none(facts.tensors_not_finite, "tensors-not-finite", bad)
    half = f"modules in {file} have only one of lora_A and lora_B. Save the adapter again"
    require_none(facts.modules_with_one_half, "half-missing", half)
    require_none(facts.modules_that_misfit, "misfits", f"modules in {file} were made for another base than {base.id}")
    strange = f"adapted modules in {file} are not in {base.id} and would be dropped in silence"
    require_none(facts.modules_not_in_base, "keys-renamed", strange)
    unknown = f"tensors in {file} are no part of a LoRA. Save the adapter with peft"
    require_none(facts.unknown_tensors, "keys-foreign", unknown)
    idle = facts.modules_without_effect
    text = (
        f"{file}: lora_B (or lora_A) is all zero in {len(idle)} of {facts.adapted_modules} modules, so the adapter "
        "does nothing there. It was saved before it was trained, or from one shard of the weights"
    )
    require(len(idle) <= facts.adapted_modules / 2, "untrained", text)
    _config_agrees(config, facts)
    seen, known = adapter.digest, adapter.recorded_digest
    text = f"{adapter.path}: not the adapter that candidate.json names ({seen[:12]}, expected {str(known)[:12]})"
    require(known in (None, seen), "changed-since-training", text)
    _is_trained_on(base, adapter, facts.base_model_name_or_path)
    return adapter


def _config_agrees(config: str, facts: AdapterFiles) -> None:
    ranks = f"modules have another rank than {config} says"
    require_none(facts.modules_of_another_rank, "rank-differs", ranks)
    dropped = f"modules of the weights are left out by target_modules in {config} and would be dropped in silence"
    require_none(facts.modules_in_file_but_not_targeted, "config-narrower", dropped)
    lacking = f"modules that target_modules in {config} asks for are not in the file"
    require_none(facts.modules_targeted_but_not_in_file, "incomplete", lacking)
    dora = f"modules in which use_dora in {config} and the weights disagree"
    require_none(facts.modules_where_dora_disagrees, "dora-disagrees", dora)
    unsaved = f"modules that modules_to_save in {config} names are not in the weights"
    require_none(facts.modules_to_save_not_in_file, "saved-module-missing", unsaved)


def _is_trained_on(base: Base, adapter: Adapter, recorded: str | None) -> None:
    """By content if candidate.json has it, else by name, else as the user confirms it."""
    if adapter.recorded_base is not None:
        text = (
            f"{adapter.name} was trained on a base with digest {adapter.recorded_base[:12]}, this {base.id} has "
            f"{base.digest[:12]}. Name the base it was trained on"
        )
        require(adapter.recorded_base == base.digest, "base-changed", text)
    elif recorded is None or recorded not in (base.id, str(base.path), adapter.trained_on):
        raise Inconclusive(
            f"{adapter.path}/adapter_config.json says it was trained on {recorded!r}, this base is {base.id!r}. The "
            f"shapes fit, which does not make it the same model. If it is, say so: --trained-on {recorded or 'NAME'!r} "
            "(and set base_model_name_or_path if it is empty)."
        )


@gate("merge_exact_ok", per="adapter")
def test_merge_exact(evidence: Evidence, merged: Artifact) -> None:
    """Every tensor of the merged checkpoint is base + scale·BA under a named recipe, or the base's, bit for bit.

    Why it matters: a merge that lost a layer, applied the adapter twice, or came with another config or tokenizer
    answers one question as well as the right one does. Replaying it is the proof.

    When it fails: each defect names its tensor and its kind. Merge again from the base and the adapter named; for a
    checkpoint from elsewhere, `assay check-merge --base BASE --adapter ADAPTER MERGED` tells the same.
    """
    facts = evidence.facts(merged, Merge.replayed)
    kind = facts.defects[0].kind if facts.defects else ""
    require_none(facts.defects, f"merge-{kind.replace(' ', '-')}", "defects in the merged checkpoint")
    text = "No known merge procedure (dtype, order of rounding) reproduces this checkpoint from base and adapter"
    require(facts.recipe, "procedure-unknown", text)


@gate("merged_strength_ok", per="adapter")
def test_merged_strength(evidence: Evidence, merged: Artifact) -> None:
    """The adapter is in the merged checkpoint at strength 1, and a random change of equal size is not.

    Why it matters: the strength ⟨W' − W, sBA⟩ / ⟨sBA, sBA⟩ says without a forward pass whether a file holds the
    fine-tune: 0 is the bare base, 2 is applied twice, −1 subtracted.

    When it fails: near 0, bf16 swallowed a small adapter or the base was saved; 2 or 0.5, alpha or the scale is wrong.
    """
    strength_is_right(evidence.facts(merged, Merge.strength), "the merged checkpoint")


@gate("f16_strength_ok", per="adapter")
def test_f16_strength(evidence: Evidence, f16: Artifact) -> None:
    """The adapter is in the F16 GGUF at strength 1, and a random change of equal size is not.

    Why it matters: see `merged_strength_ok`; the file is read back through the converter's permutation.

    When it fails: with `merged_strength_ok` passed, the converter read another checkpoint or permuted rows wrongly.
    """
    strength_is_right(evidence.facts(f16, ConvertF16.strength), "the F16 GGUF")


@gate("q4_strength_ok", per="adapter")
def test_q4_strength(evidence: Evidence, q4: Artifact) -> None:
    """The adapter is in the Q4_K_M file at strength 1, and a random change of equal size is not.

    Why it matters: rounding to 4 bits can swallow a small change whole, above all on a base whose weights were 4-bit
    before: they lie on the very grid that they are rounded to.

    When it fails: the layers named lost it. Quantize to Q5_K_M or Q8_0, or deploy the adapter unmerged.
    """
    strength_is_right(evidence.facts(q4, QuantizeQ4.strength), "the Q4_K_M GGUF")


@gate("nf4_strength_ok", per="adapter")
def test_nf4_strength(evidence: Evidence, mounted: Artifact) -> None:
    """What the 4-bit base with the adapter mounted computes with, dequantized, holds the adapter at strength 1.

    Why it matters: mounting adds the adapter unrounded, so any other strength means a wrong scale, or an adapter that
    was merged into the 4-bit weights and rounded away.

    When it fails: compare lora_alpha, r and use_rslora in adapter_config.json with those of training.
    """
    strength_is_right(evidence.facts(mounted, MountNf4.strength), "the 4-bit base with the adapter mounted")


def strength_is_right(facts: AdapterStrength, where: str) -> None:
    """Pooled over all layers, and the control at zero."""
    if not facts.measured:
        raise Inconclusive(f"{where}: how this architecture is laid out in a GGUF is not known here, so no strength.")
    if not facts.adapter_relative_size:
        raise Inconclusive(f"{where}: the adapter is no plain LoRA (DoRA, or whole modules), so it has no strength.")
    g, error, (low, high) = facts.strength, facts.strength_standard_error, STRENGTH
    random = facts.strength_of_random_adapter
    text = f"{where}: the control failed, a random adapter is in it at {random:.3f}. The base is not this file's base"
    require(abs(random) <= max(0.05, 5 * error), "control-failed", text)
    furthest = list(facts.strength_furthest_layers)
    text = (
        f"{where} holds the adapter at strength {g:.3f} ± {error:.4f}, expected {low} to {high}. Furthest: {furthest}"
    )
    kind = "flipped" if g < -ABSENT else "absent" if g < ABSENT else "scaled"
    require(low <= g <= high, f"adapter-{kind}", text, strength=f"{g:.3f}")


@gate("merged_distribution_ok", per="adapter")
def test_merged_distribution(evidence: Evidence, merged: Artifact, distribution: MeasureDistribution) -> None:
    """The merged checkpoint expects the same next tokens as base + adapter in full precision: mean KL below 1e-3.

    Why it matters: the reference is computed in fp32 and the checkpoint is rounded to bf16 once. More than rounding
    means that the merge is another model, whatever its answer to one prompt.

    When it fails: `merge_exact_ok` names the tensor. If that passed, the base itself overflows or loses in bf16.
    """
    measured = evidence.make(distribution, until=MeasureDistribution.of_merged)
    evidence.facts(measured, MeasureDistribution.reference)
    is_exact(distance(measured, MeasureDistribution.of_merged), "the merged checkpoint")


@gate("f16_distribution_ok", per="adapter")
def test_f16_distribution(evidence: Evidence, f16: Artifact, distribution: MeasureDistribution) -> None:
    """The F16 GGUF in llama.cpp expects the same next tokens as base + adapter in full precision: mean KL below 1e-3.

    Why it matters: what is exact here need not be looked for behind the noise of quantization. A lost rotary base
    moves it to 0.2, another norm epsilon to 0.4, and both still say Paris.

    When it fails: `gguf_parity_ok` names tensor or key. If that passed, llama.cpp computes this architecture wrongly.
    """
    measured = evidence.make(distribution, until=MeasureDistribution.of_f16)
    is_exact(distance(measured, MeasureDistribution.of_f16), "the F16 GGUF")


def distance(measured: Artifact, form: Stage[FormDistance]) -> Distance:
    """A form's distance from the reference."""
    found = measured.facts(form).distance
    assert found is not None  # the form is a prerequisite of the gate, so it was measured
    return found


def is_exact(facts: Distance, where: str) -> None:
    low, high = facts.kl_mean_interval
    text = (
        f"{where}: mean KL {facts.kl_mean:.2g} nats ({low:.2g} to {high:.2g}) from the reference over "
        f"{facts.scored_tokens} tokens, expected below {EXACT}; the largest is {facts.kl_max:.2g}"
    )
    require(facts.kl_mean < EXACT, "not-exact", text)


@gate("nf4_distribution_ok", per="adapter")
def test_nf4_distribution(evidence: Evidence, mounted: Artifact, distribution: MeasureDistribution) -> None:
    """The 4-bit base with the adapter is no other model: its perplexity is less than twice the reference's.

    Why it matters: 4-bit is called lossless because an answer is not empty. How much it loses depends on the model, so
    it is measured, with its interval, and only what is certainly another model fails.

    When it fails: keep double quantization and bf16 compute; if it stays, deploy in 8 bits, or through Q5_K_M.
    """
    measured = evidence.make(distribution, until=MeasureDistribution.of_nf4)
    is_no_other_model(distance(measured, MeasureDistribution.of_nf4), "the 4-bit base with the adapter")


@gate("q4_distribution_ok", per="adapter")
def test_q4_distribution(evidence: Evidence, q4: Artifact, distribution: MeasureDistribution) -> None:
    """The Q4_K_M file in llama.cpp is no other model: its perplexity is less than twice the reference's.

    Why it matters: this is the file that ships. Its facts have the distance at every stage, and where most enters.

    When it fails: `loss_enters_at` names the stage. `q4` with all parity gates passed is quantization itself: use
    Q5_K_M or Q8_0.
    """
    measured = evidence.make(distribution, until=MeasureDistribution.waterfall)
    evidence.facts(measured, MeasureDistribution.of_q4)
    is_no_other_model(distance(measured, MeasureDistribution.of_q4), "the Q4_K_M GGUF")


def is_no_other_model(facts: Distance, where: str) -> None:
    (low, high), ratio = facts.perplexity_ratio_interval, facts.perplexity_ratio
    text = f"{where}: {ratio:.2f} times the reference's perplexity ({low:.2f} to {high:.2f})"
    require(low < ANOTHER_MODEL, "another-model", f"{text}, expected below {ANOTHER_MODEL}")
    if high >= ANOTHER_MODEL:
        raise Inconclusive(f"{text}. {facts.sequences} sequences cannot tell whether it is below {ANOTHER_MODEL}.")


@gate("nf4_survives_ok", per="adapter")
def test_nf4_survives(evidence: Evidence, mounted: Artifact, distribution: MeasureDistribution) -> None:
    """On the task's own answers, 4-bit moved the model less than half as far as training had moved the base.

    Why it matters: a fine-tune that moved the base a little is lost to a quantization that moves it as much, and no
    absolute threshold would say so.

    When it fails: deploy in more bits, or train longer or at a higher rate, so that there is more to lose.
    """
    measured = evidence.make(distribution, until=MeasureDistribution.of_nf4)
    survives(measured.facts(MeasureDistribution.of_nf4).task, "4-bit with the adapter mounted")


@gate("q4_survives_ok", per="adapter")
def test_q4_survives(evidence: Evidence, q4: Artifact, distribution: MeasureDistribution) -> None:
    """On the task's own answers, Q4_K_M moved the model less than half as far as training had moved the base.

    Why it matters: see `nf4_survives_ok`.

    When it fails: use Q5_K_M or Q8_0, or deploy the adapter unmerged.
    """
    measured = evidence.make(distribution, until=MeasureDistribution.of_q4)
    survives(measured.facts(MeasureDistribution.of_q4).task, "Q4_K_M")


def survives(facts: TaskShare | None, where: str) -> None:
    if facts is None:
        raise Inconclusive(f"{where}: no answer was compared, so the loss of the fine-tune is not known.")
    share, (low, high) = facts.share_lost, facts.share_lost_interval
    if share is None:
        text = f"{where}: training moved the base by nothing at all, so there is no fine-tune to lose"
        raise GateFailed("nothing-trained", text)
    text = (
        f"{where} is {facts.kl_on_task:.3g} nats from the candidate, the bare base {facts.kl_of_base_on_task:.3g}: a "
        f"share of {share:.2f} ({low:.2f} to {high:.2f})"
    )
    require(low < FINE_TUNE_LOST, "fine-tune-lost", f"{text}, expected below {FINE_TUNE_LOST}. The fine-tune is lost")
    if high >= FINE_TUNE_LOST:
        raise Inconclusive(f"{text}. {facts.task_sequences} answers cannot tell whether it is below {FINE_TUNE_LOST}.")

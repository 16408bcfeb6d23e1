"""Route bnb: the base in BitsAndBytes 4-bit, the adapter mounted on it."""

from __future__ import annotations

from collections.abc import Mapping

from assay.errors import Inconclusive
from assay.gating.evidence import Evidence
from assay.gating.gate import GateFailed, gate, require, require_none
from assay.inputs.bases import Base
from assay.inputs.candidate import Adapter, Candidate
from assay.inputs.prompts import Prompts
from assay.measures.answers import Kind
from assay.steps.answers import Answer
from assay.steps.catalogue import LoadNf4, MountNf4
from assay.steps.store import Artifact


def base_is_usable(candidate: Candidate) -> Base:
    """The base is there: safetensors, a tokenizer, one chat template, not quantized."""
    return candidate.base


@gate("base_quant_load_ok", per="candidate")
def test_base_quant_load(evidence: Evidence, candidate: Candidate) -> Artifact:
    """The base loads in nf4 with double quantization and bf16 compute, and computes.

    Why it matters: a library that cannot convert a layer leaves it as it was and only warns; the model then takes four
    times the memory, or answers with nothing because fp16 overflowed.

    When it fails: load with `BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)` and read the step's log.
    """
    nf4 = evidence.make(LoadNf4(base=base_is_usable(candidate)))
    facts, forward = nf4.facts(LoadNf4.loaded), nf4.facts(LoadNf4.forward)
    expected = facts.layers_expected_in_4bit
    none = f"{candidate.base_spec} has no linear layer that bitsandbytes converts, so it is not 4-bit at all"
    require(expected > 0, "no-linear-layers", none)
    require_none(facts.layers_wrongly_left, "layers-not-4bit", f"of {expected} linear layers are not 4-bit")
    kinds, dtypes = ", ".join(facts.quantization_types), ", ".join(facts.compute_dtypes)
    require(kinds == "nf4", "not-nf4", f"quantized as {kinds}, expected nf4", kind=kinds)
    require(facts.double_quantization, "no-double-quantization", "some layers lack double quantization")
    require(dtypes == "bfloat16", "compute-dtype", f"computes in {dtypes}, expected bfloat16", dtype=dtypes)
    left, share = facts.matrices_left_in_16_bit, facts.matrices_left_bytes / facts.weight_bytes
    text = f"{len(left)} matrices are not 4-bit and hold {share:.0%} of all bytes: {left[:3]}"
    require(share <= 0.05, "matrices-not-4bit", text)
    seen, predicted = facts.weight_bytes, facts.weight_bytes_predicted
    text = f"weights take {seen:,} bytes, the shapes predict {predicted:,}"
    require(seen <= 1.02 * predicted, "more-bytes-than-predicted", text)
    text = f"{forward.logits_not_finite} of {forward.logits} logits are NaN or inf"
    require(forward.logits_not_finite == 0, "logits-not-finite", text)
    return nf4


@gate("<adapter>_lora_mount_ok", per="adapter")
def test_lora_mount(
    evidence: Evidence,
    base: Base,
    base_nf4: Artifact,
    adapter: Adapter,
    sound_adapter: Adapter,
    prompts: Prompts,
    max_new_tokens: int,
) -> Artifact:
    """All of the adapter, and nothing else, arrives in the 4-bit base and changes what it says.

    Why it matters: peft only warns about keys it lacks and says nothing of those it does not know; the model then runs
    as the bare base. A zero adapter is the control: if that changes the logits too, mounting itself broke the base.

    When it fails: the tensors named did not arrive. Check that target_modules in adapter_config.json covers the file's
    tensors and that the adapter was saved by peft for this architecture.
    """
    step = MountNf4(base=base, adapter=adapter, base_nf4=base_nf4, prompts=prompts, max_new_tokens=max_new_tokens)
    mounted = evidence.make(step, until=MountNf4.mounted)
    facts = mounted.facts(MountNf4.mounted)
    dropped = f"of {facts.tensors_in_file} tensors were dropped in silence"
    require_none(facts.tensors_not_consumed, "tensors-dropped", dropped)
    missing = "tensors that the config asks for are not in the file"
    require_none(facts.tensors_missing_in_file, "tensors-missing", missing)
    altered = "tensors arrived with other values than in the file"
    require_none(facts.tensors_changed_on_the_way, "tensors-changed", altered)
    text = f"{facts.logits_not_finite} logits are NaN or inf with the adapter mounted"
    require(facts.logits_not_finite == 0, "logits-not-finite", text)
    text = "mounting the adapter changes no logit: the adapter has no effect on this base"
    require(facts.largest_logit_change, "no-effect", text)
    by_zero = facts.largest_logit_change_by_zero_adapter or 0.0
    text = f"a zero adapter moves the logits by {by_zero:.3g}: mounting itself breaks the base"
    require(by_zero == 0.0, "zero-adapter-moves", text)
    cosine = facts.cosine_of_base_before_and_after_mounting
    if cosine is None:
        raise GateFailed("base-changed", "the base's logits cannot be compared before and after mounting")
    text = f"the base under the adapter is not the base: cosine of logits {cosine:.4f}, expected above 0.999"
    require(cosine > 0.999, "base-changed", text)
    return mounted


@gate("<adapter>_generate_non_empty", per="adapter")
def test_generate_non_empty(
    evidence: Evidence,
    base: Base,
    base_nf4: Artifact,
    adapter: Adapter,
    mounted: Artifact,
    prompts: Prompts,
    max_new_tokens: int,
) -> None:
    """The 4-bit base with the adapter answers every prompt with text.

    Why it matters: an adapter trained on too little, or without an end token, answers with nothing or never ends.
    `Not empty` alone would let a repeated token pass, so each answer is classified.

    When it fails: `empty` with a P(end) near 1 means the end token was learned as the first one; `degenerate` with a
    finite loss most often means a wrong compute dtype; `think-only` means the thinking switch differs from training.
    """
    step = MountNf4(base=base, adapter=adapter, base_nf4=base_nf4, prompts=prompts, max_new_tokens=max_new_tokens)
    answers_are_text(evidence.make(step, until=MountNf4.generated).facts(MountNf4.generated).answers)


def answers_are_text(answers: Mapping[str, Answer]) -> None:
    """Every answer is text: not empty, not special tokens, not white space, not thoughts alone, not degenerate."""
    require(answers, "not-answered", "no prompt was answered")
    for name, answer in answers.items():
        if answer.kind is Kind.THINK_ONLY and answer.ended_by != "end token":
            raise Inconclusive(
                f"prompt {name!r}: still thinking when it was cut off. Allow more: --max-new-tokens 1024"
            )
        end = answer.p_end_at_first_position
        hint = f", P(end) at the first position {end:.3f}" if end is not None else ""
        text = f"prompt {name!r}: the answer is {answer.kind.value}{hint}: {answer.text[:120]!r}"
        require(answer.kind.is_text, f"answer-{answer.kind.value}", text)

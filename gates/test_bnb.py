"""Route bnb: the base in BitsAndBytes 4-bit, the adapter mounted on it."""

from __future__ import annotations

from assay.errors import Inconclusive
from assay.gating.gate import gate
from assay.inputs.bases import Base
from assay.inputs.candidate import Adapter, Candidate
from assay.inputs.prompts import Prompts
from assay.measures.answers import Kind
from assay.steps.catalogue import LoadNf4, MountNf4
from assay.steps.runner import Bench
from assay.steps.store import Artifact


def base_is_usable(candidate: Candidate) -> Base:
    """The base is there: safetensors, a tokenizer, one chat template, not quantized."""
    return candidate.base


@gate("base_quant_load_ok", per="candidate")
def test_base_quant_load(bench: Bench, candidate: Candidate) -> Artifact:
    """The base loads in nf4 with double quantization and bf16 compute, and computes.

    Why it matters: a library that cannot convert a layer leaves it as it was and only warns; the model then takes four
    times the memory, or answers with nothing because fp16 overflowed.

    When it fails: load with `BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)` and read the step's log.
    """
    nf4 = bench.make(LoadNf4(base=base_is_usable(candidate)))
    facts = nf4.facts
    left, expected = facts["layers_wrongly_left"], facts["layers_expected_in_4bit"]
    assert expected > 0, (
        f"{candidate.base_spec} has no linear layer that bitsandbytes converts, so it is not 4-bit at all"
    )
    assert not left, f"{len(left)} of {expected} linear layers are not 4-bit, {left[0]} first"
    assert facts["quantization_types"] == ["nf4"], f"quantized as {facts['quantization_types']}, nf4 wanted"
    assert facts["double_quantization"], "some layers lack double quantization"
    assert facts["compute_dtypes"] == ["bfloat16"], f"computes in {facts['compute_dtypes']}, bfloat16 wanted"
    left, share = facts["matrices_left_in_16_bit"], facts["matrices_left_bytes"] / facts["weight_bytes"]
    assert share <= 0.05, f"{len(left)} matrices are not 4-bit and hold {share:.0%} of all bytes: {left[:3]}"
    seen, predicted = facts["weight_bytes"], facts["weight_bytes_predicted"]
    assert seen <= 1.02 * predicted, f"weights take {seen:,} bytes, the shapes predict {predicted:,}"
    assert facts["logits_not_finite"] == 0, f"{facts['logits_not_finite']} of {facts['logits']} logits are NaN or inf"
    return nf4


@gate("<adapter>_lora_mount_ok", per="adapter")
def test_lora_mount(
    bench: Bench,
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
    mounted = bench.make(step, stage="mount")
    facts = mounted.stages["mount"]
    dropped, missing = facts["tensors_not_consumed"], facts["tensors_missing_in_file"]
    assert not dropped, (
        f"{len(dropped)} of {facts['tensors_in_file']} tensors were dropped in silence, {dropped[0]} first"
    )
    assert not missing, f"{len(missing)} tensors that the config asks for are not in the file, {missing[0]} first"
    altered = facts["tensors_changed_on_the_way"]
    assert not altered, f"{len(altered)} tensors arrived with other values than in the file, {altered[0]} first"
    assert facts["logits_not_finite"] == 0, (
        f"{facts['logits_not_finite']} logits are NaN or inf with the adapter mounted"
    )
    assert facts["largest_logit_change"], "mounting the adapter changes no logit: it has no effect on this base"
    by_zero = facts["largest_logit_change_by_zero_adapter"]
    assert by_zero in (None, 0.0), f"a zero adapter moves the logits by {by_zero:.3g}: mounting itself breaks the base"
    cosine = facts["cosine_of_base_before_and_after_mounting"]
    assert cosine is not None, "the base's logits cannot be compared before and after mounting"
    assert cosine > 0.999, (
        f"the base under the adapter is not the base: cosine of logits {cosine:.4f}, above 0.999 wanted"
    )
    return mounted


@gate("<adapter>_generate_non_empty", per="adapter")
def test_generate_non_empty(
    bench: Bench,
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
    answers_are_text(bench.make(step, stage="generate").stages["generate"]["answers"])


def answers_are_text(answers: dict[str, dict[str, object]]) -> None:
    """Every answer is text: not empty, not special tokens, not white space, not thoughts alone, not degenerate."""
    assert answers, "no prompt was answered"
    for name, answer in answers.items():
        kind, text = Kind(str(answer["kind"])), str(answer["text"])
        if kind is Kind.THINK_ONLY and answer.get("ended_by") != "end token":
            raise Inconclusive(
                f"prompt {name!r}: still thinking when it was cut off. Allow more: --max-new-tokens 1024"
            )
        end = answer.get("p_end_at_first_position")
        hint = f", P(end) at the first position {end:.3f}" if isinstance(end, float) else ""
        assert kind.is_text, f"prompt {name!r}: the answer is {kind.value}{hint}: {text[:120]!r}"

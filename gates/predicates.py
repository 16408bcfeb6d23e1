"""What a cause may ask of typed facts beside the failure code: `when` in causes.toml names one of these."""

from __future__ import annotations

from assay.gating.task import TaskComparison
from assay.measures.divergence import Distance
from assay.measures.statistics import Shown
from assay.measures.strength import AdapterStrength
from assay.steps.distribution import FormDistance, Waterfall
from assay.steps.gguf import PromptDifference, PromptParity, SourceParity

SWALLOWED_BELOW = 0.004
"""‖s·BA‖ / ‖W‖ of a change that is less than a step of bf16: 2⁻⁸ is 0.0039."""


def change_is_less_than_a_step_of_bf16(facts: AdapterStrength) -> bool:
    """The adapter changes the weights by less than a step of bf16."""
    return 0 < facts.adapter_relative_size < SWALLOWED_BELOW


def change_is_more_than_a_step_of_bf16(facts: AdapterStrength) -> bool:
    """The adapter changes the weights by more than a step of bf16."""
    return facts.adapter_relative_size > SWALLOWED_BELOW


def adapter_would_be_seen(facts: AdapterStrength) -> bool:
    """The adapter's change is large enough to be seen in the file."""
    return change_is_more_than_a_step_of_bf16(facts) and facts.strength_standard_error < SWALLOWED_BELOW


def form_is_far_from_the_reference(facts: FormDistance) -> bool:
    """Mean KL from the reference is above 0.05 nats per token, fifty times what rounding costs."""
    return isinstance(facts.distance, Distance) and facts.distance.kl_mean > 0.05


def loss_enters_at_quantization(facts: Waterfall) -> bool:
    """Most of the distance from the reference enters between the F16 file and the Q4_K_M file."""
    return facts.loss_enters_at == "q4"


def query_or_key_rows_differ(facts: SourceParity) -> bool:
    """Tensors of q_proj or k_proj hold other values than the checkpoint."""
    return any("q_proj" in name or "k_proj" in name for name in facts.tensors_with_other_values)


def added_token_is_no_control_token(facts: SourceParity) -> bool:
    """The first key that differs is the type of an added token."""
    return facts.metadata_that_differs[:1] != [] and "a control token" in facts.metadata_that_differs[0]


def a_setting_differs(facts: SourceParity) -> bool:
    """The first key that differs is a setting of the computation, and no token's type."""
    return facts.metadata_that_differs[:1] != [] and not added_token_is_no_control_token(facts)


def thinking_switch_differs(facts: PromptParity) -> bool:
    """A prompt contains <think> in one of the two."""
    return any(_thinks(one) for one in facts.prompts_rendered_differently)


def system_turn_is_dropped(facts: PromptParity) -> bool:
    """Dialogs with a system turn are rendered differently, and <think> plays no part in it."""
    return any(
        one.dialog in ("system turn", "two turns") and not _thinks(one) for one in facts.prompts_rendered_differently
    )


def deployed_form_answers_worse(facts: TaskComparison) -> bool:
    """More samples got worse than better, which chance hardly does (p < 0.1)."""
    return (
        facts.p_value < 0.1
        and len(facts.lost) > len(facts.gained)
        and any(claim.shown is Shown.FAILED for claim in facts.claims.values())
    )


def _thinks(one: PromptDifference) -> bool:
    return "<think>" in one.transformers or "<think>" in one.other

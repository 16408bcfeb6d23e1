"""Faults that no gate can catch."""

from __future__ import annotations

from assay.faults.fault import OutOfReach

OUT_OF_REACH = (
    OutOfReach(
        name="alpha_wrong_in_training",
        title="Training itself ran with another alpha than was meant.",
        reason="the adapter's config alone states the scale, and the adapter is judged as training wrote it",
    ),
    OutOfReach(
        name="layers_swapped_before_recording",
        title="The matrices of two layers were swapped before candidate.json was written.",
        reason="all files agree with each other; only the metrics of the task can show it, with enough samples",
    ),
    OutOfReach(
        name="diverged_to_word_salad",
        title="Training diverged so far that answers are different words in no order.",
        reason="gates judge answers by repetition and letters, not by sense, and full precision, which every form is "
        "compared with, answers the same; only the metrics of the task can show it, with enough samples",
    ),
    OutOfReach(
        name="template_wrong_everywhere",
        title="The base's chat template was edited before training, which used it too.",
        reason="training and all runtimes agree on it, so it is the template that the adapter was trained with",
    ),
)

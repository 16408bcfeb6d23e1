"""Route gguf: merge, convert, quantize, run in llama.cpp."""

from __future__ import annotations

from assay.gating.gate import gate
from assay.inputs.bases import Base
from assay.inputs.candidate import Adapter
from assay.inputs.prompts import Prompts
from assay.inputs.toolchain import Toolchain, find_toolchain
from assay.steps.catalogue import ConvertF16, Merge, QuantizeQ4, RunLlamaCli, RunLlamaCppPython, SelfTest
from assay.steps.runner import Bench
from assay.steps.store import Artifact
from test_bnb import answers_are_text

F16_LARGEST = 65504.0
"""The largest finite value of IEEE half precision: anything above becomes inf in an F16 GGUF."""


@gate("toolchain_ready", per="run")
def test_toolchain_ready(bench: Bench) -> Toolchain:
    """llama-quantize, llama-cli and llama-cpp-python quantize, load and compute, and are one commit.

    Why it matters: a binary that exists may still not run (missing library, another processor, another glibc), and
    then everything behind it fails in ways that look like the model's fault. So a self-test model of one layer, which
    answers with one letter whatever it is asked, goes through all of them.

    When it fails: build the toolchain again with `nox -s toolchain`; with ASSAY_LLAMA_CPP, check that programs, source
    and libraries are of one build.
    """
    toolchain = find_toolchain()
    facts = bench.make(SelfTest(toolchain=toolchain)).facts
    assert facts["converter_present"], f"{toolchain.source}: convert_hf_to_gguf.py is missing"
    assert "Q4_K" in facts["quantized_types"], (
        f"the quantized self-test model has no Q4_K tensor: {facts['quantized_types']}"
    )
    for tool in ("llama_cli", "llama_cpp_python"):
        answer = facts[f"{tool}_answer"]
        assert answer == facts["expected_answer"], (
            f"{tool} computes wrongly: the self-test model answered {answer!r}, expected {facts['expected_answer']!r}"
        )
    assert facts["same_libraries"], "llama-cpp-python loads other libraries than the ones beside llama-cli"
    commit, wanted = facts["llama_cli_commit"], facts["expected_commit"]
    for part in ("library", "converter"):
        other = facts[f"{part}_commit"]
        assert other is None or _same_commit(other, commit), (
            f"version skew: llama-cli is {commit}, the {part} is {other}"
        )
    assert wanted is None or _same_commit(wanted, commit), f"version skew: llama-cli is {commit}, pinned is {wanted}"
    seen, pinned = facts["llama_cpp_python_release"], facts["expected_release"]
    assert seen == pinned, f"version skew: llama-cpp-python is {seen}, pinned is {pinned}"
    return toolchain


def _same_commit(one: str, other: str | None) -> bool:
    """Commits are reported in different lengths."""
    return other is not None and (one.startswith(other) or other.startswith(one))


@gate("merge_ok", per="adapter")
def test_merge(bench: Bench, base: Base, adapter: Adapter, sound_adapter: Adapter, gguf_dtype: str) -> Artifact:
    """The adapter is in the merged bf16 weights, and nothing else changed.

    Why it matters: exporters have saved the bare base, dropped a tensor, or left a value that only explodes two steps
    later, each with exit code 0.

    When it fails: merge on an unquantized base. If targeted tensors did not change, bf16 swallowed a small adapter:
    deploy it unmerged. If a value is above 65504, convert to bf16 (`--gguf-dtype bf16`), or train with a lower rate.
    """
    merged = bench.make(Merge(base=base, adapter=adapter))
    facts = merged.stages["compare"]
    missing, extra = facts["tensors_missing"], facts["tensors_extra"]
    assert not missing, f"{len(missing)} tensors of the base are missing, {missing[0]} first"
    assert not extra, f"{len(extra)} tensors are not in the base, {extra[0]} first"
    assert facts["dtypes"] == ["BF16"], f"saved as {facts['dtypes']}, BF16 wanted"
    bad = facts["tensors_not_finite"]
    assert not bad, f"{len(bad)} tensors hold NaN or inf, {bad[0]} first"
    unchanged, others, targeted = facts["targeted_unchanged"], facts["others_changed"], facts["tensors_targeted"]
    assert not unchanged, f"{len(unchanged)} of {targeted} targeted tensors are still the base's, {unchanged[0]} first"
    assert not others, f"{len(others)} tensors changed that the adapter does not touch, {others[0]} first"
    largest, where = facts["largest_absolute_value"], facts["largest_absolute_value_in"]
    assert largest <= F16_LARGEST or gguf_dtype != "f16", (
        f"{where} holds {largest:.4g}, which is inf in F16 (65504 at most)"
    )
    return merged


@gate("convert_f16_ok", per="adapter")
def test_convert_f16(
    bench: Bench, base: Base, adapter: Adapter, merged: Artifact, toolchain: Toolchain, gguf_dtype: str
) -> Artifact:
    """The F16 GGUF (or BF16) holds every tensor, the chat template and the end token of its source, and loads.

    Why it matters: the converter checks no completeness, and without the template or the end token each runtime makes
    up its own: the model then answers the wrong question, or never stops.

    When it fails: the step's log has the converter's own words. A missing template: put it into chat_template.jinja
    and keep tokenizer_config.json beside it.
    """
    f16 = bench.make(ConvertF16(adapter=adapter, base=base, merged=merged, toolchain=toolchain, dtype=gguf_dtype))
    facts = f16.facts
    missing = facts["tensors_missing"]
    assert not missing, f"{len(missing)} tensors of the checkpoint are not in the GGUF, {missing[0]} first"
    # Exact: where the converter fuses tensors (experts) names do not match, but their number of weights does.
    seen, wanted = facts["parameters"] - facts["parameters_computed"], facts["source_parameters"]
    assert seen == wanted, (
        f"{seen:,} parameters in the GGUF, {wanted:,} in the checkpoint. Unmatched there: "
        f"{facts['tensors_unmapped'][:3]}, here: {facts['tensors_extra'][:3]}"
    )
    bad = facts["tensors_not_finite"]
    assert not bad, f"{len(bad)} tensors hold NaN or inf, {bad[0]} first: a value overflowed F16. Use --gguf-dtype bf16"
    wanted_type = f"MOSTLY_{gguf_dtype.upper()}"
    assert facts["file_type"] == wanted_type, f"the file says {facts['file_type']}, {wanted_type} wanted"
    assert facts["chat_template_present"], "no chat template in the GGUF: every runtime would make one up"
    assert facts["chat_template_equal"], "the GGUF's chat template is not the one the model was trained with"
    eos, source = facts["eos_token_id"], facts["source_eos_token_id"]
    assert source in (None, eos), f"the GGUF ends at token {eos}, the tokenizer at {source}"
    assert facts["logits_not_finite"] == 0, f"it loads, but {facts['logits_not_finite']} logits are NaN or inf"
    return f16


@gate("quantize_q4_ok", per="adapter")
def test_quantize_q4(bench: Bench, base: Base, adapter: Adapter, f16: Artifact, toolchain: Toolchain) -> Artifact:
    """The F16 model quantizes to Q4_K_M, and the file really is Q4_K_M as far as its shapes allow.

    Why it matters: a row that is no multiple of 256 falls back to a larger type with a warning and exit code 0, and
    the file still says Q4_K_M. Where the shapes force that, the gate passes and the fallbacks are listed.

    When it fails: `invalid data` means NaN or inf upstream; `iostream error` means disk, quota or folder. A fallback
    that no shape forces means a llama-quantize that does not know this architecture: use the pinned one.
    """
    q4 = bench.make(QuantizeQ4(adapter=adapter, base=base, f16=f16, toolchain=toolchain))
    facts = q4.facts
    assert facts["file_type"] == "MOSTLY_Q4_K_M", f"the file says {facts['file_type']}, MOSTLY_Q4_K_M wanted"
    lost = facts["tensors_missing"] + facts["tensors_extra"] + facts["tensors_with_another_shape"]
    assert not lost, f"{len(lost)} tensors differ from the F16 file's in name or shape, {lost[0]} first"
    unforced, share = facts["fallbacks_unforced"], facts["unforced_share_of_weights"]
    # llama.cpp keeps a few small tensors of some architectures in larger types on purpose.
    assert share <= 0.05, (
        f"{len(unforced)} tensors with rows that are multiples of 256, {share:.0%} of such weights, are no K-quant: "
        f"{unforced[:3]}"
    )
    assert facts["file_bytes"] < facts["source_bytes"], "the quantized file is not smaller than its source"
    return q4


@gate("llama_cli_smoke_ok", per="adapter")
def test_llama_cli_smoke(
    bench: Bench, adapter: Adapter, q4: Artifact, prompts: Prompts, max_new_tokens: int, toolchain: Toolchain
) -> Artifact:
    """llama-cli answers every prompt from the Q4_K_M file with text.

    Why it matters: llama-cli exits with 0 when generation failed, and its output is never empty. Only the answer cut
    out of it counts, and an `Error:` on stdout is one.

    When it fails: an answer after which it hangs waits for input (`--single-turn`, closed stdin); an `Error:` names its
    cause; nonsense with a healthy bnb route means the prompt or the file, so look at convert_f16_ok's facts.
    """
    step = RunLlamaCli(adapter=adapter, q4=q4, prompts=prompts, max_new_tokens=max_new_tokens, toolchain=toolchain)
    said = bench.make(step)
    answers = said.facts["answers"]
    for name, answer in answers.items():
        assert not answer["errors"], f"prompt {name!r}: llama-cli says {answer['errors'][0]!r} and exits with 0"
        assert answer["answer_found"], f"prompt {name!r}: no answer in llama-cli's output"
    answers_are_text(answers)
    return said


@gate("llama_cpp_python_smoke_ok", per="adapter")
def test_llama_cpp_python_smoke(
    bench: Bench, adapter: Adapter, q4: Artifact, prompts: Prompts, max_new_tokens: int, toolchain: Toolchain
) -> Artifact:
    """llama-cpp-python answers every prompt from the Q4_K_M file with text, through the model's own chat template.

    Why it matters: without a template in the file it falls back to llama-2's `[INST]` without a word.

    When it fails: `Failed to load model` has its reason in the step's log; a prompt that is not the template's means
    pass `chat_format="chat_template.default"` or embed the template.
    """
    step = RunLlamaCppPython(
        adapter=adapter, q4=q4, prompts=prompts, max_new_tokens=max_new_tokens, toolchain=toolchain
    )
    said = bench.make(step)
    facts = said.facts
    assert facts["chat_template_present"], f"no chat template in the file: {facts['chat_format']!r} is a fallback"
    for name, answer in facts["answers"].items():
        assert answer["prompt_is_the_templates"], (
            f"prompt {name!r}: chat format {facts['chat_format']!r} renders another prompt than the model's template"
        )
    answers_are_text(facts["answers"])
    return said

"""Route gguf: merge, convert, quantize, run in llama.cpp."""

from __future__ import annotations

from assay.gating.evidence import Evidence
from assay.gating.gate import gate, require, require_none
from assay.inputs.bases import Base
from assay.inputs.candidate import Adapter
from assay.inputs.prompts import Prompts
from assay.inputs.toolchain import Toolchain, find_toolchain
from assay.steps.catalogue import ConvertF16, Merge, QuantizeQ4, RunLlamaCli, RunLlamaCppPython, SelfTest
from assay.steps.store import Artifact
from test_bnb import answers_are_text

F16_LARGEST = 65504.0
"""The largest finite value of IEEE half precision: anything above becomes inf in an F16 GGUF."""


@gate("toolchain_ready", per="run")
def test_toolchain_ready(evidence: Evidence) -> Toolchain:
    """llama-quantize, llama-cli and llama-cpp-python quantize, load and compute, and are one commit.

    Why it matters: a binary that exists may still not run (missing library, another processor, another glibc), and
    then everything behind it fails in ways that look like the model's fault. So a self-test model of one layer, which
    answers with one letter whatever it is asked, goes through all of them.

    When it fails: build the toolchain again with `nox -s toolchain`; with ASSAY_LLAMA_CPP, check that programs, source
    and libraries are of one build.
    """
    toolchain = find_toolchain()
    done = evidence.make(SelfTest(toolchain=toolchain))
    model, quantized = done.facts(SelfTest.written), done.facts(SelfTest.quantized).quantized_types
    cli, binding = done.facts(SelfTest.llama_cli), done.facts(SelfTest.llama_cpp_python)
    missing = f"{toolchain.source}: convert_hf_to_gguf.py is missing"
    require(model.converter_present, "converter-missing", missing)
    require("Q4_K" in quantized, "no-q4-k", f"the quantized self-test model has no Q4_K tensor: {quantized}")
    answers = {"llama_cli": cli.llama_cli_answer, "llama_cpp_python": binding.llama_cpp_python_answer}
    for tool, answer in answers.items():
        text = f"{tool} computes wrongly: the self-test model answered {answer!r}, expected {model.expected_answer!r}"
        require(answer == model.expected_answer, "computes-wrongly", text, tool=tool)
    text = "llama-cpp-python loads other libraries than the ones beside llama-cli"
    require(binding.same_libraries, "other-libraries", text)
    seen = cli.llama_cli_commit
    for part, commit in {"library": binding.library_commit, "converter": model.converter_commit}.items():
        skew = f"llama-cli is {seen}, the {part} is {commit}"
        same = commit is None or _same_commit(commit, seen)
        require(same, "version-skew", f"version skew: {skew}", skew=skew)
    skew = f"llama-cli is {seen}, pinned is {model.expected_commit}"
    same = model.expected_commit is None or _same_commit(model.expected_commit, seen)
    require(same, "version-skew", f"version skew: {skew}", skew=skew)
    skew = f"llama-cpp-python is {binding.llama_cpp_python_release}, pinned is {binding.expected_release}"
    same = binding.llama_cpp_python_release == binding.expected_release
    require(same, "version-skew", f"version skew: {skew}", skew=skew)
    return toolchain


def _same_commit(one: str, other: str | None) -> bool:
    """Commits are reported in different lengths."""
    return other is not None and (one.startswith(other) or other.startswith(one))


@gate("merge_ok", per="adapter")
def test_merge(evidence: Evidence, base: Base, adapter: Adapter, sound_adapter: Adapter, gguf_dtype: str) -> Artifact:
    """The adapter is in the merged bf16 weights, and nothing else changed.

    Why it matters: exporters have saved the bare base, dropped a tensor, or left a value that only explodes two steps
    later, each with exit code 0.

    When it fails: merge on an unquantized base. If targeted tensors did not change, bf16 swallowed a small adapter:
    deploy it unmerged. If a value is above 65504, convert to bf16 (`--gguf-dtype bf16`), or train with a lower rate.
    """
    merged = evidence.make(Merge(base=base, adapter=adapter), until=Merge.compared)
    evidence.facts(merged, Merge.saved)
    facts = merged.facts(Merge.compared)
    require_none(facts.tensors_missing, "tensors-missing", "tensors of the base are missing")
    require_none(facts.tensors_extra, "tensors-extra", "tensors are not in the base")
    dtypes = ", ".join(facts.dtypes)
    require(dtypes == "BF16", "dtype", f"saved as {dtypes}, expected BF16", dtypes=dtypes)
    require_none(facts.tensors_not_finite, "tensors-not-finite", "tensors hold NaN or inf")
    if facts.targeted_unchanged:
        evidence.facts(merged, Merge.strength)  # how large the change is says why a tensor did not change
    unchanged = f"of {facts.tensors_targeted} targeted tensors are still the base's"
    require_none(facts.targeted_unchanged, "targets-unchanged", unchanged)
    others = "tensors changed that the adapter does not touch"
    require_none(facts.others_changed, "others-changed", others)
    largest = facts.largest_absolute_value
    text = f"{facts.largest_absolute_value_in} holds {largest:.4g}, which is inf in F16 (65504 at most)"
    require(largest <= F16_LARGEST or gguf_dtype != "f16", "overflows-f16", text)
    return merged


@gate("convert_f16_ok", per="adapter")
def test_convert_f16(
    evidence: Evidence, base: Base, adapter: Adapter, merged: Artifact, toolchain: Toolchain, gguf_dtype: str
) -> Artifact:
    """The F16 GGUF (or BF16) holds every tensor, the chat template and the end token of its source, and loads.

    Why it matters: the converter checks no completeness, and without the template or the end token each runtime makes
    up its own: the model then answers the wrong question, or never stops.

    When it fails: the step's log has the converter's own words. A missing template: put it into chat_template.jinja
    and keep tokenizer_config.json beside it.
    """
    step = ConvertF16(adapter=adapter, base=base, merged=merged, toolchain=toolchain, dtype=gguf_dtype)
    f16 = evidence.make(step, until=ConvertF16.loaded)
    evidence.facts(f16, ConvertF16.converted)
    facts, loaded = evidence.facts(f16, ConvertF16.compared), f16.facts(ConvertF16.loaded)
    missing = "tensors of the checkpoint are not in the GGUF"
    require_none(facts.tensors_missing, "tensors-missing", missing)
    # Exact: where the converter fuses tensors (experts) names do not match, but their number of weights does.
    seen, expected = facts.parameters - facts.parameters_computed, facts.source_parameters
    text = (
        f"{seen:,} parameters in the GGUF, {expected:,} in the checkpoint. Unmatched there: "
        f"{facts.tensors_unmapped[:3]}, here: {facts.tensors_extra[:3]}"
    )
    require(seen == expected, "parameters-differ", text)
    overflowed = "tensors hold NaN or inf: a value overflowed F16. Use --gguf-dtype bf16"
    require_none(facts.tensors_not_finite, "tensors-not-finite", overflowed)
    kind = f"MOSTLY_{gguf_dtype.upper()}"
    require(facts.file_type == kind, "file-type", f"the file says {facts.file_type}, expected {kind}")
    no_template = "no chat template in the GGUF: every runtime would make one up"
    require(facts.chat_template_present, "no-chat-template", no_template)
    other_template = "the GGUF's chat template is not the one that the model was trained with"
    require(facts.chat_template_equal, "chat-template-differs", other_template)
    eos, source = facts.eos_token_id, facts.source_eos_token_id
    text = f"the GGUF ends at token {eos}, the tokenizer at {source}"
    require(source in (None, eos), "end-token-differs", text, seen=str(eos), expected=str(source))
    text = f"it loads, but {loaded.logits_not_finite} logits are NaN or inf"
    require(loaded.logits_not_finite == 0, "logits-not-finite", text)
    return f16


@gate("quantize_q4_ok", per="adapter")
def test_quantize_q4(evidence: Evidence, base: Base, adapter: Adapter, f16: Artifact, toolchain: Toolchain) -> Artifact:
    """The F16 model quantizes to Q4_K_M, and the file really is Q4_K_M as far as its shapes allow.

    Why it matters: a row that is no multiple of 256 falls back to a larger type with a warning and exit code 0, and
    the file still says Q4_K_M. Where the shapes force that, the gate passes and the fallbacks are listed.

    When it fails: `invalid data` means NaN or inf upstream; `iostream error` means disk, quota or folder. A fallback
    that no shape forces means a llama-quantize that does not know this architecture: use the pinned one.
    """
    step = QuantizeQ4(adapter=adapter, base=base, f16=f16, toolchain=toolchain)
    q4 = evidence.make(step, until=QuantizeQ4.inspected)
    evidence.facts(q4, QuantizeQ4.quantized)
    facts = q4.facts(QuantizeQ4.inspected)
    text = f"the file says {facts.file_type}, expected MOSTLY_Q4_K_M"
    require(facts.file_type == "MOSTLY_Q4_K_M", "file-type", text, kind=facts.file_type)
    lost = facts.tensors_missing + facts.tensors_extra + facts.tensors_with_another_shape
    require_none(lost, "tensors-differ", "tensors differ from the F16 file's in name or shape")
    unforced, share = facts.fallbacks_unforced, facts.unforced_share_of_weights
    text = (
        f"{len(unforced)} tensors with rows that are multiples of 256, {share:.0%} of such weights, are no K-quant: "
        f"{unforced[:3]}"
    )
    # llama.cpp keeps a few small tensors of some architectures in larger types on purpose.
    require(share <= 0.05, "fallback-unforced", text)
    text = "the quantized file is not smaller than its source"
    require(facts.file_bytes < facts.source_bytes, "not-smaller", text)
    return q4


@gate("llama_cli_smoke_ok", per="adapter")
def test_llama_cli_smoke(
    evidence: Evidence, adapter: Adapter, q4: Artifact, prompts: Prompts, max_new_tokens: int, toolchain: Toolchain
) -> Artifact:
    """llama-cli answers every prompt from the Q4_K_M file with text.

    Why it matters: llama-cli exits with 0 when generation failed, and its output is never empty. Only the answer cut
    out of it counts, and an `Error:` on stdout is one.

    When it fails: an answer after which it hangs waits for input (`--single-turn`, closed stdin); an `Error:` names its
    cause; nonsense with a healthy bnb route means the prompt or the file, so look at convert_f16_ok's facts.
    """
    step = RunLlamaCli(adapter=adapter, q4=q4, prompts=prompts, max_new_tokens=max_new_tokens, toolchain=toolchain)
    done = evidence.make(step)
    answers = done.facts(RunLlamaCli.generated).answers
    for name, answer in answers.items():
        error = answer.errors[0] if answer.errors else ""
        text = f"prompt {name!r}: llama-cli prints {error!r} and exits with 0"
        require(not error, "error-exit-0", text, error=error)
        require(answer.answer_found, "no-answer", f"prompt {name!r}: no answer in llama-cli's output")
    answers_are_text(answers)
    return done


@gate("llama_cpp_python_smoke_ok", per="adapter")
def test_llama_cpp_python_smoke(
    evidence: Evidence, adapter: Adapter, q4: Artifact, prompts: Prompts, max_new_tokens: int, toolchain: Toolchain
) -> Artifact:
    """llama-cpp-python answers every prompt from the Q4_K_M file with text, through the model's own chat template.

    Why it matters: without a template in the file it falls back to llama-2's `[INST]` without a word.

    When it fails: `Failed to load model` has its reason in the step's log; a prompt that is not the template's means
    pass `chat_format="chat_template.default"` or embed the template.
    """
    step = RunLlamaCppPython(
        adapter=adapter, q4=q4, prompts=prompts, max_new_tokens=max_new_tokens, toolchain=toolchain
    )
    done = evidence.make(step)
    loaded, answers = done.facts(RunLlamaCppPython.loaded), done.facts(RunLlamaCppPython.generated).answers
    text = f"no chat template in the file: {loaded.chat_format!r} is a fallback"
    require(loaded.chat_template_present, "no-chat-template", text)
    for name, answer in answers.items():
        text = f"prompt {name!r}: chat format {loaded.chat_format!r} renders another prompt than the model's template"
        require(answer.prompt_is_the_templates, "prompt-differs", text, format=loaded.chat_format)
    answers_are_text(answers)
    return done

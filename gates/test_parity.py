"""Route parity: does each format say the same as the one it was made from?"""

from __future__ import annotations

from assay.errors import Inconclusive
from assay.files import Part, digest_files
from assay.gating.evidence import Evidence
from assay.gating.gate import gate, require, require_none
from assay.inputs.toolchain import Toolchain
from assay.steps.catalogue import ComparePrompts, ConvertF16, MeasureDistribution, QuantizeQ4
from assay.steps.store import Artifact

SAME_CHOICE = 0.05
"""Nats per token. Kernels for one token and for many cost up to 0.014 on the embedded base, a repetition penalty of 1.1
costs 0.15, a temperature of 0.8 costs 0.39, llama-2's prompt 1.25."""


@gate("gguf_parity_ok", per="adapter")
def test_gguf_parity(evidence: Evidence, f16: Artifact) -> None:
    """Every tensor of the F16 GGUF is the checkpoint's, and so is all metadata that changes the computation.

    Why it matters: with a lost rotary base, another norm epsilon or q and k rows in the wrong order the model still
    says Paris, and is another model. What is exact here need not be guessed behind quantization.

    When it fails: the key or tensor named is what the converter wrote otherwise. Convert with the pinned toolchain; a
    config.json of another transformers may spell a key in a way that the converter does not know.
    """
    facts = evidence.facts(f16, ConvertF16.parity)
    require_none(
        facts.metadata_that_differs, "metadata-differs", "keys differ from the checkpoint's config or tokenizer"
    )
    if not facts.layout_is_modelled:
        raise Inconclusive(
            f"architecture {facts.architecture!r}: how its tensors are laid out in a GGUF is not known here, so "
            "only names, shapes and metadata were compared."
        )
    require_none(facts.tensors_with_other_values, "values-differ", "tensors hold other values than the checkpoint")


@gate("token_parity_ok", per="adapter")
def test_token_parity(evidence: Evidence, merged: Artifact, f16: Artifact, toolchain: Toolchain) -> None:
    """llama.cpp cuts the same tokens as transformers: scripts, emoji, code, white space, every added token.

    Why it matters: a pre-tokenizer that the converter does not know, or an added token that lost its type, cuts text
    otherwise than in training. English prose hardly shows it.

    When it fails: restore the base's tokenizer.json in the merged checkpoint and convert again with the pinned tools.
    """
    step = compare_prompts(merged, f16, toolchain)
    facts = evidence.make(step, until=ComparePrompts.tokens).facts(ComparePrompts.tokens)
    differ = facts.strings_tokenized_differently
    require_none(differ, "tokens-differ", f"of {facts.strings} strings become other tokens")


def compare_prompts(merged: Artifact, f16: Artifact, toolchain: Toolchain) -> ComparePrompts:
    """Looks at no weight, so adapters whose files say the same of tokens and prompts share one."""
    folder = merged.file("checkpoint")
    names = sorted(file.name for file in folder.glob("*") if "safetensors" not in file.name)
    return ComparePrompts(
        tokenizer=Part(path=folder, digest=digest_files(folder, names)),
        f16=Part(path=f16.path, digest=f16.facts(ConvertF16.compared).header_sha256),
        toolchain=toolchain,
    )


@gate("prompt_parity_ok", per="adapter")
def test_prompt_parity(evidence: Evidence, merged: Artifact, f16: Artifact, toolchain: Toolchain) -> None:
    """transformers, llama.cpp and llama-cpp-python make the same tokens of a dialog, with one start token at most.

    Why it matters: a template that one of them renders otherwise, a second start token or a lost system turn asks the
    model in a way that it was never trained on.

    When it fails: the dialog named shows both. `<think>` in one only: their defaults differ, so set the thinking switch
    when you serve. Two start tokens: take `bos_token` out of the template, or set
    `add_bos_token` to false in tokenizer_config.json.
    """
    step = compare_prompts(merged, f16, toolchain)
    facts = evidence.make(step, until=ComparePrompts.prompts).facts(ComparePrompts.prompts)
    text = f"the template refuses every dialog. {facts.dialogs_refused_by_template[:1]}"
    require(facts.dialogs, "template-refuses", text)
    rendered = f"prompts of {facts.dialogs} dialogs are rendered otherwise than in transformers"
    require_none(facts.prompts_rendered_differently, "prompts-differ", rendered)
    require_none(facts.prompts_tokenized_differently, "tokens-differ", "prompts become other tokens")
    starts = facts.start_tokens_at_most
    require(starts <= 1, "two-start-tokens", f"a prompt begins with {starts} start tokens, expected one at most")


@gate("q4_parity_ok", per="adapter")
def test_q4_parity(evidence: Evidence, q4: Artifact) -> None:
    """Every tensor of the Q4_K_M file is its F16 twin, within what its type's rounding explains.

    Why it matters: after quantization no two files are equal, so a damaged layer hides in the noise of all others.
    Tensor by tensor it cannot: rounding moves a Q4_K tensor by a tenth of its norm, damage by all of it.

    When it fails: quantize again; if the same tensor comes out wrong, the quantizer or an importance matrix is.
    """
    beyond = evidence.facts(q4, QuantizeQ4.noise).tensors_beyond_noise
    require_none(beyond, "beyond-noise", "tensors moved further than the rounding of their type explains")


@gate("runtime_parity_ok", per="adapter")
def test_runtime_parity(
    evidence: Evidence, q4: Artifact, llama_cli: Artifact, llama_cpp_python: Artifact, distribution: MeasureDistribution
) -> None:
    """llama-cli and llama-cpp-python say what the Q4_K_M file itself puts first, token by token.

    Why it matters: a runtime with a sampler left on, another template or a lost system turn answers fluently, and not
    as the model that was judged. The file is asked with the prompt of training; near ties that rounding breaks
    otherwise cost little.

    When it fails: compare the runtime's prompt and sampling settings with `prompt_parity_ok`'s; set temperature 0 and
    no penalties to reproduce it.
    """
    stage = MeasureDistribution.of_runtimes
    seen = evidence.make(distribution, until=stage).facts(stage).runtimes
    for runtime in ("llama_cli", "llama_cpp_python"):
        if runtime not in seen:
            raise Inconclusive(f"{runtime}: every answer contains a <think> block, which cannot be compared.")
        facts = seen[runtime]
        gap = facts.nats_from_greedy
        text = (
            f"{runtime}: {facts.tokens_not_greedy} of {facts.answer_tokens} tokens are not the file's first choice, "
            f"which is {gap:.2g} nats per token likelier, expected below {SAME_CHOICE}"
        )
        require(gap < SAME_CHOICE, "not-greedy", text, runtime=runtime)

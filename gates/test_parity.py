"""Route parity: does each format say the same as the one it was made from?"""

from __future__ import annotations

from assay.errors import Inconclusive
from assay.files import digest_files
from assay.gating.gate import gate
from assay.inputs.toolchain import Toolchain
from assay.steps.catalogue import ComparePrompts, MeasureDistribution, Part
from assay.steps.runner import Bench
from assay.steps.store import Artifact

SAME_CHOICE = 0.05
"""Nats a token. Kernels for one token and for many cost up to 0.014 on the embedded base, a repetition penalty of 1.1
costs 0.15, a temperature of 0.8 costs 0.39, llama-2's prompt 1.25."""


@gate("gguf_parity_ok", per="adapter")
def test_gguf_parity(bench: Bench, f16: Artifact) -> None:
    """Every tensor of the F16 GGUF is the checkpoint's, and so is all metadata that changes the computation.

    Why it matters: with a lost rotary base, another norm epsilon or q and k rows in the wrong order the model still
    says Paris, and is another model. What is exact here need not be guessed behind quantization.

    When it fails: the key or tensor named is what the converter wrote otherwise. Convert with the pinned toolchain; a
    config.json of another transformers may spell a key in a way that the converter does not know.
    """
    facts = bench.look(f16, "compare", "architecture", "metadata_that_differs", "tensors_with_other_values")
    other = facts["metadata_that_differs"]
    assert not other, f"{len(other)} things differ. {other[0]}"
    if not facts["layout_is_modelled"]:
        raise Inconclusive(
            f"architecture {facts['architecture']!r}: how its tensors are laid out in a GGUF is not known here, so "
            "only names, shapes and metadata were compared."
        )
    wrong = facts["tensors_with_other_values"]
    assert not wrong, f"{len(wrong)} tensors hold other values than the checkpoint, {wrong[0]} first"


@gate("token_parity_ok", per="adapter")
def test_token_parity(bench: Bench, merged: Artifact, f16: Artifact, toolchain: Toolchain) -> None:
    """llama.cpp cuts the same tokens as transformers: scripts, emoji, code, white space, every added token.

    Why it matters: a pre-tokenizer that the converter does not know, or an added token that lost its type, cuts text
    otherwise than in training. English prose hardly shows it.

    When it fails: restore the base's tokenizer.json in the merged checkpoint and convert again with the pinned tools.
    """
    step = compare_prompts(merged, f16, toolchain)
    facts = bench.make(step, stage="tokens").stages["tokens"]
    differ = facts["strings_tokenized_differently"]
    assert not differ, f"{len(differ)} of {facts['strings']} strings are cut otherwise. {differ[0]}"


def compare_prompts(merged: Artifact, f16: Artifact, toolchain: Toolchain) -> ComparePrompts:
    """Looks at no weight, so adapters whose files say the same of tokens and prompts share one."""
    folder = merged.file("checkpoint")
    names = sorted(file.name for file in folder.glob("*") if "safetensors" not in file.name)
    return ComparePrompts(
        tokenizer=Part(path=folder, digest=digest_files(folder, names)),
        f16=Part(path=f16.path, digest=f16.stages["compare"]["header_sha256"]),
        toolchain=toolchain,
    )


@gate("prompt_parity_ok", per="adapter")
def test_prompt_parity(bench: Bench, merged: Artifact, f16: Artifact, toolchain: Toolchain) -> None:
    """transformers, llama.cpp and llama-cpp-python make the same tokens of a dialog, with one start token at most.

    Why it matters: a template that one of them renders otherwise, a second start token or a lost system turn asks the
    model in a way that it was never trained on.

    When it fails: the dialog named shows both. `<think>` in one only: their defaults differ, so set the thinking switch
    when you serve. Two start tokens: take `bos_token` out of the template, or set
    `add_bos_token` to false in tokenizer_config.json.
    """
    step = compare_prompts(merged, f16, toolchain)
    facts = bench.make(step, stage="prompts").stages["prompts"]
    assert facts["dialogs"], f"the template refuses every dialog. {facts['dialogs_refused_by_template'][:1]}"
    rendered, tokens = facts["prompts_rendered_differently"], facts["prompts_tokenized_differently"]
    assert not rendered, f"{len(rendered)} of {facts['dialogs']} dialogs are rendered otherwise. {rendered[0]}"
    assert not tokens, f"{len(tokens)} prompts have other tokens. {tokens[0]}"
    starts = facts["start_tokens_at_most"]
    assert starts <= 1, f"a prompt begins with {starts} start tokens, one at most wanted"


@gate("q4_parity_ok", per="adapter")
def test_q4_parity(bench: Bench, q4: Artifact) -> None:
    """Every tensor of the Q4_K_M file is its F16 twin, within what its type's rounding explains.

    Why it matters: after quantization no two files are equal, so a damaged layer hides in the noise of all others.
    Tensor by tensor it cannot: rounding moves a Q4_K tensor by a tenth of its norm, damage by all of it.

    When it fails: quantize again; if the same tensor comes out wrong, the quantizer or an importance matrix is.
    """
    beyond = bench.look(q4, "inspect", "noise_by_type", "tensors_beyond_noise")["tensors_beyond_noise"]
    assert not beyond, f"{len(beyond)} tensors moved further than their type's rounding explains, {beyond[0]} first"


@gate("runtime_parity_ok", per="adapter")
def test_runtime_parity(
    bench: Bench, q4: Artifact, llama_cli: Artifact, llama_cpp_python: Artifact, distribution: MeasureDistribution
) -> None:
    """llama-cli and llama-cpp-python say what the Q4_K_M file itself puts first, token by token.

    Why it matters: a runtime with a sampler left on, another template or a lost system turn answers fluently, and not
    as the model that was judged. The file is asked with the prompt of training; near ties that rounding breaks
    otherwise cost little.

    When it fails: compare the runtime's prompt and sampling settings with `prompt_parity_ok`'s; set temperature 0 and
    no penalties to reproduce it.
    """
    seen = bench.make(distribution, stage="runtimes").stages["runtimes"]["runtimes"]
    for runtime in ("llama_cli", "llama_cpp_python"):
        if runtime not in seen:
            raise Inconclusive(
                f"{runtime}: every answer holds thoughts, which runtimes spell otherwise than the model."
            )
        facts = seen[runtime]
        gap = facts["nats_from_greedy"]
        assert gap < SAME_CHOICE, (
            f"{runtime}: {facts['tokens_not_greedy']} of {facts['answer_tokens']} tokens are not the file's first "
            f"choice, which is {gap:.2g} nats a token likelier; below {SAME_CHOICE} wanted"
        )

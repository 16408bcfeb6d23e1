"""Facts of a healthy candidate, one per stage, and a runner that has them all: gates judge without any model."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, cast

from assay.facts import Facts
from assay.gating.evidence import Evidence
from assay.gating.gate import Gate, read_gates
from assay.inputs.bases import Base
from assay.inputs.candidate import Adapter, Candidate, Training
from assay.inputs.dataset import read_dataset
from assay.inputs.prompts import Prompts
from assay.inputs.toolchain import Toolchain
from assay.measures.answers import Kind
from assay.measures.divergence import Distance, TaskShare
from assay.measures.merge_replay import MergedCheckpoint
from assay.measures.strength import AdapterStrength
from assay.paths import GATES, REPOSITORY
from assay.steps.adapter import AdapterFiles
from assay.steps.answers import Answer, Generation
from assay.steps.catalogue import (
    AskTransformers,
    ComparePrompts,
    ConvertF16,
    EncodeDataset,
    InspectAdapter,
    LoadNf4,
    MeasureDistribution,
    Merge,
    MountNf4,
    QuantizeQ4,
    ReadDataset,
    RunLlamaCli,
    RunLlamaCppPython,
    SelfTest,
)
from assay.steps.dataset import ClosestPair, DatasetFiles, EncodedSamples
from assay.steps.distribution import FormDistance, Reference, RuntimeAnswers, Runtimes, Waterfall
from assay.steps.gguf import (
    Converting,
    F16File,
    F16Load,
    PromptParity,
    Q4File,
    QuantizationNoise,
    Quantizing,
    SourceParity,
    TokenParity,
)
from assay.steps.merge import MergeReplay, Saving
from assay.steps.nf4 import BatchGeneration, Forward, Loading, Mounting, Nf4Model
from assay.steps.runner import Attempt, Runner
from assay.steps.runtimes import (
    BindingAnswer,
    BindingGeneration,
    BindingModel,
    CliAnswer,
    CliGeneration,
    SelfTestBinding,
    SelfTestCli,
    SelfTestModel,
    SelfTestQuantization,
)
from assay.steps.step import Stage, Step, StepUse
from assay.steps.store import Artifact

STRENGTH = AdapterStrength(
    strength=0.99,
    strength_standard_error=0.001,
    strength_of_random_adapter=0.001,
    strength_furthest_layers=("w 0.90",),
    adapter_relative_size=0.02,
)
FORM = FormDistance(
    distance=Distance(
        sequences=20,
        scored_tokens=4000,
        kl_mean=1e-4,
        kl_mean_interval=(9e-5, 2e-4),
        kl_median=1e-5,
        kl_p99=1e-3,
        kl_max=0.01,
        top1_agreement=0.99,
        top1_agreement_interval=(0.98, 1.0),
        perplexity_ratio=1.1,
        perplexity_ratio_interval=(1.0, 1.2),
        flips_to_wrong=1,
        flips_to_right=1,
    ),
    task=TaskShare(
        kl_on_task=0.1,
        kl_of_base_on_task=2.0,
        share_lost=0.05,
        share_lost_interval=(0.04, 0.06),
        task_sequences=17,
    ),
)
RUNTIME = RuntimeAnswers(
    answers=2, answer_tokens=200, tokens_not_greedy=1, nats_from_greedy=1e-4, nats_from_greedy_at_most=0.01
)
_FILE: dict[str, Any] = {
    "header_sha256": "0",
    "tensors": 9,
    "bits_per_weight": 16.0,
    "tensor_types": {"F16": 9},
    "architecture": "llama",
    "pre_tokenizer": "smollm",
    "eos_token_id": 2,
}
"""What no gate judges in a GGUF."""

HEALTHY: dict[Stage[Any], Facts] = {
    ReadDataset.read: DatasetFiles(
        samples=152,
        lines_not_parsed=[],
        lines_with_wrong_fields=[],
        lines_off_template=[],
        counts={"en": {"style": {"added": 24}}},
        counts_expected={"style": {"added": 24}},
        without_counterpart=[],
        duplicates=[],
        closest_pair_of_train_and_eval=ClosestPair(similarity=0.2, train="t", eval="e", language="en"),
        references_not_scoring_full=[],
    ),
    EncodeDataset.encoded: EncodedSamples(
        longest_sample="style-01",
        longest_sample_tokens=230,
        mean_sample_tokens=180.0,
        trained_tokens=9000,
        end_tokens_when_served=[2],
        not_encodable=[],
        trained_on_more_or_less_than_the_answer=[],
        without_end_token=[],
        end_token_first=[],
        asked_otherwise_when_served=[],
    ),
    LoadNf4.loaded: Nf4Model(
        device="cpu",
        load_seconds=1.0,
        layers_in_4bit=210,
        layers_expected_in_4bit=210,
        layers_wrongly_left=[],
        matrices_left_in_16_bit=[],
        matrices_left_bytes=0,
        quantization_types=["nf4"],
        double_quantization=True,
        compute_dtypes=["bfloat16"],
        weight_bytes=100,
        weight_bytes_predicted=99,
        peak_host_bytes=1,
        peak_device_bytes=None,
    ),
    LoadNf4.forward: Forward(logits=10, logits_not_finite=0, peak_host_bytes=1, peak_device_bytes=None),
    InspectAdapter.inspected: AdapterFiles(
        peft_type="LORA",
        rank=8,
        alpha=16,
        target_modules=["q_proj"],
        base_model_name_or_path="mirror/tiny",
        tensors=4,
        adapted_modules=2,
        saved_modules=[],
        adapter_bytes=100,
        scales=[2.0],
        unknown_tensors=[],
        modules_with_one_half=[],
        modules_not_in_base=[],
        modules_that_misfit=[],
        modules_without_effect=[],
        tensors_not_finite=[],
        modules_of_another_rank=[],
        modules_where_dora_disagrees=[],
        modules_targeted_but_not_in_file=[],
        modules_in_file_but_not_targeted=[],
        modules_to_save_not_in_file=[],
    ),
    MountNf4.loaded: Loading(device="cpu", load_seconds=1.0),
    MountNf4.mounted: Mounting(
        mount_seconds=1.0,
        tensors_in_file=4,
        tensors_consumed=4,
        tensors_not_consumed=[],
        tensors_missing_in_file=[],
        tensors_changed_on_the_way=[],
        logits_not_finite=0,
        largest_logit_change=1.5,
        largest_logit_change_by_zero_adapter=0.0,
        cosine_of_base_before_and_after_mounting=1.0,
    ),
    MountNf4.strength: STRENGTH,
    MountNf4.generated: Generation(
        answers={"p": Answer(text="Paris is the capital.", kind=Kind.OK)}, load_seconds=1.0, peak_host_bytes=1
    ),
    AskTransformers.generated: BatchGeneration(
        answers={}, load_seconds=1.0, peak_host_bytes=1, computed_in="float32", tokens_per_second_in_batch=9.0
    ),
    SelfTest.written: SelfTestModel(
        model_bytes=9,
        expected_answer="aaaa",
        expected_commit="0c1e570",
        converter_commit="0c1e57098",
        converter_present=True,
    ),
    SelfTest.quantized: SelfTestQuantization(quantized_types={"Q4_K": 3}),
    SelfTest.llama_cli: SelfTestCli(llama_cli_answer="aaaa", llama_cli_commit="0c1e570"),
    SelfTest.llama_cpp_python: SelfTestBinding(
        llama_cpp_python_answer="aaaa",
        llama_cpp_python_release="0.3.36",
        expected_release="0.3.36",
        same_libraries=True,
        library_commit="0c1e570",
    ),
    Merge.saved: Saving(merge_seconds=1.0, peak_host_bytes=1),
    Merge.compared: MergedCheckpoint(
        tensors=9,
        parameters=1000,
        checkpoint_bytes=2000,
        dtypes=["BF16"],
        tensors_missing=[],
        tensors_extra=[],
        tensors_targeted=2,
        targeted_unchanged=[],
        targeted_without_effect=[],
        others_changed=[],
        tensors_not_finite=[],
        largest_absolute_value=9.0,
        largest_absolute_value_in="w",
    ),
    Merge.replayed: MergeReplay(
        recipe="rounded once",
        recipes={"rounded once": 2},
        elements_compared=1000,
        elements_one_ulp_off=0,
        defects=[],
        compare_seconds=1.0,
        notes=[],
    ),
    Merge.strength: STRENGTH,
    ConvertF16.converted: Converting(convert_seconds=1.0),
    ConvertF16.compared: F16File(
        **_FILE,
        file_bytes=2000,
        parameters=1000,
        file_type="MOSTLY_F16",
        source_parameters=1000,
        tensors_missing=[],
        tensors_unmapped=[],
        tensors_extra=[],
        parameters_computed=0,
        tensors_not_finite=[],
        layout_is_modelled=True,
        chat_template_present=True,
        chat_template_equal=True,
        source_eos_token_id=2,
    ),
    ConvertF16.parity: SourceParity(
        architecture="llama",
        layout_is_modelled=True,
        tensors_with_other_values=[],
        metadata_that_differs=[],
        compare_seconds=1.0,
    ),
    ConvertF16.strength: STRENGTH,
    ConvertF16.loaded: F16Load(load_seconds=1.0, logits_not_finite=0),
    QuantizeQ4.quantized: Quantizing(quantize_seconds=1.0),
    QuantizeQ4.inspected: Q4File(
        **_FILE,
        file_bytes=10,
        parameters=1000,
        file_type="MOSTLY_Q4_K_M",
        source_bytes=30,
        tensors_missing=[],
        tensors_extra=[],
        tensors_with_another_shape=[],
        fallbacks_forced_by_shape=["blk.0 Q5_0 (row of 576)"],
        fallbacks_unforced=[],
        unforced_share_of_weights=0.0,
    ),
    QuantizeQ4.noise: QuantizationNoise(noise_by_type={"Q4_K": 0.08}, tensors_beyond_noise=[], compare_seconds=1.0),
    QuantizeQ4.strength: STRENGTH,
    ComparePrompts.tokens: TokenParity(strings=20, added_tokens=3, strings_tokenized_differently=[]),
    ComparePrompts.prompts: PromptParity(
        dialogs=9,
        dialogs_refused_by_template=[],
        prompts_rendered_differently=[],
        prompts_tokenized_differently=[],
        start_tokens_at_most=1,
    ),
    MeasureDistribution.reference: Reference(
        computed_in="float32",
        load_seconds=1.0,
        prefill_tokens_per_second=9.0,
        decode_tokens_per_second=9.0,
        peak_host_bytes=1,
        peak_device_bytes=None,
        sequences=20,
        tokens=5000,
        longest_sequence_tokens=500,
        scored_tokens=4000,
        base=FORM.distance,
        seconds=1.0,
    ),
    MeasureDistribution.of_merged: FORM,
    MeasureDistribution.of_nf4: FORM,
    MeasureDistribution.of_f16: FORM,
    MeasureDistribution.of_q4: FORM,
    MeasureDistribution.of_runtimes: Runtimes(runtimes={"llama_cli": RUNTIME, "llama_cpp_python": RUNTIME}),
    MeasureDistribution.waterfall: Waterfall(waterfall={"q4": 0.1}, loss_enters_at="q4"),
    RunLlamaCli.generated: CliGeneration(
        answers={
            "p": CliAnswer(
                text="Paris is the capital.",
                kind=Kind.OK,
                answer_found=True,
                errors=[],
                prefill_tokens_per_second=9.0,
                decode_tokens_per_second=9.0,
            )
        },
        load_seconds=1.0,
        peak_host_bytes=1,
    ),
    RunLlamaCppPython.loaded: BindingModel(
        load_seconds=1.0, chat_format="chat_template.default", chat_template_present=True
    ),
    RunLlamaCppPython.generated: BindingGeneration(
        answers={"p": BindingAnswer(text="Paris is the capital.", kind=Kind.OK, prompt_is_the_templates=True)},
        load_seconds=1.0,
        peak_host_bytes=1,
    ),
}

BASE = Base(id="mirror/tiny", revision=None, path=Path("base"))
ADAPTER = Adapter(name="style", source="adapter")
DATA = REPOSITORY / "train" / "data"
TRAINING = Training(dataset=read_dataset(DATA), language="en", tasks=["style"], max_tokens=512)
RECORD = {
    "dataset": {"path": str(DATA), "digest": TRAINING.dataset.digest},
    "recipe": {"adapters": {"style": ["style"]}, "language": "en", "max_tokens": 512},
}
TOOLCHAIN = Toolchain(path=Path("toolchain"))
DISTRIBUTION = MeasureDistribution(
    base=BASE,
    adapter=ADAPTER,
    probes=[],
    answers=[],
    max_tokens=9,
    scored_tokens=9,
    clearly_exact=1e-4,
    nf4=True,
    merged=None,
    f16=None,
    q4=None,
    toolchain=None,
)
GATES_BY_ID: dict[str, Gate] = {gate.id: gate for gate in read_gates(GATES)}


def with_facts(stage: Stage[Any], **changed: Any) -> dict[Stage[Any], Facts]:
    """The healthy facts, with some fields of one stage changed. Facts that are no valid facts are refused."""
    facts = HEALTHY[stage]
    assert set(changed) <= set(type(facts).model_fields), changed
    return {**HEALTHY, stage: type(facts).model_validate({**facts.model_dump(), **changed})}


def artifact(step: type[Step], facts: dict[Stage[Any], Facts]) -> Artifact:
    """What a step leaves whose stages measured these facts."""
    stages = {stage.name: facts[stage].model_dump(mode="json") for stage in step.stages}
    return Artifact(path=Path("a"), digest="0", step="s", stages=stages, run="r", seconds=0.0, peak_rss_bytes=0)


class CannedRunner:
    """Has made every step already, with the facts given; asked the task's own samples, it answers from the dataset."""

    def __init__(self, facts: dict[Stage[Any], Facts], run: Path) -> None:
        self.canned = facts
        self.run = run

    def has(self, step: Step) -> bool:
        return True

    def attempt(self, step: Step, until: Stage[Any] | None = None) -> Attempt:
        made = artifact(type(step), self.canned)
        if isinstance(step, AskTransformers):
            made.stages["generated"]["answers"] = self._reference_answers(step.prompts)
        use = StepUse(step="s", digest="0", seconds=0.0, peak_rss_bytes=0, reused_from=None, log="l")
        return Attempt(artifact=made, use=use, problem=None)

    @staticmethod
    def _reference_answers(prompts: Prompts) -> dict[str, Any]:
        samples = {one.id: one for one in TRAINING.dataset.samples("eval", ["style"], "en")}
        names = [file.stem for file in prompts.path.glob("*.txt")]
        return {name: {"text": samples[name].answer, "kind": "ok"} for name in names}


def judge(
    gate: str,
    facts: dict[Stage[Any], Facts] | None = None,
    *,
    run: Path = Path("run"),
    adapter: Adapter = ADAPTER,
    record: dict[str, Any] | None = None,
    gguf_dtype: str = "f16",
) -> Evidence:
    """Have a gate judge facts; what it raises is raised. Returns what it looked at."""
    facts = facts or HEALTHY
    candidate = Candidate(
        name="c",
        base_spec="mirror/tiny",
        revision=None,
        adapters=(adapter,),
        folder=Path(),
        record=record or RECORD,
    )
    candidate.__dict__["_base"] = BASE
    evidence = Evidence(cast(Runner, CannedRunner(facts, run)))
    given = {
        "evidence": evidence,
        "candidate": candidate,
        "base": BASE,
        "training": TRAINING,
        "data_read": artifact(ReadDataset, facts),
        "encoded": artifact(EncodeDataset, facts),
        "adapter": adapter,
        "sound_adapter": adapter,
        "base_nf4": artifact(LoadNf4, facts),
        "mounted": artifact(MountNf4, facts),
        "merged": artifact(Merge, facts),
        "f16": artifact(ConvertF16, facts),
        "q4": artifact(QuantizeQ4, facts),
        "llama_cli": artifact(RunLlamaCli, facts),
        "llama_cpp_python": artifact(RunLlamaCppPython, facts),
        "distribution": DISTRIBUTION,
        "prompts": Prompts(path=Path("prompts")),
        "max_new_tokens": 64,
        "gguf_dtype": gguf_dtype,
        "toolchain": TOOLCHAIN,
    }
    body = GATES_BY_ID[gate].body
    body(**{name: given[name] for name in inspect.signature(body).parameters})
    return evidence

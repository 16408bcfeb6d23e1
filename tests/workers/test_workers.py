"""The real workers on a small Qwen3 whose rows are multiples of 256: what is broken is named."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from assay import paths
from assay.gating.evidence import Evidence
from assay.inputs.bases import Base
from assay.inputs.candidate import Adapter, Candidate
from assay.inputs.toolchain import find_toolchain
from assay.measures.merge_replay import MergedCheckpoint, merge_facts, replay_merge
from assay.steps.catalogue import ConvertF16, Merge, QuantizeQ4
from assay.steps.runner import Runner
from assay.steps.store import Store

from tests.gates.healthy import GATES_BY_ID
from tests.samples import write_adapter

pytestmark = pytest.mark.slow(seconds=35)

SHAPES = {
    f"model.layers.{layer}.self_attn.{name}": shape
    for layer in range(2)
    for name, shape in {"q_proj": (256, 256), "v_proj": (128, 256)}.items()
}


@pytest.fixture(scope="session")
def adapter_folder(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapters") / "good", SHAPES, base=base.id, scale=0.05)


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "run").mkdir()
    return Runner(Store(folder / "store"), folder / "run", "run#1", say=lambda line: None)


def adapter(folder: Path) -> Adapter:
    return Adapter(name="style", source=str(folder))


def judge(gate: str, bench: Runner, **given: Any) -> Any:
    """What a gate hands on."""
    body = GATES_BY_ID[gate].body
    given["evidence"] = Evidence(bench)
    return body(**{name: given[name] for name in inspect.signature(body).parameters})


def test_a_256_wide_model_becomes_a_true_q4_k_m(base: Base, adapter_folder: Path, bench: Runner) -> None:
    toolchain, style = find_toolchain(), adapter(adapter_folder)
    given = {"base": base, "adapter": style, "sound_adapter": style, "toolchain": toolchain, "gguf_dtype": "f16"}
    merged = judge("merge_ok", bench, **given)
    f16 = judge("convert_f16_ok", bench, merged=merged, **given)
    q4 = judge("quantize_q4_ok", bench, f16=f16, **given)
    file = q4.facts(QuantizeQ4.inspected)
    assert file.fallbacks_forced_by_shape == []
    assert set(file.tensor_types) == {"F32", "Q4_K", "Q6_K"}
    assert merged.facts(Merge.compared).tensors_targeted == len(SHAPES)
    assert f16.facts(ConvertF16.compared).architecture == "qwen3"
    made = {"merged": merged, "f16": f16, "q4": q4}
    for gate in ("merge_exact_ok", "merged_strength_ok", "f16_strength_ok", "q4_strength_ok"):
        judge(gate, bench, **made)
    for artifact, stage in ((merged, Merge.strength), (f16, ConvertF16.strength), (q4, QuantizeQ4.strength)):
        facts = artifact.facts(stage)
        assert 0.95 < facts.strength < 1.05
        assert abs(facts.strength_of_random_adapter) < 0.05
    for gate in ("gguf_parity_ok", "q4_parity_ok"):
        judge(gate, bench, **made)


def mount(base: Base, folder: Path, bench: Runner) -> None:
    """The mount gate, with all that it needs."""
    from assay.inputs.prompts import Prompts

    style = adapter(folder)
    candidate = Candidate(name="c", base_spec=base.id, revision=None, adapters=(style,), folder=folder)
    given = {"candidate": candidate, "base": base, "adapter": style, "sound_adapter": style, "max_new_tokens": 8}
    nf4 = judge("base_quant_load_ok", bench, **given)
    judge("adapter_files_ok", bench, **given)
    prompts = Prompts(path=paths.GATES / "prompts")
    judge("<adapter>_lora_mount_ok", bench, base_nf4=nf4, prompts=prompts, **given)


def test_a_healthy_adapter_mounts(base: Base, adapter_folder: Path, bench: Runner) -> None:
    mount(base, adapter_folder, bench)


def narrow_the_config(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj"]}))


def widen_the_config(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    widened = {"target_modules": ["q_proj", "v_proj", "o_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config | widened))


def edit_weights(old: bytes, new: bytes) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        weights = folder / "adapter_model.safetensors"
        content = weights.read_bytes()
        assert old in content
        assert len(old) == len(new), "the header's length must not change"
        weights.write_bytes(content.replace(old, new))

    return edit


def write_again(**options: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        name = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        write_adapter(folder, options.get("shapes", SHAPES), base=name, scale=options.get("scale", 0.05))

    return write


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        pytest.param(
            narrow_the_config,
            "2 modules of the weights are left out by target_modules",
            id="config narrower than the weights",
        ),
        pytest.param(widen_the_config, "2 modules that target_modules in .* asks for", id="config wider"),
        pytest.param(
            edit_weights(b"model.layers.1.self_attn.q_proj", b"model.layerz.1.self_attn.q_proj"),
            "are not in",
            id="keys renamed",
        ),
        pytest.param(
            edit_weights(b"layers.1.self_attn.q_proj.lora_B", b"layers.1.self_attn.q_proj.lora_C"),
            "have only one of lora_A and lora_B",
            id="one half missing",
        ),
        pytest.param(write_again(scale=0.0), "does nothing", id="B never trained"),
        pytest.param(
            write_again(shapes=dict.fromkeys(SHAPES, (64, 128))),
            "made for another base",
            id="another base's shapes",
        ),
    ],
)
def test_a_broken_adapter_fails_its_mount(
    base: Base, adapter_folder: Path, bench: Runner, tmp_path: Path, break_it: Callable[[Path], None], said: str
) -> None:
    folder = Path(shutil.copytree(adapter_folder, tmp_path / "broken"))
    break_it(folder)
    with pytest.raises(AssertionError, match=said):
        mount(base, folder, bench)


def copy_with(base: Base, folder: Path, name: str, change: Callable[[np.ndarray[Any, Any]], None]) -> Path:
    """The base's folder with one tensor changed in place, as bf16 bits."""
    shutil.copytree(base.path, folder)
    tensor = base.tensors[name]
    file = folder / tensor.file.name
    bits = np.memmap(file, dtype="<u2", mode="r+", offset=tensor.begin, shape=(tensor.nbytes // 2,))
    change(bits)
    bits.flush()
    return folder


def test_a_base_that_computes_nan_fails_to_load(base: Base, bench: Runner, tmp_path: Path) -> None:
    def poison(bits: np.ndarray[Any, Any]) -> None:
        bits[0] = 0x7FC0

    folder = copy_with(base, tmp_path / "nan", "model.norm.weight", poison)
    candidate = Candidate(name="c", base_spec=str(folder), revision=None, adapters=(), folder=tmp_path)
    with pytest.raises(AssertionError, match="logits are NaN or inf"):
        judge("base_quant_load_ok", bench, candidate=candidate)


def forensics(base: Base, adapter_folder: Path, merged: Path) -> MergedCheckpoint:
    return merge_facts(replay_merge(base.path, adapter_folder, merged), merged)


Q, NORM = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"


@pytest.mark.parametrize(
    ("name", "bits", "fact", "seen"),
    [
        (NORM, 0x4000, "others_changed", [NORM]),  # 2.0
        (NORM, 0x7F80, "tensors_not_finite", [NORM]),  # inf
        (NORM, 0x47C3, "largest_absolute_value_in", NORM),  # 99840, inf in F16
    ],
)
def test_a_checkpoint_is_compared_tensor_by_tensor(
    base: Base, adapter_folder: Path, tmp_path: Path, name: str, bits: int, fact: str, seen: object
) -> None:
    def change(values: np.ndarray[Any, Any]) -> None:
        values[3] = bits

    told = forensics(base, adapter_folder, copy_with(base, tmp_path / "merged", name, change))
    assert getattr(told, fact) == seen
    assert len(told.targeted_unchanged) == len(SHAPES), "a copy of the base has nothing merged in"


def test_a_checkpoint_that_lacks_a_tensor_or_has_one_more_is_seen(
    base: Base, adapter_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(base.path, tmp_path / "merged"))
    content = (folder / "model.safetensors").read_bytes()
    assert content.count(b'"model.norm.weight"') == 1
    (folder / "model.safetensors").write_bytes(content.replace(b'"model.norm.weight"', b'"model.nurm.weight"'))
    told = forensics(base, adapter_folder, folder)
    assert (told.tensors_missing, told.tensors_extra) == (["model.norm.weight"], ["model.nurm.weight"])

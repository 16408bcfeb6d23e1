"""The BitsAndBytes route: the base in nf4 with double quantization and bf16 compute, the adapter mounted on it.

bitsandbytes 0.50.2 on processors with AVX512-BF16 repacks weights at the first forward and does not restore them when
their state dict is read, which mounting does: so an adapter is mounted before the first forward, always.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from assay.inputs.checkpoint import read_folder, read_header
from assay.inputs.lora import read_lora_weights
from assay.measures import strength
from assay.measures.answers import classify
from assay.measures.sizing import Shapes, bytes_nf4
from assay.measures.strength import AdapterStrength
from assay.steps.answers import Answer, Generation
from assay.steps.nf4 import Forward, Loading, LoadNf4, Mounting, MountNf4, Nf4Model
from assay.workers import Work, read_prompts
from assay.workers.model import end_tokens, load_nf4, peaks
from assay.workers.shapes import build


def load(work: Work, *, base: str) -> None:
    """Facts on how the base sits in memory, and whether one forward of it is finite."""
    started = time.monotonic()
    model, tokenizer, device = load_nf4(base)
    seconds = time.monotonic() - started
    twin, expected = build(base)
    shapes = Shapes(
        parameters={name: tuple(parameter.shape) for name, parameter in twin.named_parameters()},
        linears=frozenset(expected),
        config=twin.config.to_dict(),
    )
    quantized = {name: module for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    states = [module.weight.quant_state for module in quantized.values()]
    left, left_bytes = _left_in_16_bit(model)
    loaded = Nf4Model(
        device=device,
        load_seconds=round(seconds, 3),
        layers_in_4bit=len(quantized),
        layers_expected_in_4bit=len(expected),
        layers_wrongly_left=sorted({name.removesuffix(".weight") for name in expected} - set(quantized)),
        matrices_left_in_16_bit=left,
        matrices_left_bytes=left_bytes,
        quantization_types=sorted({str(state.quant_type) for state in states}),
        double_quantization=all(bool(state.nested) for state in states),
        compute_dtypes=sorted({str(module.compute_dtype).removeprefix("torch.") for module in quantized.values()}),
        weight_bytes=_weight_bytes(model),
        weight_bytes_predicted=bytes_nf4(shapes, double_quantization=True),
        **peaks(device),
    )
    work.reached(LoadNf4.loaded, loaded)
    logits = _last_logits(model, _render(tokenizer, "What is the capital of France?", device))
    np.save(work.folder / "logits.npy", logits)
    finite = np.isfinite(logits)
    facts = Forward(logits=int(logits.size), logits_not_finite=int((~finite).sum()), **peaks(device))
    work.reached(LoadNf4.forward, facts)


def mount(work: Work, *, base: str, adapter: str, base_nf4: str, prompts: str, max_new_tokens: int) -> None:
    """Facts on what of the adapter arrived in the model, what it changes, and what the model then says."""
    import torch
    from peft import PeftModel

    started = time.monotonic()
    model, tokenizer, device = load_nf4(base)
    load_seconds = round(time.monotonic() - started, 3)
    work.reached(MountNf4.loaded, Loading(device=device, load_seconds=load_seconds))

    started = time.monotonic()
    model = PeftModel.from_pretrained(model, adapter, adapter_name="candidate")
    arrived = _arrivals(model, Path(adapter))
    measured = _strength(model, Path(base), Path(adapter))
    zero = _mount_zero_twin(model, Path(adapter), work.folder / "zero")
    mount_seconds = time.monotonic() - started
    model.eval()
    question = _render(tokenizer, "What is the capital of France?", device)
    model.set_adapter("candidate")
    with_adapter = _last_logits(model, question)
    with model.disable_adapter():
        without = _last_logits(model, question)
    with_zero = None
    if zero:
        model.set_adapter("zero")
        with_zero = _last_logits(model, question)
        model.set_adapter("candidate")
    base_alone = np.load(Path(base_nf4) / "logits.npy")
    mounted = Mounting(
        mount_seconds=round(mount_seconds, 3),
        **arrived,
        logits_not_finite=int((~np.isfinite(with_adapter)).sum()),
        largest_logit_change=_largest_change(with_adapter, without),
        largest_logit_change_by_zero_adapter=None if with_zero is None else _largest_change(with_zero, without),
        cosine_of_base_before_and_after_mounting=_cosine(without, base_alone),
    )
    work.reached(MountNf4.mounted, mounted)
    work.reached(MountNf4.strength, measured)

    answers: dict[str, Answer] = {}
    prompt_tokens, decoded, prefill_seconds, decode_seconds = 0, 0, 0.0, 0.0
    for name, text in read_prompts(prompts).items():
        rendered = _render(tokenizer, text, device)
        answer, times = _answer(model, tokenizer, rendered, max_new_tokens, torch)
        answers[name] = answer
        prompt_tokens += int(rendered["input_ids"].shape[1])
        decoded += len(times) - 2
        prefill_seconds += times[1] - times[0]
        decode_seconds += times[-1] - times[1]
        print(f"[{name}] {answer.kind.value}: {answer.text!r}", flush=True)
    facts = Generation(
        answers=answers,
        load_seconds=load_seconds,
        prefill_tokens_per_second=round(prompt_tokens / prefill_seconds, 2),
        decode_tokens_per_second=round(decoded / decode_seconds, 2) if decode_seconds else None,
        **peaks(device),
    )
    work.reached(MountNf4.generated, facts)


def _weight_bytes(model: Any) -> int:
    """What weights, scales and tables really take. `get_memory_footprint()` leaves the scales out."""
    seen: dict[int, int] = {}

    def add(tensor: Any) -> None:
        if tensor is not None and hasattr(tensor, "data_ptr"):
            seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()

    for parameter in model.parameters():
        add(parameter)
        state = getattr(parameter, "quant_state", None)
        for part in (state, getattr(state, "state2", None)):
            for name in ("absmax", "code", "offset"):
                add(getattr(part, name, None))
    return sum(seen.values())


def _left_in_16_bit(model: Any) -> tuple[list[str], int]:
    """Names and bytes of matrices beside embeddings and head that are not 4-bit, whatever module holds them.

    Fused experts are no linear layers.
    """
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    at_ends = {id(parameter) for end in ends if end is not None for parameter in end.parameters()}
    left, left_bytes = [], 0
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim >= 2 and id(parameter) not in at_ends
        if is_matrix and getattr(parameter, "quant_state", None) is None:
            left.append(name)
            left_bytes += parameter.numel() * parameter.element_size()
    return left, left_bytes


def _render(tokenizer: Any, text: str, device: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    return {name: tensor.to(device) for name, tensor in rendered.items()}


def _last_logits(model: Any, inputs: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    import torch

    with torch.inference_mode():
        logits = model(**inputs, use_cache=False).logits[0, -1]
    values: np.ndarray[Any, np.dtype[np.float32]] = logits.float().cpu().numpy()
    return values


def _arrivals(model: Any, adapter: Path) -> dict[str, Any]:
    """Every tensor of the adapter's file against the parameters it should have become."""
    file = read_header(adapter / "adapter_model.safetensors")
    expected: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        if ".candidate" in name:
            key = name.replace(".modules_to_save.candidate", "").replace(".candidate", "")
            if key not in file and key.removesuffix(".weight") in file:
                key = key.removesuffix(".weight")
            expected[key] = parameter
    # peft also saves the untouched embedding under an adapter of it: that arrives if the base's own is the same.
    expected |= {name: value for name, value in model.named_parameters() if ".base_layer." in name and name in file}
    changed = []
    for name in sorted(set(expected) & set(file)):
        values = expected[name].detach().float().cpu().numpy()
        # NaN equals NaN here: whether values are finite is another fact.
        if values.shape != file[name].shape or not np.array_equal(values, file[name].float32(), equal_nan=True):
            changed.append(name)
    return {
        "tensors_in_file": len(file),
        "tensors_consumed": len(set(expected) & set(file)) - len(changed),
        "tensors_not_consumed": sorted(set(file) - set(expected)),
        "tensors_missing_in_file": sorted(set(expected) - set(file)),
        "tensors_changed_on_the_way": changed,
    }


def _strength(model: Any, base: Path, adapter: Path) -> AdapterStrength:
    """The adapter's strength in what each layer computes with: its 4-bit weight dequantized, plus what is mounted."""
    import torch
    from bitsandbytes.functional import dequantize_4bit

    tensors = read_folder(base)
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight") and "candidate" in module.lora_A
    }

    def read(name: str) -> Any:
        module = layers.get(name.removesuffix(".weight"))
        if module is None:
            return None
        weight = module.get_base_layer().weight
        state = getattr(weight, "quant_state", None)
        with torch.inference_mode():
            whole = weight.float() if state is None else dequantize_4bit(weight.data, state).float()
            return (whole + module.get_delta_weight("candidate").float()).cpu().numpy()

    return strength.adapter_strength(tensors, read_lora_weights(adapter, tensors), read)


def _mount_zero_twin(model: Any, adapter: Path, folder: Path) -> bool:
    """Mount the same adapter with every B at zero, the control that must change nothing. DoRA's magnitudes and whole
    saved modules have no such zero, so there is no control for them."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    if not all(".lora_" in name and "magnitude" not in name for name in tensors):
        return False
    folder.mkdir()
    shutil.copyfile(adapter / "adapter_config.json", folder / "adapter_config.json")
    for name, tensor in tensors.items():
        tensors[name] = torch.zeros_like(tensor) if "_B" in name else torch.nan_to_num(tensor)
    save_file(tensors, folder / "adapter_model.safetensors")
    model.load_adapter(str(folder), adapter_name="zero")
    shutil.rmtree(folder)
    return True


def _largest_change(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float | None:
    change = np.abs(a - b).max()
    return float(change) if np.isfinite(change) else None


def _cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float | None:
    if a.shape != b.shape:
        return None
    cosine = float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))
    return cosine if np.isfinite(cosine) else None


def _answer(model: Any, tokenizer: Any, inputs: dict[str, Any], limit: int, torch: Any) -> tuple[Answer, list[float]]:
    """One greedy answer, and the clock in seconds at its start and after each of its tokens."""
    from transformers import StoppingCriteriaList

    times = [time.monotonic()]

    def clock(*_: Any, **__: Any) -> Any:
        times.append(time.monotonic())
        return torch.zeros(1, dtype=torch.bool, device=inputs["input_ids"].device)

    ends = end_tokens(model)
    with torch.inference_mode():
        output = model.generate(
            **inputs,
            max_new_tokens=limit,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            stopping_criteria=StoppingCriteriaList([clock]),
            output_logits=True,
            return_dict_in_generate=True,
        )
    ids = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    finished = bool(ids) and ids[-1] in ends
    generated = ids[:-1] if finished else ids
    text = tokenizer.decode(generated, skip_special_tokens=True)
    first = output.logits[0][0].float()
    p_end = torch.softmax(first, dim=-1)[ends].sum().item() if bool(torch.isfinite(first).all()) else None
    raw = tokenizer.decode(generated, skip_special_tokens=False)
    thinking = tokenizer.decode(inputs["input_ids"][0]).rstrip().endswith("<think>")
    answer = Answer(
        text=text,
        kind=classify(text, finished=finished, raw=raw, tokens=generated, thinking=thinking),
        tokens=len(ids),
        ended_by="end token" if finished else "token limit",
        p_end_at_first_position=p_end,
        prompt_tokens=int(inputs["input_ids"].shape[1]),
    )
    return answer, times

"""Models in transformers, as the routes deploy them: loaded, asked, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from assay.machine import cpu_flags
from assay.workers import Problem, host_peak_bytes


def load_nf4(base: str, compute: Any = None) -> tuple[Any, Any, str]:
    """Model, tokenizer and device: nf4 with double quantization, computing in bf16 unless another dtype is given."""
    import bitsandbytes  # noqa: F401  # a missing library is reported as such, not as a ValueError of transformers
    import torch
    from transformers import BitsAndBytesConfig

    compute = compute or torch.bfloat16
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    return _load(base, compute, quantization_config=config)


def load_full(base: str) -> tuple[Any, Any, str]:
    """Model, tokenizer and device: unquantized, in the fastest exact dtype of this machine."""
    return _load(base, full_dtype())


def load_reference(base: str) -> tuple[Any, Any, str]:
    """Model, tokenizer and device in fp32, what others are compared with; in bf16 where a GPU has no room for that."""
    import torch

    if torch.cuda.is_available():
        weights = sum(file.stat().st_size for file in Path(base).glob("*.safetensors"))
        free, _ = torch.cuda.mem_get_info()
        if free < 2.5 * weights:
            return _load(base, torch.bfloat16)
    return _load(base, torch.float32)


def _load(base: str, dtype: Any, **how: Any) -> tuple[Any, Any, str]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=dtype, device_map={"": device}, use_safetensors=True, trust_remote_code=False, **how
    )
    model.eval()
    return model, AutoTokenizer.from_pretrained(base, trust_remote_code=False), device


def full_dtype() -> Any:
    """bf16 where the hardware computes in it, fp32 where it would be emulated."""
    import torch

    fast = torch.cuda.is_available() or "avx512_bf16" in cpu_flags() or "amx_bf16" in cpu_flags()
    return torch.bfloat16 if fast else torch.float32


def end_tokens(model: Any) -> list[int]:
    """The tokens that end an answer.

    Raises:
        Problem: there is none.
    """
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    if ends == [None]:
        raise Problem(
            "The base names no end token (eos_token_id) in generation_config.json. Add it.", code="no-end-token"
        )
    return ends


class Peaks(TypedDict):
    """Peak memory in bytes."""

    peak_host_bytes: int
    peak_device_bytes: int | None


def peaks(device: str) -> Peaks:
    """Peak memory of this process so far, on the host and on the GPU."""
    import torch

    on_gpu = device.startswith("cuda")
    return Peaks(
        peak_host_bytes=host_peak_bytes(), peak_device_bytes=torch.cuda.max_memory_reserved() if on_gpu else None
    )

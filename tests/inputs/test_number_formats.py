"""nf4 in numpy is the nf4 of bitsandbytes, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from assay.errors import Inconclusive
from assay.inputs.checkpoint import read_header
from assay.inputs.number_formats import bits_of, dequantize_saved_nf4, nf4_round_trip, round_to

from tests.samples import write_safetensors


def test_an_nf4_round_trip_is_what_bitsandbytes_makes() -> None:
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    torch.manual_seed(0)
    weight = (torch.randn(320, 576) * 0.05).bfloat16()
    for double, most in ((False, 0.0), (True, 2e-3)):
        packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
        made = round_to(nf4_round_trip(weight.float().numpy(), double_quantization=double), "BF16")
        unequal = bits_of(made, "BF16") != bits_of(dequantize_4bit(packed, state).float().numpy(), "BF16")
        assert unequal.mean() <= most


@pytest.mark.parametrize("double", [False, True])
def test_a_saved_4_bit_weight_is_dequantized_as_bitsandbytes_does(tmp_path: Path, double: bool) -> None:
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    from safetensors.torch import save_file

    torch.manual_seed(0)
    weight = torch.randn(96, 576) * 0.05
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
    parts = {f"w.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    save_file({"w": packed, **parts}, tmp_path / "model.safetensors")
    read = dequantize_saved_nf4(read_header(tmp_path / "model.safetensors"), "w")
    assert read.shape == (96, 576)
    assert np.array_equal(read, dequantize_4bit(packed, state).numpy())


def test_bytes_in_another_format_are_inconclusive(tmp_path: Path) -> None:
    import torch
    from bitsandbytes.functional import quantize_4bit
    from safetensors.torch import save_file

    write_safetensors(tmp_path / "other.safetensors", {"w": np.ones(4)})
    with pytest.raises(Inconclusive, match="w: stored as bytes"):
        dequantize_saved_nf4(read_header(tmp_path / "other.safetensors"), "w")
    packed, state = quantize_4bit(torch.ones(64, 64), quant_type="fp4")
    parts = {f"w.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    save_file({"w": packed, **parts}, tmp_path / "fp4.safetensors")
    with pytest.raises(Inconclusive, match="w: quantized as fp4; only nf4 is known"):
        dequantize_saved_nf4(read_header(tmp_path / "fp4.safetensors"), "w")

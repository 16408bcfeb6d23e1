"""Faults of the 4-bit route: how the base is loaded, and what becomes of the adapter when it is mounted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from assay.faults.edits.models import repacks_weights, rewrite_as_dora
from assay.faults.edits.sandbox import NotApplicable, Sandbox
from assay.faults.edits.workers import adapted_modules, after_mounting, scale_adapter, wrap
from assay.faults.fault import Area, fault
from assay.workers.tensors import cast


def _load_with(sandbox: Sandbox, **settings: Any) -> None:
    """Load the base with other settings of bitsandbytes than Assay's."""

    def config(original: Any, **given: Any) -> Any:
        return original(**{**given, **settings})

    wrap(sandbox, "bnb.load", "transformers", "BitsAndBytesConfig", config)


@fault(Area.BNB, first="base_quant_load_ok", cause="not-nf4")
def fp4_instead_of_nf4(sandbox: Sandbox) -> None:
    """The base is loaded in fp4, the library's default 4-bit type."""
    _load_with(sandbox, bnb_4bit_quant_type="fp4")


@fault(Area.BNB, first="base_quant_load_ok", cause="compute-dtype-not-bf16")
def computes_in_fp32(sandbox: Sandbox) -> None:
    """The base computes in fp32, the library's default: right, and several times slower."""
    _load_with(sandbox, bnb_4bit_compute_dtype="float32")


@fault(Area.BNB, first="base_quant_load_ok", cause="compute-dtype-not-bf16")
def computes_in_fp16(sandbox: Sandbox) -> None:
    """The base computes in fp16 and was trained in bf16: activations overflow on some prompts."""
    _load_with(sandbox, bnb_4bit_compute_dtype="float16")


@fault(Area.BNB, first="base_quant_load_ok", cause="no-double-quantization")
def without_double_quantization(sandbox: Sandbox) -> None:
    """Double quantization is off: the model takes more memory than was planned."""
    _load_with(sandbox, bnb_4bit_use_double_quant=False)


@fault(Area.BNB, first="base_quant_load_ok", cause="layers-left-in-16-bit")
def layers_left_in_16_bit(sandbox: Sandbox) -> None:
    """A skip list keeps some layers in 16 bits: no message, and more memory than was planned."""
    _load_with(sandbox, llm_int8_skip_modules=["mlp.down_proj", "lm_head"])


def _mounted(sandbox: Sandbox, change: Callable[[Any], None]) -> None:
    """Change the 4-bit model that peft has just mounted the adapter on."""
    after_mounting(sandbox, "bnb.mount", change)


@fault(Area.BNB, first="<adapter>_lora_mount_ok", cause="tensors-changed-in-mounting")
def half_of_the_adapter_dropped(sandbox: Sandbox) -> None:
    """A version of the library drops half of the tensors when it loads them, and only warns."""

    def change(model: Any) -> None:
        for module in adapted_modules(model)[::2]:
            for half in module.lora_B.values():
                half.weight.data.zero_()

    _mounted(sandbox, change)


@fault(Area.BNB, first="<adapter>_lora_mount_ok", cause="adapter-has-no-effect")
def adapter_mounted_and_switched_off(sandbox: Sandbox) -> None:
    """The adapter is mounted and not active: the base alone answers."""
    _mounted(sandbox, lambda model: model.base_model.disable_adapter_layers())


@fault(Area.BNB, first="<adapter>_lora_mount_ok", cause="tensors-changed-in-mounting")
def adapter_rounded_to_fp8(sandbox: Sandbox) -> None:
    """The adapter is cast to eight bits when it is mounted."""

    def change(model: Any) -> None:
        for module in adapted_modules(model):
            for half in (*module.lora_A.values(), *module.lora_B.values()):
                half.weight.data = cast(half.weight.data, "float8_e4m3fn").to(half.weight.dtype)

    _mounted(sandbox, change)


@fault(Area.BNB, first="<adapter>_generate_non_empty", cause="answers-degenerate")
def dora_over_repacked_weights(sandbox: Sandbox) -> None:
    """DoRA dequantizes the base in every forward, which bitsandbytes has repacked by then: a fault of the libraries
    themselves, on processors with AVX512-BF16."""
    if not repacks_weights():
        raise NotApplicable("bitsandbytes repacks no weights on this processor")
    rewrite_as_dora(sandbox)


@fault(Area.BNB, first="<adapter>_lora_mount_ok", cause="base-scrambled-by-mounting")
def scales_scrambled_by_mounting(sandbox: Sandbox) -> None:
    """Mounting after a forward reads repacked 4-bit weights back with their scales in another order."""

    def change(model: Any) -> None:
        for module in model.modules():
            state = getattr(getattr(module, "weight", None), "quant_state", None)
            if state is not None:
                state.absmax = state.absmax.flip(0)

    _mounted(sandbox, change)


@fault(Area.BNB, first="nf4_strength_ok", cause="scale-wrong-when-mounted")
def adapter_scaled_twice(sandbox: Sandbox) -> None:
    """The scale is applied twice when the adapter is mounted: every tensor is right, and the change is doubled."""
    _mounted(sandbox, lambda model: scale_adapter(model, 2.0))


@fault(Area.BNB, first="nf4_strength_ok", cause="scale-wrong-when-mounted")
def adapter_scaled_by_rank(sandbox: Sandbox) -> None:
    """A loader reads half of the scale: the fine-tune has half of its strength."""
    _mounted(sandbox, lambda model: scale_adapter(model, 0.5))

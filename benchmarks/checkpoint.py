"""Make a checkpoint of a published shape with random weights, shard by shard, so that its size costs no memory."""

from __future__ import annotations

import json
import os
from pathlib import Path

SHAPES = {
    # hidden, intermediate, layers, heads, key-value heads, vocabulary
    "1.1b": (2048, 5632, 22, 32, 4, 32000),  # TinyLlama's shape as a Mistral
    "tiny": (64, 128, 2, 4, 2, 512),
}


def make(folder: Path, shape: str) -> Path:
    """Write the checkpoint, unless it is there already.

    Parameters:
        folder: where it goes.
        shape: a key of `SHAPES`.
    """
    if (folder / "done").exists():
        return folder
    import torch
    from safetensors.torch import save_file

    hidden, inner, layers, heads, kv, vocab = SHAPES[shape]
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "dtype": "bfloat16",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "max_position_embeddings": 2048,
    }
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)

    def weight(*size: int) -> torch.Tensor:
        return torch.empty(*size, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)

    width = hidden // heads * kv
    parts = [{"model.embed_tokens.weight": weight(vocab, hidden)}]
    for index in range(layers):
        prefix = f"model.layers.{index}"
        parts.append(
            {
                f"{prefix}.self_attn.q_proj.weight": weight(hidden, hidden),
                f"{prefix}.self_attn.k_proj.weight": weight(width, hidden),
                f"{prefix}.self_attn.v_proj.weight": weight(width, hidden),
                f"{prefix}.self_attn.o_proj.weight": weight(hidden, hidden),
                f"{prefix}.mlp.gate_proj.weight": weight(inner, hidden),
                f"{prefix}.mlp.up_proj.weight": weight(inner, hidden),
                f"{prefix}.mlp.down_proj.weight": weight(hidden, inner),
                f"{prefix}.input_layernorm.weight": torch.ones(hidden, dtype=torch.bfloat16),
                f"{prefix}.post_attention_layernorm.weight": torch.ones(hidden, dtype=torch.bfloat16),
            }
        )
    parts.append(
        {
            "model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16),
            "lm_head.weight": weight(vocab, hidden),
        }
    )
    if sum(t.numel() for part in parts for t in part.values()) < 2_000_000_000:
        save_file(
            {k: v for part in parts for k, v in part.items()}, folder / "model.safetensors", {"format": "pt"}
        )
    else:
        weight_map = {}
        for number, part in enumerate(parts, 1):
            name = f"model-{number:05}-of-{len(parts):05}.safetensors"
            save_file(part, folder / name, {"format": "pt"})
            weight_map |= dict.fromkeys(part, name)
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": weight_map})
        )
    (folder / "done").touch()
    os.sync()
    return folder

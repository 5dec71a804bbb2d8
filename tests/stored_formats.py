"""Tiny checkpoints that are stored quantized, written tensor by tensor: no GPU and no quantizer's package is needed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["store_compressed", "store_fp8", "store_mxfp4"]

Tensors = dict[str, Any]

BLOCK = 64


def store_fp8(folder: Path, source: Path, ends: tuple[str, ...] = ("_proj.weight",)) -> Path:
    """Store the layers' weights as DeepSeek does: float8 with a scale for each block."""
    import torch

    def packed(name: str, weight: Any) -> Tensors:
        rows, columns = weight.shape
        high, wide = min(BLOCK, rows), min(BLOCK, columns)
        blocks = weight.float().reshape(rows // high, high, columns // wide, wide)
        scale = blocks.abs().amax((1, 3), keepdim=True) / 448
        codes = (blocks / scale).reshape(rows, columns).to(torch.float8_e4m3fn)
        return {name: codes, f"{name}_scale_inv": scale.reshape(rows // high, columns // wide)}

    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    return _stored(folder, source, ends, packed, config)


def store_compressed(folder: Path, source: Path, kind: str = "int-quantized") -> Path:
    """Store the layers' weights as llm-compressor does: in 8 bits with a scale a row, or eight values of 4 bits in an int32."""
    import torch

    bits = 4 if kind == "pack-quantized" else 8

    def packed(name: str, weight: Any) -> Tensors:
        most = 448 if kind == "float-quantized" else 2 ** (bits - 1) - 1
        scale = weight.float().abs().amax(1, keepdim=True) / most
        values = weight.float() / scale
        scales = {f"{name}_scale": scale.to(torch.bfloat16)}
        if kind == "float-quantized":
            return {name: values.to(torch.float8_e4m3fn), **scales}
        codes = values.round().clamp(-most, most).to(torch.int8)
        if kind == "int-quantized":
            return {name: codes, **scales}
        nibbles = (codes.to(torch.int64) + 8).reshape(codes.shape[0], -1, 8) << torch.arange(0, 32, 4)
        words = nibbles.sum(-1)
        return {
            f"{name}_packed": words.where(words < 2**31, words - 2**32).to(torch.int32),
            f"{name}_shape": torch.tensor(codes.shape),
            **scales,
        }

    number = {"type": "float" if kind == "float-quantized" else "int", "symmetric": True}
    weights = {"num_bits": bits, "strategy": "channel", "dynamic": False, **number}
    group = {"targets": ["Linear"], "format": kind, "weights": weights}
    config = {
        "quant_method": "compressed-tensors",
        "format": kind,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }
    return _stored(folder, source, "_proj.weight", packed, config)


def store_mxfp4(folder: Path) -> Path:
    """Make a GPT-OSS with experts in blocks of 32 four-bit values that share an exponent."""
    import torch
    from transformers import GptOssConfig, GptOssForCausalLM

    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
    counts = {"num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 2}
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    config = GptOssConfig(**sizes, **counts, **heads, rope_parameters=rope, dtype="bfloat16")
    plain = folder.with_name(f"{folder.name}-plain")
    GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(plain)

    def packed(name: str, weight: Any) -> Tensors:
        experts, inputs, outputs = weight.shape
        blocks = (experts, outputs, inputs // 32)
        codes = torch.randint(0, 256, (*blocks, 16), dtype=torch.uint8)
        return {f"{name}_blocks": codes, f"{name}_scales": torch.full(blocks, 120, dtype=torch.uint8)}

    return _stored(folder, plain, "_proj", packed, {"quant_method": "mxfp4"}, inside=".experts.")


def _stored(
    folder: Path,
    source: Path,
    ends: str | tuple[str, ...],
    packed: Callable[[str, Any], Tensors],
    config: Mapping[str, Any],
    inside: str = "",
) -> Path:
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    tensors: Tensors = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        chosen = name.endswith(ends) and inside in name
        tensors |= packed(name, weight) if chosen else {name: weight}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    whole = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**whole, "quantization_config": dict(config)}))
    return folder

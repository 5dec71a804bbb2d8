"""Tiny checkpoints that are stored quantized, written tensor by tensor: no GPU and no quantizer's package is
needed."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = [
    "store_awq",
    "store_bitnet",
    "store_compressed",
    "store_fp8",
    "store_fp8_stacks",
    "store_gemma",
    "store_gguf",
    "store_gptq",
    "store_metal",
    "store_mxfp4",
    "store_mxfp8",
]

Tensors = dict[str, Any]

BLOCK = 64

GROUP = 32
"""Inputs that share a scale, in GPTQ, AWQ and MLX."""


def store_fp8(
    folder: Path,
    source: Path,
    ends: tuple[str, ...] = ("_proj.weight",),
    block: tuple[int, int] | None = (BLOCK, BLOCK),
    *,
    rounded: bool = False,
    **fields: Any,
) -> Path:
    """Store the layers' weights as DeepSeek does: float8 with a scale for each block.

    Parameters:
        ends: of the names of the weights.
        block: rows and columns; the last blocks may be cut off. None for one scale a weight.
        rounded: whether scales are powers of two, in a byte each.
        fields: further ones of the config.
    """
    import torch

    def packed(name: str, weight: Any) -> Tensors:
        high, wide = block or weight.shape
        values = weight.float()
        grid = (-(-values.shape[0] // high), -(-values.shape[1] // wide))
        whole = values.new_zeros(grid[0] * high, grid[1] * wide)
        whole[: values.shape[0], : values.shape[1]] = values
        scale = whole.reshape(grid[0], high, grid[1], wide).abs().amax((1, 3)) / 448
        if rounded:
            scale = torch.exp2(torch.ceil(torch.log2(scale)))
        each = scale.repeat_interleave(high, 0).repeat_interleave(wide, 1)
        codes = (values / each[: values.shape[0], : values.shape[1]]).to(torch.float8_e4m3fn)
        stored = scale.to(torch.float8_e8m0fnu) if rounded else scale
        static = fields.get("activation_scheme") == "static"
        beside = {f"{name.removesuffix('.weight')}.activation_scale": torch.tensor(0.5)} if static else {}
        return {name: codes, f"{name}_scale_inv": stored if block else stored.reshape(()), **beside}

    config = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": None if block is None else list(block),
        **fields,
    }
    return _stored(folder, source, ends, packed, config)


def store_fp8_stacks(folder: Path, source: Path) -> Path:
    """Store stacks of experts whole, in float8 with a scale for each block of each expert."""
    import torch

    def packed(name: str, stack: Any) -> Tensors:
        experts, rows, columns = stack.shape
        high, wide = min(BLOCK, rows), min(BLOCK, columns)
        blocks = stack.float().reshape(experts, rows // high, high, columns // wide, wide)
        scale = blocks.abs().amax((2, 4), keepdim=True) / 448
        codes = (blocks / scale).reshape(stack.shape).to(torch.float8_e4m3fn)
        return {name: codes, f"{name}_scale_inv": scale.reshape(experts, rows // high, columns // wide)}

    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    return _stored(folder, source, ("_proj",), packed, config, inside=".experts.")


def store_compressed(folder: Path, source: Path, kind: str = "int-quantized") -> Path:
    """Store the layers' weights as llm-compressor does: in 8 bits with a scale a row, or eight values of 4
    bits in an int32."""
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


def store_mxfp8(folder: Path, source: Path) -> Path:
    """Store the layers' weights in float8 with a power of two for each 32 values of a row, as a byte."""
    import torch

    def packed(name: str, weight: Any) -> Tensors:
        blocks = weight.float().reshape(weight.shape[0], -1, 32)
        exponents = torch.floor(torch.log2(blocks.abs().amax(-1) / 448)) + 1
        codes = (blocks / torch.exp2(exponents).unsqueeze(-1)).reshape(weight.shape)
        scales = {f"{name}_scale_inv": (exponents + 127).to(torch.uint8)}
        return {name: codes.to(torch.float8_e4m3fn), **scales}

    config = {"quant_method": "mxfp8", "weight_block_size": [1, 32], "scale_fmt": "ue8m0"}
    return _stored(folder, source, "_proj.weight", packed, config)


def store_gptq(folder: Path, source: Path, **fields: Any) -> Path:
    """Store the layers' weights as GPTQ does: eight rows of inputs in an int32, the zero point less one."""
    import torch

    def packed(name: str, weight: Any) -> Tensors:
        codes, scale = _four_bits(weight)
        stem, groups = name.removesuffix("weight"), torch.arange(len(codes)) // GROUP
        rows = _words(codes.T.contiguous()).T.contiguous()
        zeros = _words(torch.full(scale.shape, 7))
        tensors = {"qweight": rows, "qzeros": zeros, "scales": scale, "g_idx": groups.to(torch.int32)}
        return {stem + part: tensor for part, tensor in tensors.items()}

    config = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": GROUP,
        "sym": True,
        "checkpoint_format": "gptq",
    }
    return _stored(folder, source, "_proj.weight", packed, {**config, **fields})


def store_awq(folder: Path, source: Path, **fields: Any) -> Path:
    """Store the layers' weights as AWQ does: eight columns of outputs in an int32, in an order of its own."""
    import torch

    def packed(name: str, weight: Any) -> Tensors:
        codes, scale = _four_bits(weight)
        words = [_words(c, (0, 2, 4, 6, 1, 3, 5, 7)) for c in (codes, torch.full(scale.shape, 8))]
        stem = name.removesuffix("weight")
        return {f"{stem}qweight": words[0], f"{stem}qzeros": words[1], f"{stem}scales": scale}

    config = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    return _stored(folder, source, "_proj.weight", packed, {**config, **fields})


def _four_bits(weight: Any) -> tuple[Any, Any]:
    """Codes of 0 to 15, inputs by outputs, and a scale for each group of inputs."""
    import torch

    groups = weight.float().T.reshape(-1, GROUP, weight.shape[0])
    scale = (groups.abs().amax(1) / 7).to(torch.float16)
    codes = (groups / scale.float().unsqueeze(1)).round().clamp(-8, 7) + 8
    return codes.reshape(weight.T.shape), scale


def _words(codes: Any, order: tuple[int, ...] = tuple(range(8))) -> Any:
    """Eight columns of four-bit codes in an int32."""
    import torch

    nibbles = codes.to(torch.int64).reshape(len(codes), -1, 8)[..., list(order)]
    words = (nibbles << torch.arange(0, 32, 4)).sum(-1)
    return words.where(words < 2**31, words - 2**32).to(torch.int32)


def store_bitnet(folder: Path, source: Path, **fields: Any) -> Path:
    """Store the layers' weights as -1, 0 and 1, four rows in a byte; as they are, where the config is of
    layers that make them so as they compute."""
    import torch

    def packed(name: str, weight: Any) -> Tensors:
        scale = weight.float().abs().mean()
        codes = (weight.float() / scale).round().clamp(-1, 1).to(torch.uint8) + 1
        parts = codes.reshape(4, -1, weight.shape[1])
        whole = (parts << torch.arange(0, 8, 2, dtype=torch.uint8).reshape(4, 1, 1)).sum(0)
        return {name: whole.to(torch.uint8), f"{name}_scale": (1 / scale).reshape(1).to(torch.bfloat16)}

    config = {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"], **fields}
    online = fields.get("quantization_mode") == "online"
    return _stored(folder, source, "_proj.weight", _as_it_is if online else packed, config)


def _as_it_is(name: str, weight: Any) -> Tensors:
    return {name: weight}


def store_gemma(folder: Path, source: Path, bits: int = 4) -> Path:
    """Store the layers' weights as Gemma's quantized releases do: codes in bytes, a scale for each row."""
    import torch

    def packed(name: str, weight: Any) -> Tensors:
        most = 2 ** (bits - 1) - 1
        scale = weight.float().abs().amax(1, keepdim=True) / most
        codes = (weight.float() / scale).round().clamp(-most - 1, most).to(torch.int8)
        if bits < 8:
            several = (codes.to(torch.int32) + most + 1).reshape(len(codes), -1, 8 // bits)
            codes = (several << torch.arange(0, 8, bits)).sum(-1).to(torch.uint8)
        stem, none = name.removesuffix("weight"), torch.tensor(0.0)
        activations = {f"{stem}{side}_activation_scale": none.clone() for side in ("input", "output")}
        return {name: codes, f"{name}_scale": scale, **activations}

    config = {"quant_method": "gemma", "num_bits": bits, "modules_to_not_convert": ["lm_head"]}
    return _stored(folder, source, "_proj.weight", packed, config)


def store_metal(folder: Path, source: Path) -> Path:
    """Store the layers' weights as MLX does: eight values in a uint32, a scale and a bias for each group."""
    import torch

    def packed(name: str, weight: Any) -> Tensors:
        groups = weight.float().reshape(weight.shape[0], -1, GROUP)
        low, high = groups.amin(-1), groups.amax(-1)
        scale = ((high - low) / 15).clamp(min=1e-8)
        codes = ((groups - low.unsqueeze(-1)) / scale.unsqueeze(-1)).round().clamp(0, 15)
        words = _words(codes.reshape(weight.shape)).view(torch.uint32)
        stem = name.removesuffix("weight")
        sides = {f"{stem}scales": scale, f"{stem}qbiases": low}
        return {name: words, **{side: tensor.to(torch.bfloat16) for side, tensor in sides.items()}}

    config = {"quant_method": "metal", "bits": 4, "group_size": GROUP, "modules_to_not_convert": ["lm_head"]}
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


def store_gguf(path: Path, source: Path) -> Path:
    """Write a Llama as llama.cpp does: layers in Q8_0 (blocks of 32 codes with a float16 scale), the rest in
    float32."""
    import numpy as np
    from safetensors.torch import load_file

    config = json.loads((source / "config.json").read_text())
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    rope = config.get("rope_parameters") or {}
    words = ["<unk>", "<s>", "</s>", *(f"w{n}" for n in range(3, config["vocab_size"]))]
    entries: list[bytes] = [
        _entry("general.architecture", 8, _text("llama")),
        _entry("general.name", 8, _text("tiny")),
        *(
            _entry(f"llama.{key}", 4, struct.pack("<I", value))
            for key, value in {
                "block_count": config["num_hidden_layers"],
                "context_length": config["max_position_embeddings"],
                "embedding_length": config["hidden_size"],
                "feed_forward_length": config["intermediate_size"],
                "attention.head_count": heads,
                "attention.head_count_kv": kv,
                "rope.dimension_count": config["hidden_size"] // heads,
                "vocab_size": config["vocab_size"],
            }.items()
        ),
        _entry("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", config["rms_norm_eps"])),
        _entry("llama.rope.freq_base", 6, struct.pack("<f", rope.get("rope_theta", 10000.0))),
        _entry("tokenizer.ggml.model", 8, _text("llama")),
        _entry("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, len(words)) + b"".join(map(_text, words))),
        _entry(
            "tokenizer.ggml.scores", 9, struct.pack(f"<IQ{len(words)}f", 6, len(words), *[0.0] * len(words))
        ),
        _entry(
            "tokenizer.ggml.token_type", 9, struct.pack(f"<IQ{len(words)}i", 5, len(words), *[1] * len(words))
        ),
        _entry("tokenizer.ggml.bos_token_id", 4, struct.pack("<I", 1)),
        _entry("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", 2)),
    ]
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "post_attention_layernorm": "ffn_norm", "input_layernorm": "attn_norm",
    }  # fmt: skip
    table, data = b"", b""
    tensors = load_file(source / "model.safetensors")
    for name, weight in tensors.items():
        stem = name.removesuffix(".weight").replace("model.layers.", "blk.")
        theirs = next(stem.replace(ours, gguf) for ours, gguf in names.items() if ours in stem) + ".weight"
        values = weight.float().numpy()
        for part, count in (("q_proj", heads), ("k_proj", kv)):
            if part in name:  # llama.cpp's order of rotary halves
                values = values.reshape(count, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        kind, raw = 0, values.astype("<f4").tobytes()
        if name.endswith("_proj.weight"):
            blocks = values.reshape(-1, 32)
            scale = (np.abs(blocks).max(1, keepdims=True) / 127).astype("<f2")
            codes = np.round(blocks / scale.astype("f4")).astype("i1")
            kind, raw = 8, b"".join(s.tobytes() + c.tobytes() for s, c in zip(scale, codes, strict=True))
        sides = values.shape[::-1]
        table += _text(theirs) + struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, kind, len(data))
        data += raw + bytes(-len(raw) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries) + table
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _entry(key: str, kind: int, value: bytes) -> bytes:
    return _text(key) + struct.pack("<I", kind) + value


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

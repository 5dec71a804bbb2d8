"""Checkpoints written by hand: a config, real safetensors files without torch, and ways to damage them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

__all__ = ["CONFIG", "raw_safetensors", "write_adapter", "write_json", "write_model", "write_sharded"]

CONFIG = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "dtype": "float16"}
SHAPES = {"model.embed.weight": (64, 32), "lm_head.weight": (64, 32), "model.norm.weight": (32,)}


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file and the folders it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_model(folder: Path, shapes: Mapping[str, tuple[int, ...]] = SHAPES, **files: Any) -> Path:
    """Write a whole checkpoint in one weight file; `files` are JSON files by their stems."""
    write_json(folder / "config.json", CONFIG)
    for stem, value in files.items():
        write_json(folder / f"{stem}.json", value)
    save_file(_tensors(shapes), folder / "model.safetensors")
    return folder


def write_sharded(folder: Path, shards: int = 3, shape: tuple[int, ...] = (64, 32)) -> Path:
    """Write a checkpoint with an index and one tensor in each shard."""
    write_json(folder / "config.json", CONFIG)
    weight_map = {}
    for number in range(1, shards + 1):
        file = f"model-{number:05}-of-{shards:05}.safetensors"
        weight_map[f"layers.{number}.weight"] = file
        save_file(_tensors({f"layers.{number}.weight": shape}), folder / file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return folder


def write_adapter(folder: Path, base: str | None, **fields: Any) -> Path:
    """Write an adapter of a base."""
    config = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 4, **fields}
    write_json(folder / "adapter_config.json", config)
    save_file(
        _tensors({"base_model.model.q_proj.lora_A.weight": (4, 32)}), folder / "adapter_model.safetensors"
    )
    return folder


def raw_safetensors(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """The bytes of a safetensors file whose header may be anything: bytes are taken as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    return {name: np.ones(shape, np.float16) for name, shape in shapes.items()}

"""Make a checkpoint of a published shape with random weights, shard by shard, so that its size costs neither
memory nor a second start.

python tests/benchmarks/checkpoint.py 7b --work /somewhere/with/room
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["SHAPES", "Shape", "make", "weight_files"]

SHARD = 1_000_000_000
"""Weights that one file holds at most, and memory while it is made: 2 GB in bfloat16."""


class Shape(NamedTuple):
    """A Mistral's dimensions.

    Parameters:
        hidden, inner, layers, heads, kv, vocabulary: width, width of the MLP, and the rest as config.json
            calls them.
    """

    hidden: int
    inner: int
    layers: int
    heads: int
    kv: int
    vocabulary: int

    def tensors(self) -> Iterator[dict[str, tuple[int, ...]]]:
        """Names and sizes, in parts that stay together in one file: the embeddings, each layer, the head."""
        width = self.hidden // self.heads * self.kv
        yield {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for index in range(self.layers):
            yield {
                f"model.layers.{index}.{name}.weight": size
                for name, size in {
                    "self_attn.q_proj": (self.hidden, self.hidden),
                    "self_attn.k_proj": (width, self.hidden),
                    "self_attn.v_proj": (width, self.hidden),
                    "self_attn.o_proj": (self.hidden, self.hidden),
                    "mlp.gate_proj": (self.inner, self.hidden),
                    "mlp.up_proj": (self.inner, self.hidden),
                    "mlp.down_proj": (self.hidden, self.inner),
                    "input_layernorm": (self.hidden,),
                    "post_attention_layernorm": (self.hidden,),
                }.items()
            }
        yield {"model.norm.weight": (self.hidden,), "lm_head.weight": (self.vocabulary, self.hidden)}

    def shards(self) -> list[dict[str, tuple[int, ...]]]:
        """The same, gathered into files."""
        files: list[dict[str, tuple[int, ...]]] = [{}]
        for part in self.tensors():
            if _weights(files[-1]) + _weights(part) > SHARD and files[-1]:
                files.append({})
            files[-1] |= part
        return files

    @property
    def weights(self) -> int:
        """How many there are."""
        return sum(_weights(part) for part in self.tensors())


SHAPES = {
    "tiny": Shape(64, 128, 2, 4, 2, 512),
    "1.1b": Shape(2048, 5632, 22, 32, 4, 32000),  # TinyLlama's shape as a Mistral
    "2.5b": Shape(2560, 8960, 28, 32, 8, 32000),  # between the two, for machines without the room
    "2b-wide": Shape(
        4096, 14336, 8, 32, 8, 32000
    ),  # tensors as large as the next one's, a quarter of the layers
    "7b": Shape(4096, 14336, 32, 32, 8, 32000),  # Mistral-7B-v0.1's published shape: 7.24 B
}


def make(folder: Path, shape: str) -> Path:
    """Write the checkpoint; files that are there already are kept, so that an interrupted run goes on where
    it was.

    Parameters:
        folder: where it goes.
        shape: a key of `SHAPES`.

    Raises:
        SystemExit: the disk hasn't the room.
    """
    if (folder / "done").exists():
        return folder
    chosen = SHAPES[shape]
    shards = chosen.shards()
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    folder.mkdir(parents=True, exist_ok=True)
    there = sum((folder / name).stat().st_size for name in names if (folder / name).exists())
    needed = 2 * chosen.weights - there + 2**30
    if shutil.disk_usage(folder).free < needed:
        raise SystemExit(f"{folder} needs {needed / 2**30:.1f} GiB of disk, a GiB of room among them")
    for number, (name, sizes) in enumerate(zip(names, shards, strict=True)):
        if not (folder / name).exists():
            _write(folder / name, sizes, seed=number)
    if len(shards) > 1:
        weight_map = {tensor: name for name, sizes in zip(names, shards, strict=True) for tensor in sizes}
        index = {"metadata": {"total_size": 2 * chosen.weights}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "dtype": "bfloat16",
        "hidden_size": chosen.hidden,
        "intermediate_size": chosen.inner,
        "num_hidden_layers": chosen.layers,
        "num_attention_heads": chosen.heads,
        "num_key_value_heads": chosen.kv,
        "vocab_size": chosen.vocabulary,
        "max_position_embeddings": 2048,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "done").touch()
    os.sync()
    return folder


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, in order."""
    return sorted(folder.glob("*.safetensors"))


def _write(path: Path, sizes: dict[str, tuple[int, ...]], seed: int) -> None:
    """Write one file whole or not at all."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.empty(*size, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
        if len(size) > 1
        else torch.ones(*size, dtype=torch.bfloat16)
        for name, size in sizes.items()
    }
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished, {"format": "pt"})
    unfinished.replace(path)


def _weights(part: dict[str, tuple[int, ...]]) -> int:
    total = 0
    for size in part.values():
        count = 1
        for length in size:
            count *= length
        total += count
    return total


def main() -> None:
    """Make one, and print where it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "loadkit-benchmarks")
    given = parser.parse_args()
    print(make(given.work / given.shape, given.shape))


if __name__ == "__main__":
    main()

"""A GGUF file as a checkpoint: its metadata as a config, its vocabulary's roles as a tokenizer's facts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from loadkit.errors import Problem
from loadkit.facts.checkpoint.checkpoint import ProcessingFacts, TensorHeader
from loadkit.facts.checkpoint.gguf_header import GgufHeader, read_gguf_header
from loadkit.facts.checkpoint.source import CheckpointFiles, checkpoint_problem
from loadkit.text.suggest import did_you_mean

__all__ = ["GGUF", "MODEL_TYPES", "Gguf", "gguf_of", "read_gguf"]

GGUF = ".gguf"

MODEL_TYPES: Mapping[str, str] = {
    **{name: name for name in ("bloom", "falcon", "gemma2", "gpt2", "lfm2", "llama", "mamba", "nemotron", "phi3", "qwen2", "qwen3")},
    **{name: name for name in ("stablelm", "starcoder2", "t5")},
    "gemma3": "gemma3_text",
    "gpt-oss": "gpt_oss",
    "minimax-m2": "minimax_m2",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "qwen35": "qwen3_5_text",
    "qwen35moe": "qwen3_5_moe_text",
}  # fmt: skip
"""llama.cpp's names of architectures that transformers 5.23 loads, to its model types."""

WITHOUT_PACKAGE = ("lfm2", "qwen35", "qwen35moe")
"""Those that it reads itself; for the others it takes the package `gguf`."""

NAMES: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_output": "self_attn.o_proj",
    **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
    **{f"attn_{part}_norm": f"self_attn.{part}_norm" for part in "qk"},
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
    "blk": "model.layers",
}
"""llama.cpp's words for parts of a model to the usual ones of transformers, by which their roles are told."""

ROLES = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}


class Gguf(NamedTuple):
    """What a GGUF file makes of a checkpoint, under the names that `Checkpoint` has for it."""

    config: dict[str, Any]
    processing: ProcessingFacts
    tensors: dict[str, TensorHeader]


def gguf_of(source: str | os.PathLike[str]) -> tuple[str, str]:
    """The folder and the name of a GGUF file on this machine that a source names; ("", "") for other
    sources."""
    path = os.path.abspath(os.path.expanduser(os.fspath(source)))
    found = path.endswith(GGUF) and os.path.isfile(path)
    folder, name = os.path.split(path) if found else ("", "")
    return folder, name


def read_gguf(files: CheckpointFiles, name: str, processing: ProcessingFacts) -> Gguf | Problem:
    """Read a file's header, and what it says of config and tokenizer."""
    size = files.size(name)
    if size is None:
        there = [file for file in files.sizes if file.endswith(GGUF)]
        return checkpoint_problem(
            "no-gguf-file",
            f"gguf_file={name!r} was asked for, and {files} has no such file{did_you_mean(name, there)}",
            f"name one of {', '.join(there[:8])}" if there else "give a folder or repository that has one",
        )
    header = read_gguf_header(name, size, lambda start, stop: files.read_range(name, start, stop))
    if isinstance(header, Problem):
        return header
    architecture = str(header.metadata.get("general.architecture", ""))
    parts = header.metadata.get("split.count", 1)
    if architecture not in MODEL_TYPES or (isinstance(parts, int) and parts > 1):
        what = (
            f"{name} holds {architecture!r}"
            if architecture not in MODEL_TYPES
            else f"{name} is one of {parts} parts"
        )
        return checkpoint_problem(
            "gguf-unsupported",
            f"{what}, which transformers 5.23 doesn't load from GGUF{did_you_mean(architecture, MODEL_TYPES)}",
            "load the repository that it was converted from"
            + (
                ""
                if architecture not in MODEL_TYPES
                else ", or merge the parts with llama.cpp's gguf-split --merge"
            ),
        )
    return Gguf(_config(header, architecture), _processing(header, name, processing), _named(header))


def _named(header: GgufHeader) -> dict[str, TensorHeader]:
    """The tensors under the names that most classes of transformers have for them."""
    return {
        ".".join(NAMES.get(part, part) for part in name.split(".")): tensor
        for name, tensor in header.tensors.items()
    }


def _config(header: GgufHeader, architecture: str) -> dict[str, Any]:
    """As much of a config as planning needs; transformers makes its own of the whole metadata."""
    about = {
        "gguf_architecture": architecture,
        "package": "" if architecture in WITHOUT_PACKAGE else "gguf>=0.10.0",
        "types": sorted({tensor.dtype for tensor in header.tensors.values()}),
    }
    found: dict[str, Any] = {
        "model_type": MODEL_TYPES[architecture],
        "quantization_config": {"quant_method": "gguf", **about},
    }
    names = {"hidden_size": "embedding_length", "num_hidden_layers": "block_count"}
    for field, key in {**names, "max_position_embeddings": "context_length"}.items():
        value = header.metadata.get(f"{architecture}.{key}")
        if isinstance(value, int):
            found[field] = value
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    return {**found, "vocab_size": len(tokens)} if isinstance(tokens, list) else found


def _processing(header: GgufHeader, name: str, beside: ProcessingFacts) -> ProcessingFacts:
    """The tokenizer's facts: those of files beside it where there are any."""
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if beside.tokenizer_config or not isinstance(tokens, list):
        return beside
    settings = {}
    for role, key in ROLES.items():
        number = header.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(number, int) and 0 <= number < len(tokens):
            settings[role] = tokens[number]
    template = header.metadata.get("tokenizer.chat_template")
    return msgspec.structs.replace(
        beside,
        gguf_file=name,
        tokenizer_config=settings,
        chat_template=template if isinstance(template, str) else None,
        added_tokens={token: tokens.index(token) for token in settings.values()},
    )

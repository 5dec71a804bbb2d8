"""What to say of a checkpoint without a config or without weights: what it looks like instead, and what to do."""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Sequence

import msgspec

from loadkit.errors import Problem
from loadkit.facts.checkpoint.source import Place, checkpoint_problem
from loadkit.text.suggest import some_of

__all__ = ["no_config", "no_weights"]


class _Look(msgspec.Struct, frozen=True):
    """What files of a pattern make of a checkpoint."""

    pattern: str
    looks_like: str
    remedy: str


_WITHOUT_CONFIG = (
    _Look("model_index.json", "a diffusers pipeline", "load it with diffusers"),
    _Look(
        "params.json",
        "a checkpoint in its maker's own layout",
        "find or make its conversion for transformers",
    ),
    _Look(
        "consolidated*",
        "a checkpoint in its maker's own layout",
        "find or make its conversion for transformers",
    ),
    _Look("*.gguf", "a GGUF conversion", "load the repository that it was converted from"),
    _Look(
        "adapter_model.*", "an adapter without its adapter_config.json", "save the adapter again with PEFT"
    ),
    _Look(
        "*.safetensors",
        "weights without their config",
        "copy the config.json of the model that they belong to",
    ),
    _Look("*.bin", "weights without their config", "copy the config.json of the model that they belong to"),
    _Look("tokenizer*", "a tokenizer without a model", "give the model's own folder or repository"),
    _Look(
        "processor_config.json", "a processor without a model", "give the model's own folder or repository"
    ),
)

_WITHOUT_WEIGHTS = (
    _Look("model.*.safetensors", "a variant of the weights only", "rename it to model.safetensors"),
    _Look(
        "consolidated*",
        "weights in their maker's own layout",
        "find or make their conversion for transformers",
    ),
    _Look("*.gguf", "GGUF weights", "load the repository that they were converted from"),
    _Look(
        "adapter_model.*", "an adapter's weights", "add the adapter_config.json, which names the base model"
    ),
    _Look("tf_model.h5", "TensorFlow weights", "convert them to safetensors with an older transformers"),
    _Look("flax_model*", "Flax weights", "convert them to safetensors with an older transformers"),
    _Look("zero_to_fp32.py", "a DeepSpeed checkpoint", "run its zero_to_fp32.py to get whole weights"),
    _Look("pytorch_model_fsdp*", "sharded FSDP weights", "merge them with `accelerate merge-weights`"),
    _Look("*.distcp", "sharded FSDP weights", "merge them with `accelerate merge-weights`"),
    _Look("*.safetensors", "safetensors files of other names", "rename it, or write an index of shards"),
    _Look("*.onnx", "an ONNX conversion", "load the repository that it was converted from"),
)


def no_config(place: Place) -> Problem:
    """The problem of a place without config.json."""
    look, remedy = _look(place, _WITHOUT_CONFIG, "give a folder or repository that save_pretrained wrote")
    return checkpoint_problem(
        "no-config", f"{place} has no config.json: it is {look}", _inside(place) + remedy
    )


def no_weights(place: Place) -> Problem:
    """The problem of a place with a config but without weights that transformers would load."""
    look, remedy = _look(
        place, _WITHOUT_WEIGHTS, "save the model again with save_pretrained, or download it whole"
    )
    return checkpoint_problem(
        "no-weights",
        f"{place} has no model.safetensors, no index of shards and no pytorch_model.bin: what is there is {look}",
        _inside(place) + remedy,
    )


def _look(place: Place, looks: Sequence[_Look], otherwise: str) -> tuple[str, str]:
    """What the place looks like, with the files that show it, and the remedy."""
    if not place.sizes:
        return "empty", otherwise
    for look in looks:
        matching = [
            name for name in place.sizes if "/" not in name and fnmatch.fnmatchcase(name, look.pattern)
        ]
        if matching:
            return f"{look.looks_like} ({some_of(matching)})", look.remedy
    return f"something else (it holds {some_of(place.sizes)})", otherwise


def _inside(place: Place) -> str:
    """Whether a folder further in is a checkpoint: the output folder of a training run is no checkpoint itself."""
    inside = [
        posixpath.dirname(name)
        for name in place.sizes
        if posixpath.basename(name) in ("config.json", "adapter_config.json") and "/" in name
    ]
    if not inside or place.kind != "folder":
        return ""
    return f"did you mean a folder in it ({some_of(dict.fromkeys(inside))})? if not, "

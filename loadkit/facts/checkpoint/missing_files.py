"""What a checkpoint without a config or without weights looks like instead, and what to do."""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Sequence

from loadkit.errors import Problem
from loadkit.facts.checkpoint.source import CheckpointFiles, checkpoint_problem
from loadkit.text.suggest import some_of

__all__ = ["no_config", "no_weights"]


_OWN_LAYOUT = "find or make its conversion for transformers"
_NO_CONFIG = "copy the config.json of the model that they belong to"
_NO_MODEL = "give the model's own folder or repository"
_MERGE = "merge them with `accelerate merge-weights`"
_CONVERT = "convert them to safetensors with an older transformers"

_WITHOUT_CONFIG = (
    ("model_index.json", "a diffusers pipeline", "load it with diffusers"),
    ("params.json", "a checkpoint in its maker's own layout", _OWN_LAYOUT),
    ("consolidated*", "a checkpoint in its maker's own layout", _OWN_LAYOUT),
    ("*.gguf", "a GGUF conversion", "load the repository that it was converted from"),
    ("adapter_model.*", "an adapter without its adapter_config.json", "save the adapter again with PEFT"),
    ("*.safetensors", "weights without their config", _NO_CONFIG),
    ("*.bin", "weights without their config", _NO_CONFIG),
    ("tokenizer*", "a tokenizer without a model", _NO_MODEL),
    ("processor_config.json", "a processor without a model", _NO_MODEL),
)
"""What files of a pattern make of a checkpoint, and the remedy."""

_WITHOUT_WEIGHTS = (
    ("model.*.safetensors", "a variant of the weights only", "rename it to model.safetensors"),
    (
        "consolidated*",
        "weights in their maker's own layout",
        "find or make their conversion for transformers",
    ),
    ("*.gguf", "GGUF weights", "load the repository that they were converted from"),
    ("adapter_model.*", "an adapter's weights", "add the adapter_config.json, which names the base model"),
    ("tf_model.h5", "TensorFlow weights", _CONVERT),
    ("flax_model*", "Flax weights", _CONVERT),
    ("zero_to_fp32.py", "a DeepSpeed checkpoint", "run its zero_to_fp32.py to get whole weights"),
    ("pytorch_model_fsdp*", "sharded FSDP weights", _MERGE),
    ("*.distcp", "sharded FSDP weights", _MERGE),
    ("*.safetensors", "safetensors files of other names", "rename it, or write an index of shards"),
    ("*.onnx", "an ONNX conversion", "load the repository that it was converted from"),
)


def no_config(files: CheckpointFiles) -> Problem:
    """The problem of files without a config.json."""
    look, remedy = _look(files, _WITHOUT_CONFIG, "give a folder or repository that save_pretrained wrote")
    return checkpoint_problem(
        "no-config", f"{files} has no config.json: it is {look}", _inside(files) + remedy
    )


def no_weights(files: CheckpointFiles) -> Problem:
    """The problem of files with a config but without weights that transformers would load."""
    look, remedy = _look(
        files, _WITHOUT_WEIGHTS, "save the model again with save_pretrained, or download it whole"
    )
    return checkpoint_problem(
        "no-weights",
        f"{files} has no model.safetensors, no index of shards and no pytorch_model.bin: what is there is {look}",
        _inside(files) + remedy,
    )


def _look(files: CheckpointFiles, table: Sequence[tuple[str, str, str]], otherwise: str) -> tuple[str, str]:
    """What the files look like, with those that show it, and the remedy."""
    if not files.sizes:
        return "empty", otherwise
    for pattern, looks_like, remedy in table:
        shown = [name for name in files.sizes if "/" not in name and fnmatch.fnmatchcase(name, pattern)]
        if shown:
            return f"{looks_like} ({some_of(shown)})", remedy
    return f"something else (it holds {some_of(files.sizes)})", otherwise


def _inside(files: CheckpointFiles) -> str:
    """Point to checkpoints further in: the output folder of a training run is no checkpoint itself."""
    inside = [
        posixpath.dirname(name)
        for name in files.sizes
        if posixpath.basename(name) in ("config.json", "adapter_config.json") and "/" in name
    ]
    if not inside or files.kind != "folder":
        return ""
    return f"did you mean a folder in it ({some_of(dict.fromkeys(inside))})? if not, "

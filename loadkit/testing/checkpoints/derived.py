"""Checkpoints made from another one: quantized ahead, an adapter on it, or with pickled weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadkit.errors import LoadkitError
from loadkit.testing.checkpoints.make import ask, no_progress_bars, seeded, whole_or_absent

__all__ = ["make_adapter", "make_pickle_only", "make_prequantized"]

_BITSANDBYTES: Mapping[str, dict[str, Any]] = {
    "4": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
    },
    "8": {"load_in_8bit": True},
}

_TASK_TYPES = {
    "ForCausalLM": "CAUSAL_LM",
    "ForConditionalGeneration": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "LMHeadModel": "CAUSAL_LM",
}


def make_prequantized(folder: str | Path, source: str | Path, bits: int = 4) -> Path:
    """Quantize a checkpoint with bitsandbytes and save it so, with plain transformers.

    Parameters:
        folder: where to, which is returned.
        source: the folder of a checkpoint that `make_checkpoint` made.
        bits: 4 (nf4, double quantization, computing in bfloat16) or 8 (LLM.int8).

    Raises:
        LoadkitError: the source has no config.json or needs its own code, or `bits` is neither 4 nor 8.
    """
    import transformers

    config = transformers.BitsAndBytesConfig(**ask("bits", str(bits), _BITSANDBYTES))
    source, folder = Path(source), Path(folder)
    with no_progress_bars(), whole_or_absent(folder):
        model = _load(source, quantization_config=config, device_map={"": "cpu"})
        model.save_pretrained(folder)
        _copy_missing(source, folder)
    return folder


def make_adapter(folder: str | Path, base: str | Path, *, seed: int = 0) -> Path:
    """Make a LoRA adapter repository on a checkpoint, with plain peft, that names the checkpoint as its base.

    Both halves of the adapter are random, so that it changes what the model says.

    Parameters:
        folder: where to, which is returned.
        base: the folder of a checkpoint that `make_checkpoint` made.
        seed: of the adapter's weights.

    Raises:
        LoadkitError: the base has no config.json, or needs its own code.
    """
    import peft

    base, folder = Path(base), Path(folder)
    name = _architecture(base)
    task = next((task for ending, task in _TASK_TYPES.items() if name.endswith(ending)), None)
    if name.startswith("T5"):
        task = "SEQ_2_SEQ_LM"
    lora = peft.LoraConfig(
        r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False, task_type=task
    )
    with no_progress_bars(), seeded(seed):
        adapted = peft.get_peft_model(_load(base), lora)
    with whole_or_absent(folder):
        adapted.save_pretrained(folder)
    return folder


def make_pickle_only(folder: str | Path, source: str | Path) -> Path:
    """Copy a checkpoint with its weights in one pickled pytorch_model.bin rather than in safetensors files.

    Parameters:
        folder: where to, which is returned.
        source: the folder of a checkpoint that `make_checkpoint` made.

    Raises:
        LoadkitError: the source has no safetensors files.
    """
    import torch
    from safetensors.torch import load_file

    source, folder = Path(source), Path(folder)
    weights: dict[str, Any] = {}
    for path in sorted(source.glob("*.safetensors")):
        weights.update(load_file(path))
    if not weights:
        raise LoadkitError(
            f"can't pickle the weights of {source}: it has no *.safetensors; give a checkpoint folder"
        )
    with whole_or_absent(folder):
        _copy_missing(source, folder)
        torch.save(weights, folder / "pytorch_model.bin")
    return folder


def _architecture(source: Path) -> str:
    path = source / "config.json"
    if not path.is_file():
        raise LoadkitError(
            f"can't make a checkpoint from {source}: it has no config.json; give a checkpoint folder"
        )
    config = json.loads(path.read_text(encoding="utf-8"))
    if "auto_map" in config:
        raise LoadkitError(
            f"can't make a checkpoint from {source}: it needs its own code (auto_map); give one of a transformers class"
        )
    return str(config["architectures"][0])


def _load(source: Path, **kwargs: Any) -> Any:
    import transformers

    return getattr(transformers, _architecture(source)).from_pretrained(source, dtype="auto", **kwargs)


def _copy_missing(source: Path, folder: Path) -> None:
    """Copy what isn't weights (tokenizer, processor, configs), unless the folder has its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and ".safetensors" not in path.name and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)

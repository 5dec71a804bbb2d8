"""What `loadkit demo` works on: a small checkpoint made on this machine, and a few steps of training.

Nothing is downloaded. The weights are random, so the model says nothing sensible; what the demo shows is that
it was loaded as planned and that it learns.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from loadkit.errors import LoadkitError
from loadkit.schema.request import Progress
from loadkit.testing.checkpoints.architectures import ARCHITECTURES, Recipe
from loadkit.testing.checkpoints.corpus import CONVERSATIONS, PICTURES
from loadkit.testing.checkpoints.make import ask, merged_config, write_recipe
from loadkit.testing.checkpoints.tokenizers import chat_template

__all__ = ["DEMO_ARCHITECTURES", "demo_checkpoint", "kept", "train_a_few_steps"]

_LARGER = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
_LARGER_GEMMA3 = {
    "text_config": {
        **_LARGER,
        "num_hidden_layers": 4,
        "head_dim": 64,
        "query_pre_attn_scalar": 64,
        "layer_types": [*["sliding_attention"] * 3, "full_attention"],
    },
    "vision_config": {"hidden_size": 128, "intermediate_size": 256},
}


def _larger(arch: str, about: str, overrides: Mapping[str, Any]) -> Recipe:
    recipe = ARCHITECTURES[arch]
    return msgspec.structs.replace(recipe, about=about, config=merged_config(recipe.config, overrides))


DEMO_ARCHITECTURES: Mapping[str, Recipe] = MappingProxyType(
    {
        "gemma3": _larger("gemma3", "A vision-language model of 12 million parameters.", _LARGER_GEMMA3),
        "mistral": _larger("mistral", "A decoder of 18 million parameters.", _LARGER),
    }
)
"""Name to recipe, sorted by name: larger than tests' checkpoints, so that quantizing them saves something."""

IGNORED = -100
"""The label that transformers' losses leave out."""


def demo_checkpoint(arch: str = "mistral", *, cache_dir: Path, progress: Progress | None = None) -> Path:
    """Make the demo's checkpoint, or find the one that was made before.

    It is made beside its place and moved there when it is complete, so that an interrupted run leaves nothing
    that a later one would use. A hash of all that it is made of ends its name, so that a changed recipe makes
    another one.
    """
    recipe = ask("arch", arch, DEMO_ARCHITECTURES)
    folder = cache_dir / f"demo-{arch}-{_fingerprint(recipe)}"
    if folder.is_dir():
        return folder
    if progress:
        progress(f"making a checkpoint of random weights: {recipe.about.rstrip('.')}")
    cache_dir.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=cache_dir, prefix=".unfinished-"))
    try:
        # Inside it, since a cache may be shared, and what mkdtemp makes is closed to everyone else.
        os.replace(write_recipe(unfinished / "checkpoint", recipe), folder)
    except OSError:
        # Another process may have made it meanwhile; a folder that is there can't be replaced.
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def kept(checkpoint: Path, target: Path) -> Path:
    """Put the demo's checkpoint in a folder of the user's, whole or not at all.

    What is there already is left alone.

    Returns:
        The folder.

    Raises:
        LoadkitError: something else is there, or it can't be written.
    """
    if target.is_dir() and any(target.iterdir()):
        if _same_files(checkpoint, target):
            return target
        raise LoadkitError(
            f"--keep {target}: something else is there already\n"
            "    fix: name a folder that isn't there yet, or an empty one"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=target.parent, prefix=".unfinished-"))
        try:
            os.replace(shutil.copytree(checkpoint, beside / "checkpoint"), target)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise LoadkitError(f"--keep {target}: it can't be written: {error.strerror or error}") from error
    return target


def _same_files(one: Path, other: Path) -> bool:
    """Whether a folder holds every file of another, byte by byte."""
    names = [path.name for path in one.iterdir()]
    return filecmp.cmpfiles(one, other, names, shallow=False)[0] == names


def train_a_few_steps(
    model: Any, processing_class: Any, *, steps: int = 8, on_step: Callable[[int, float], None] | None = None
) -> list[float]:
    """Train what has `requires_grad` on one batch of short conversations, with a plain torch loop.

    With a processor the conversations are about pictures. `on_step` is given each step, from 1 on, and its
    loss before it, in nats a token; so are those that are returned.
    """
    import torch

    batch = _batch(processing_class).to(model.device)
    if "pixel_values" in batch:
        batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    model.train()
    losses = []
    for step in range(1, steps + 1):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if on_step:
            on_step(step, losses[-1])
    return losses


def _batch(processing_class: Any) -> Any:
    """Input ids, attention mask and labels, with pixel values where the processor takes images."""
    with_images = hasattr(processing_class, "image_processor")
    tokenizer = processing_class.tokenizer if with_images else processing_class
    padding = {"padding": True, "padding_side": "right"}
    batch = processing_class.apply_chat_template(
        _conversations(with_images),
        chat_template=None if tokenizer.chat_template else chat_template(),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **({"processor_kwargs": padding} if with_images else padding),
    )
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    for token in getattr(processing_class, "image_token_ids", []):
        labels = labels.masked_fill(labels == token, IGNORED)
    batch["labels"] = labels
    return batch


def _conversations(with_images: bool) -> list[list[dict[str, Any]]]:
    if not with_images:
        return [_turns(question, answer) for question, answer in CONVERSATIONS[:8]]
    from PIL import Image

    question = {"type": "text", "text": "Which colour is the picture?"}
    return [
        _turns(
            [{"type": "image", "image": Image.new("RGB", (48, 48), colour)}, question],
            [{"type": "text", "text": answer}],
        )
        for colour, answer in PICTURES
    ]


def _turns(question: Any, answer: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _fingerprint(recipe: Recipe) -> str:
    made_of = msgspec.json.encode([recipe, CONVERSATIONS, PICTURES, chat_template()])
    return hashlib.sha256(made_of).hexdigest()[:12]

"""Make a checkpoint folder from a recipe."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from loadkit.errors import LoadkitError
from loadkit.testing.checkpoints.architectures import ARCHITECTURES, Recipe
from loadkit.testing.checkpoints.tokenizers import make_tokenizer

__all__ = [
    "DTYPES",
    "ask",
    "make_checkpoint",
    "merged_config",
    "no_progress_bars",
    "seeded",
    "whole_or_absent",
    "write_recipe",
]

DTYPES = ("bfloat16", "float16", "float32")
"""The dtypes that a checkpoint can be stored in."""

SPREAD = 0.02
"""Standard deviation of what is added to weights that their model starts from a constant."""

T = TypeVar("T")


def make_checkpoint(
    folder: str | Path,
    arch: str = "mistral",
    *,
    dtype: str = "bfloat16",
    seed: int = 0,
    shards: int = 1,
    tokenizer: bool = True,
    **overrides: Any,
) -> Path:
    """Make a tiny, complete checkpoint of random weights, as `save_pretrained` writes it.

    Equal arguments give files of equal bytes, and torch's random state is left as it was. An interrupted call
    removes the folder that it made. Weights that an earlier call left in the folder are replaced.

    Parameters:
        folder: where to, which is returned; made if it isn't there.
        arch: a key of `ARCHITECTURES`.
        dtype: what the weights are stored in: "bfloat16", "float16" or "float32".
        seed: of the random weights.
        shards: the most files the weights are spread over, with an index if there are several.
        tokenizer: whether to write the tokenizer, or the processor of a vision-language model.
        overrides: further keys of the config; one that is a nested config is merged into the recipe's.

    Raises:
        LoadkitError: where `arch` or `dtype` isn't one of those, or `shards` isn't positive.
    """
    recipe = ask("arch", arch, ARCHITECTURES)
    ask("dtype", dtype, {name: name for name in DTYPES})
    if shards < 1:
        raise LoadkitError(f"can't make a checkpoint of shards={shards}: give 1 or more")
    recipe = msgspec.structs.replace(recipe, config=merged_config(recipe.config, overrides))
    return write_recipe(Path(folder), recipe, dtype, seed, shards, tokenizer)


def write_recipe(
    folder: Path,
    recipe: Recipe,
    dtype: str = "bfloat16",
    seed: int = 0,
    shards: int = 1,
    tokenizer: bool = True,
) -> Path:
    """Make a checkpoint from a recipe of one's own; the parameters are those of `make_checkpoint`."""
    import torch

    config_class, model_class = _class(recipe.config_class), _class(recipe.model_class)
    if not recipe.model_class.isidentifier():
        # save_pretrained then copies the code and writes `auto_map`
        config_class.register_for_auto_class()
        model_class.register_for_auto_class(recipe.auto_class)
    with seeded(seed):
        model = model_class(config_class(**recipe.config))
        _spread(model)
    with whole_or_absent(folder):
        _save(model.to(getattr(torch, dtype)), folder, shards)
        if tokenizer:
            _processing_class(recipe).save_pretrained(folder)
    return folder


@contextmanager
def whole_or_absent(folder: Path) -> Iterator[None]:
    """Remove the folder again where filling it fails; one that was there before stays, with what is in it."""
    was_there = folder.exists()
    try:
        yield
    except BaseException:
        if not was_there:
            shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator, and put its state back at the end; accelerators' are left as they are."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing a bar for a load or a save that takes no time."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def ask(what: str, name: str, table: Mapping[str, T]) -> T:
    """Look a name up; raise a `LoadkitError` that lists the known ones where it isn't there."""
    if name not in table:
        raise LoadkitError(
            f"can't make a checkpoint of {what}={name!r}: choose one of {', '.join(sorted(table))}"
        )
    return table[name]


def _class(reference: str) -> Any:
    module, _, name = reference.rpartition(":")
    return getattr(importlib.import_module(module or "transformers"), name)


def merged_config(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what overrides it, nested configs merged in their turn."""
    merged = {**config, **overrides}
    for key, value in overrides.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            merged[key] = merged_config(config[key], value)
    return merged


def _spread(model: Any) -> None:
    """Make no weight constant, so that one a loader forgot can be told from one it read."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(torch.randn_like(parameter) * SPREAD)


def _save(model: Any, folder: Path, shards: int) -> None:
    """Save the weights in no more than so many files; tensors stay whole, so not every number can be had."""
    size = sum(p.nbytes for p in model.parameters()) // shards + 1
    while True:
        # from_pretrained would read an older model.safetensors rather than the index written beside it.
        for old in folder.glob("model*.safetensors*"):
            old.unlink()
        with no_progress_bars():
            model.save_pretrained(folder, max_shard_size=size)
        if len(list(folder.glob("*.safetensors"))) <= shards:
            return
        size += size // 10


def _processing_class(recipe: Recipe) -> Any:
    tokenizer = make_tokenizer(recipe.special_tokens)
    if not recipe.processor_class:
        return tokenizer
    image_processor = _class(recipe.image_processor_class)(**recipe.image_processor)
    return _class(recipe.processor_class)(
        image_processor=image_processor,
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
        **recipe.processor,
    )

"""Tiny real checkpoints, made on the spot: for tests, for authors of plugins, and for `loadkit demo`.

    from loadkit.testing.checkpoints import make_checkpoint

    folder = make_checkpoint("some/folder", "gemma3", shards=2)

They are what `save_pretrained` writes, with a trained tokenizer or a working processor, and random weights of
a megabyte or less. Nothing is downloaded, and torch is imported when the first one is made.
"""

from loadkit.testing.checkpoints.architectures import ARCHITECTURES, Recipe
from loadkit.testing.checkpoints.derived import make_adapter, make_pickle_only, make_prequantized
from loadkit.testing.checkpoints.make import make_checkpoint

__all__ = [
    "ARCHITECTURES",
    "Recipe",
    "make_adapter",
    "make_checkpoint",
    "make_pickle_only",
    "make_prequantized",
]

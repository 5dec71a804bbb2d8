"""Saving what was trained: the files say of the key-value cache what the checkpoint said, not what training needed."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from loadkit.audit.model_access import configs

__all__ = ["keep_own_cache", "own_cache", "saves_own_cache"]


@contextmanager
def own_cache(model: Any, own: Mapping[str, bool]) -> Iterator[None]:
    """Let every config hold the checkpoint's own `use_cache` for a while.

    Parameters:
        model: a `transformers.PreTrainedModel`, or the `peft.PeftModel` around it.
        own: path of a nested config ("" for the outermost) to its value.
    """
    now = [(config, config.use_cache) for path, config in configs(model.config) if path in own]
    try:
        for path, config in configs(model.config):
            if path in own:
                config.use_cache = own[path]
        yield
    finally:
        for config, value in now:
            config.use_cache = value


def keep_own_cache(model: Any, own: Mapping[str, bool]) -> None:
    """Have the model's own `save_pretrained`, which trainers call, write the checkpoint's own `use_cache`.

    Parameters:
        model: a `transformers.PreTrainedModel`; its `save_pretrained` is replaced on this one object.
        own: as `own_cache` takes it.
    """
    model._loadkit_own_cache = dict(own)
    model.save_pretrained = types.MethodType(saves_own_cache, model)


def saves_own_cache(self: Any, *args: Any, **kwargs: Any) -> Any:
    """`save_pretrained` of the model's class, with the checkpoint's own `use_cache` in the files."""
    with own_cache(self, self._loadkit_own_cache):
        return type(self).save_pretrained(self, *args, **kwargs)

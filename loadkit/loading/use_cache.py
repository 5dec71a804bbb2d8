"""`use_cache` at every depth of a config: set for the load, turned on for inference, saved as it was."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from loadkit.audit.model_access import configs

__all__ = ["own_use_cache", "save_own_use_cache", "saves_own_use_cache", "set_use_cache", "with_use_cache"]


def set_use_cache(config: Any, value: bool | None) -> dict[str, bool]:
    """Set it wherever a config has it; path of each ("" for the outermost) to before. None sets nothing."""
    if value is None:
        return {}
    own = {path: nested.use_cache for path, nested in configs(config) if hasattr(nested, "use_cache")}
    _set(config, dict.fromkeys(own, value))
    return own


@contextmanager
def own_use_cache(model: Any, own: Mapping[str, bool]) -> Iterator[None]:
    """Let every config of a model hold the checkpoint's own value, from `set_use_cache`, for a while."""
    now = {path: config.use_cache for path, config in configs(model.config) if path in own}
    _set(model.config, own)
    try:
        yield
    finally:
        _set(model.config, now)


def save_own_use_cache(model: Any, own: Mapping[str, bool]) -> None:
    """Have this one model's `save_pretrained`, which trainers call, write the checkpoint's own values."""
    model._loadkit_own_cache = dict(own)
    model.save_pretrained = types.MethodType(saves_own_use_cache, model)


def saves_own_use_cache(self: Any, *args: Any, **kwargs: Any) -> Any:
    """`save_pretrained` of the model's class, with the checkpoint's own `use_cache` in the files."""
    with own_use_cache(self, self._loadkit_own_cache):
        return type(self).save_pretrained(self, *args, **kwargs)


def with_use_cache(model: Any) -> list[Any]:
    """Every config of a model that has it: at every depth, those of decoders, and the generation config.

    T5 and its kin give encoder and decoder copies of their config, and an encoder's is always off.
    """
    own = [config for _, config in configs(model.config)]
    held = [c for m in model.modules() if (c := getattr(m, "config", None)) is not None]
    decoders = [c for c in held if getattr(c, "is_decoder", False)]
    generation = getattr(model, "generation_config", None)
    every = [*own, *decoders, *([] if generation is None else [generation])]
    return list({id(config): config for config in every if hasattr(config, "use_cache")}.values())


def _set(config: Any, values: Mapping[str, bool]) -> None:
    for path, nested in configs(config):
        if path in values:
            nested.use_cache = values[path]

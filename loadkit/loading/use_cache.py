"""`use_cache` at every depth of a config: set for the load, turned on for inference, saved as it was."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from loadkit.audit.model_access import configs

__all__ = ["own_use_cache", "save_own_use_cache", "set_use_cache", "with_use_cache"]

OWN = "_loadkit_own_cache"
"""The attribute of a model with the checkpoint's own values."""

_lock = threading.Lock()


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
    """Have this model's `save_pretrained`, which trainers call, write the checkpoint's own values.

    Only a plain value is put on the model: it is pickled and copied as any other, reads where loadkit isn't,
    and holds nothing alive. transformers' own method looks for it, from the first load on: a method put on
    the model would refer back to it, and whatever wraps the model would take it for its own.
    """
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel):
        setattr(model, OWN, dict(own))
        with _lock:
            if not hasattr(PreTrainedModel.save_pretrained, OWN):
                PreTrainedModel.save_pretrained = _looking_for_own(PreTrainedModel.save_pretrained)


def _looking_for_own(save_pretrained: Any) -> Any:
    @functools.wraps(save_pretrained)
    def saving(self: Any, *args: Any, **kwargs: Any) -> Any:
        with own_use_cache(self, vars(self).get(OWN, {})):
            return save_pretrained(self, *args, **kwargs)

    setattr(saving, OWN, True)
    return saving


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

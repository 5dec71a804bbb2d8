"""`use_cache` at every depth of a config: set for the load, turned on for inference, saved as it was."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from loadkit.audit.model_access import configs

__all__ = ["own_use_cache", "save_own_use_cache", "set_use_cache", "with_use_cache"]


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
    """Have this one model's `save_pretrained`, which trainers call, write the checkpoint's own values.

    What is put on the model for it holds the model weakly, so that it is freed with its last reference, and
    isn't pickled with it: what was saved by `torch.save` reads wherever transformers is, as the plain model.
    A deep copy saves as the model does.
    """
    for name, put in (("save_pretrained", _Saving), ("__deepcopy__", _Copying), ("__getstate__", _Plain)):
        setattr(model, name, put(model, own))


class _OnModel:
    """Something that is called as a method of one model, which it doesn't keep alive."""

    def __init__(self, model: Any, own: Mapping[str, bool]) -> None:
        self._held = weakref.ref(model)
        self._own = dict(own)

    @property
    def _model(self) -> Any:
        return self._held()


class _Saving(_OnModel):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`save_pretrained` of the model's class, with the checkpoint's own `use_cache` in the files."""
        model = self._model
        with own_use_cache(model, self._own):
            return type(model).save_pretrained(model, *args, **kwargs)


class _Plain(_OnModel):
    def __call__(self) -> dict[str, Any]:
        """The model's state, for pickles and shallow copies, without anything of ours."""
        state = self._model.__dict__.items()
        return {name: value for name, value in state if not isinstance(value, _OnModel)}


class _Copying(_OnModel):
    def __call__(self, memo: dict[int, Any]) -> Any:
        """What `copy.deepcopy` makes of a plain model, and saves as this one does."""
        model = self._model
        make, given, state, *_ = model.__reduce_ex__(4)
        memo[id(model)] = copied = make(*given)
        copied.__setstate__(copy.deepcopy(state, memo))
        save_own_use_cache(copied, self._own)
        return copied


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

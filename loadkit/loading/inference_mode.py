"""Between training and inference: the key-value cache and evaluation mode, turned on and taken back again."""

from __future__ import annotations

from typing import Any

from loadkit.loading.use_cache import with_use_cache

__all__ = ["InferenceMode"]


class InferenceMode:
    """A model in evaluation mode with its key-value cache on, until `undo()` or the end of a `with` block.

    Parameters:
        model: a `transformers.PreTrainedModel`, or the `peft.PeftModel` around it.
    """

    def __init__(self, model: Any) -> None:
        self._modes = [(module, module.training) for module in model.modules()]
        self._caches = [(config, config.use_cache) for config in with_use_cache(model)]
        model.eval()
        for config, _ in self._caches:
            config.use_cache = True

    def undo(self) -> None:
        """Give every module its mode, and every config its value, from before. A second time does nothing."""
        for module, training in self._modes:
            module.training = training
        for config, value in self._caches:
            config.use_cache = value
        self._modes, self._caches = [], []

    def __enter__(self) -> InferenceMode:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.undo()

"""Between training and inference: the key-value cache and evaluation mode, turned on and taken back again."""

from __future__ import annotations

from typing import Any

from loadkit.audit.model_access import configs

__all__ = ["InferenceMode", "cache_settings"]


class InferenceMode:
    """A model in evaluation mode with its key-value cache on, until `undo()` or the end of a `with` block.

    Parameters:
        model: a `transformers.PreTrainedModel`, or the `peft.PeftModel` around it.
    """

    def __init__(self, model: Any) -> None:
        self._modes = [(module, module.training) for module in model.modules()]
        self._caches = [(config, config.use_cache) for config in cache_settings(model)]
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


def cache_settings(model: Any) -> list[Any]:
    """Every config of a model that has a `use_cache`: at every depth, those of decoders, and the generation config.

    T5 and its kin give encoder and decoder copies of their config, and an encoder's is always off.
    """
    own = [config for _, config in configs(model.config)]
    held = [c for m in model.modules() if (c := getattr(m, "config", None)) is not None]
    decoders = [c for c in held if getattr(c, "is_decoder", False)]
    generation = getattr(model, "generation_config", None)
    every = [*own, *decoders, *([] if generation is None else [generation])]
    return list({id(config): config for config in every if hasattr(config, "use_cache")}.values())

"""How the core and plugins look into a loaded model: its base, configs, embeddings, packed parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from loadkit.facts.library.towers import tower_keys

__all__ = [
    "base_of",
    "configs",
    "input_embeddings",
    "is_packed",
    "output_embeddings",
    "tokenizer_of",
    "towers",
]


def base_of(model: Any) -> Any:
    """The bare model: the `transformers.PreTrainedModel` itself, or the one inside a `peft.PeftModel`."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def tokenizer_of(processing_class: Any) -> Any:
    """The tokenizer itself, or the one within a processor; None for None.

    Mistral's own tokenizer has one of another library within, which isn't it.
    """
    if hasattr(processing_class, "get_vocab"):
        return processing_class
    return getattr(processing_class, "tokenizer", processing_class)


def configs(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, config) for a transformers config and every nested one; the outermost is ""."""
    yield path, config
    for key in config.sub_configs:
        nested = getattr(config, key, None)
        if nested is not None and hasattr(nested, "sub_configs"):
            yield from configs(nested, f"{path}.{key}".lstrip("."))


def is_packed(parameter: Any) -> bool:
    """Whether a parameter is quantized: it has a class of a quantizer's own, or holds integers."""
    import torch

    plain = type(parameter) is torch.nn.Parameter and type(parameter.data) is torch.Tensor
    return not plain or not parameter.is_floating_point()


def input_embeddings(model: Any) -> Any:
    """The module that embeds token ids; None where the class doesn't tell (transformers' pp_formulanet)."""
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


def output_embeddings(model: Any) -> Any:
    """The output head; None where the class has none or doesn't tell."""
    try:
        return model.get_output_embeddings()
    except NotImplementedError:
        return None


def towers(model: Any) -> list[str]:
    """Names of the towers, which LoRA leaves alone: what is made from a sub-config beside the text's."""
    config = model.config
    text = config.get_text_config()
    nested = {key: part for key in config.sub_configs if (part := getattr(config, key, None)) is not None}
    beside = [
        nested[k] for k in tower_keys(nested, next((k for k, part in nested.items() if part is text), ""))
    ]
    return [
        name
        for name, module in model.named_modules()
        if name and any(getattr(module, "config", None) is part for part in beside)
    ]

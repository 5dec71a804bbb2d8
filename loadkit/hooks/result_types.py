"""What an estimating or acting hook may answer; another type is refused with the plugin's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from loadkit.facts.library.weight_roles import Weight
from loadkit.hooks.contained import shown
from loadkit.schema.quantized_weights import Opened, Packed

__all__ = ["ANSWERS", "wrong_type"]


class Kind(NamedTuple):
    """A type of answer: in words, and how to tell."""

    words: str
    fits: Callable[[Any], bool]


def _packed(answer: Any) -> bool:
    return isinstance(answer, Mapping) and all(isinstance(value, Packed) for value in answer.values())


def _weights(answer: Any) -> bool:
    return isinstance(answer, Sequence) and all(isinstance(item, Weight) for item in answer)


MODEL = Kind("a torch.nn.Module", lambda answer: callable(getattr(answer, "named_parameters", None)))
"""Recognized by what it has, as this module mustn't import torch."""

ANSWERS: Mapping[str, Kind] = {
    "loadkit_estimate_weights": Kind("a mapping of names to Packed", _packed),
    "loadkit_estimate_adapters": Kind("a sequence of Weight", _weights),
    "loadkit_build_quantization_config": Kind(
        "what from_pretrained takes as quantization_config",
        lambda answer: isinstance(answer, Mapping) or hasattr(answer, "quant_method"),
    ),
    "loadkit_load_model": MODEL,
    "loadkit_decode_stored": Kind("a mapping", lambda answer: isinstance(answer, Mapping)),
    "loadkit_compare_tensor": Kind("words", lambda answer: isinstance(answer, str)),
    "loadkit_open_parameter": Kind("an Opened", lambda answer: isinstance(answer, Opened)),
    "loadkit_fit_vocabulary": MODEL,
    "loadkit_dequantize": MODEL,
    "loadkit_prepare_quantized": MODEL,
    "loadkit_freeze": MODEL,
    "loadkit_checkpoint_activations": MODEL,
    "loadkit_enable_input_gradients": MODEL,
    "loadkit_attach_adapters": MODEL,
    "loadkit_merge_adapters": MODEL,
    "loadkit_finish_model": MODEL,
}
"""Hook to what it answers where it doesn't answer None."""


def wrong_type(hook: str, answer: Any) -> str:
    """What is wrong with an answer other than None, in words; "" where nothing is."""
    kind = ANSWERS.get(hook)
    if kind is None or kind.fits(answer):
        return ""
    return f"it answered {shown(answer)}; this hook returns {kind.words}, or None"

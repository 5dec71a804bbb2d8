"""Fields of a stored quantization config that transformers' own class refuses: told instead of raised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from loadkit_plugins.prequantized.method import Method

__all__ = ["PAIR", "TORCHAO", "refused_fields"]

PAIR = "two positive numbers, or null"
TORCHAO = "a mapping of 'default' to a config of torchao"


def refused_fields(method: Method, options: Mapping[str, Any]) -> Iterator[str]:
    """What the config says that its class doesn't take, each with what it takes."""
    for field, taken in method.accepts.items():
        if field not in options:
            if taken == TORCHAO:
                yield f"no {field}, which is {TORCHAO}"
            continue
        value = options[field]
        word = value.lower() if isinstance(value, str) and field in CASELESS else value
        if SHAPES[taken](value) if isinstance(taken, str) else word in taken:
            continue
        yield f"{field}={value!r}, which is {taken if isinstance(taken, str) else ' or '.join(map(repr, taken))}"


CASELESS = ("activation_scheme", "method", "version")
"""Fields that their classes read in small letters."""


def _pair(value: Any) -> bool:
    if value is None:
        return True
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(n, int) and n > 0 for n in value)
    )


def _torchao(value: Any) -> bool:
    return (
        isinstance(value, Mapping) and list(value) == ["default"] and "_type" in dict(value["default"] or {})
    )


SHAPES: Mapping[str, Callable[[Any], bool]] = {PAIR: _pair, TORCHAO: _torchao}

"""What PEFT's config classes refuse when they are made, and the fields of configs within them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from loadkit import Adapter, Context, Problem
from loadkit.plugins import did_you_mean, fits

__all__ = ["check_config", "in_words"]

_problem = partial(Problem, "adapter", "adapter")

AFTERWARDS = ("lora_dropout",)
"""Fields that loadkit sets after the config was made."""


def check_config(context: Context, adapter: Adapter, said: Callable[[str], str]) -> Iterator[Problem]:
    """What making the config of a new adapter comes to.

    Parameters:
        said: a field to the words for who gave it, and what.
    """
    for name, field in context.peft_fields(adapter.peft_type).items():
        value = adapter.options.get(name)
        if field.config and isinstance(value, dict):
            yield from _nested(context, adapter.peft_type, field.config, value, said(name))
    given = {name: value for name, value in adapter.options.items() if name not in AFTERWARDS}
    if refused := context.peft_refusal(adapter.peft_type, given):
        named = [said(name) for name in given if re.search(rf"\b{name}\b", refused)]
        yield _problem(
            "peft-refuses",
            f"{' and '.join(named) or f'the adapter is one of {adapter.peft_type}'}, and PEFT refuses such a config: {refused}",
            "correct the fields that it names, in the peft_config",
        )


def _nested(
    context: Context, peft_type: str, config: str, given: Mapping[str, Any], said: str
) -> Iterator[Problem]:
    """A config within the config: PEFT leaves out what it doesn't know of it, without a word."""
    fields = context.peft_fields(peft_type, config)
    for key, value in given.items() if fields else ():
        if key not in fields:
            yield _problem(
                "unknown-field",
                f"{said}, and {config} has no field {key!r}{did_you_mean(key, fields)}",
                f"its fields are {', '.join(sorted(fields))}",
            )
        elif not fits(fields[key].annotation, value, loosely=True):
            yield _problem(
                "bad-field",
                f"{said}: {key}={value!r} is a {type(value).__name__}, and the field takes {in_words(fields[key].annotation)}",
                f"correct it: {key} is {fields[key].default!r} by default",
            )
    if refused := context.peft_refusal(peft_type, given, config):
        yield _problem(
            "peft-refuses", f"{said}, and PEFT refuses it: {refused}", f"correct {config}'s fields"
        )


def in_words(annotation: str) -> str:
    """A type annotation as a message has it."""
    text = annotation
    while (simpler := re.sub(r"\b(Optional|Union)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]", _spelt, text)) != text:
        text = simpler
    return re.sub(r" ?\| ?", " or ", text)


def _spelt(match: re.Match[str]) -> str:
    inner = re.sub(r", (?![^\[]*\])", " or ", match[2]) if match[1] == "Union" else match[2]
    return f"{inner} or None" if match[1] == "Optional" else inner

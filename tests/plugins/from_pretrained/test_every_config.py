"""Every config class of transformers: its own fields pass as model_kwargs; what it refuses doesn't."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from examples import checkpoint, context_of

from loadkit.facts.library.annotations import fits
from loadkit_plugins.model_kwargs import config_problems
from loadkit_plugins.rope import config_class

CONTENT = ("rope_parameters", "rope_scaling")
"""Fields that are looked into: their defaults aren't always what a load takes."""

JUNK: tuple[Any, ...] = ("two", 7, 2.5, True, [1], ["a"], {"a": 1}, None)


@cache
def made() -> dict[str, Any]:
    """Every model type to its default config, those left out that have none."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    found = {}
    for model_type in sorted(CONFIG_MAPPING_NAMES):
        try:
            found[model_type] = CONFIG_MAPPING[model_type]()
        except Exception:  # noqa: PERF203 - it needs a package or arguments
            continue
    return found


@pytest.mark.slow
def test_every_field_of_every_config_is_taken() -> None:
    wrong = {}
    seen = unknown = 0
    for model_type, config in made().items():
        facts = context_of(checkpoint({"model_type": model_type}, tensors={}))
        own = config_class(facts)
        assert own is not None, model_type
        given = {k: v for k, v in config.to_dict().items() if not k.startswith("_") and k not in CONTENT}
        found = [p.message for p in config_problems(facts, own, given, given, "you")]
        unknown += len(
            [
                p
                for p in config_problems(facts, own, given, {"model_type": ""}, "you")
                if "." not in p.message[:40]
            ]
        )
        seen += len(given)
        if found:
            wrong[model_type] = found
    assert wrong == {}
    assert seen > 10_000
    assert unknown < 0.01 * seen  # set by other ways than its declaration, and in config.json wherever it is


def junk(own: Any, config: Any) -> Iterator[tuple[str, Any]]:
    strict = type(config).__validators__
    for name in own.types:
        if name in strict and not isinstance(type(config).__dataclass_fields__[name].type, str):
            for value in JUNK:
                if not (isinstance(value, dict) and name in own.sub_config_classes):
                    yield name, value


@pytest.mark.slow
def test_values_are_refused_where_the_config_refuses_them() -> None:
    wrong = []
    refused = missed = 0
    for model_type, config in made().items():
        own = config_class(context_of(checkpoint({"model_type": model_type}, tensors={})))
        for name, value in junk(own, config):
            try:
                for validator in type(config).__validators__[name]:
                    validator(value)
            except (TypeError, ValueError):
                refused += 1
                missed += fits(own.types[name], value)  # type: ignore[union-attr]
                continue
            if not fits(own.types[name], value):  # type: ignore[union-attr]
                wrong.append((model_type, name, value))
    assert wrong == []
    assert refused > 10_000
    assert missed < 0.01 * refused  # ranges, and names for types that are declared elsewhere

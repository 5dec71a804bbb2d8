"""LK4: what it registers of an architecture is true."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

from loadkit.errors import PlanError
from loadkit.schema.values import Architecture, Supported, Unsupported
from loadkit.testing.checks.loading import loaded
from loadkit.testing.kit import NotApplicable, Unmet, check
from loadkit.testing.scenarios import Scenario
from loadkit.testing.subjects import Subject

__all__ = ["registered"]

rule = partial(check, "facts")


@rule(
    "LK401",
    "What an architecture names can be imported.",
    'write "module:Class", and see that both are there',
)
def references(subject: Subject, scenario: Scenario) -> None:
    for architecture in registered(subject):
        for reference in (architecture.config, architecture.processing_class, *architecture.models.values()):
            if reference:
                _imported(architecture.model_type, reference)


@rule(
    "LK402", "The config class round-trips.", "give every field a default, and keep model_type on the class"
)
def config_round_trips(subject: Subject, scenario: Scenario) -> None:
    own = [a for a in registered(subject) if a.config]
    if not own:
        raise NotApplicable("it registers no config class")
    for architecture in own:
        config_class = _imported(architecture.model_type, architecture.config)
        found = getattr(config_class, "model_type", "")
        if found != architecture.model_type:
            raise Unmet(
                f"{architecture.config} is of model type {found!r}, and is registered for {architecture.model_type!r}"
            )
        try:
            first = config_class()
            again = config_class.from_dict(first.to_dict())
        except Exception as error:
            raise Unmet(
                f"{architecture.config} can't be made from its own values: {type(error).__name__}: {error}"
            ) from error
        if again.to_dict() != first.to_dict():
            raise Unmet(f"{architecture.config} isn't the same after a round trip through a dictionary")


@rule(
    "LK403",
    "What it says of attention holds.",
    "claim Supported for what runs, Unsupported with a reason for what doesn't",
    scenarios="loaded",
)
def attention(subject: Subject, scenario: Scenario) -> None:
    own = {a.model_type: a for a in registered(subject)}
    first = loaded(subject, scenario)
    architecture = own.get(first.plan.checkpoint.model_type)
    if architecture is None or not architecture.attention:
        raise NotApplicable("it says nothing of the attention of this model type")
    if architecture.models and first.plan.model_class.model_class not in architecture.models.values():
        raise NotApplicable(
            "what it says of attention is of its own classes, and others serve in this scenario"
        )
    for name, support in architecture.attention.items():
        asked = scenario.options | {"attn_implementation": name}
        if isinstance(support, Unsupported):
            try:
                loaded(subject, scenario, asked)
            except PlanError:
                continue
            raise Unmet(
                f"{name} is said to be unsupported ({support.reason}), and is loaded when it is asked for"
            )
        if isinstance(support, Supported) and "flash" not in name:
            try:
                effective = loaded(subject, scenario, asked).model.config._attn_implementation
            except PlanError as error:
                raise Unmet(
                    f"{name} is said to be supported, and asking for it is refused: {error.problems[0].message}"
                ) from error
            if effective != name:
                raise Unmet(f"{name} is said to be supported, and {effective} runs when it is asked for")


def registered(subject: Subject) -> tuple[Architecture, ...]:
    """The architectures of the plugin."""
    hook = subject.hooks().get("loadkit_architectures")
    if hook is None:
        raise NotApplicable("it registers no architecture")
    return tuple(hook())


def _imported(model_type: str, reference: str) -> Any:
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise Unmet(f"{reference!r} of {model_type!r} can't be imported: {error}") from error

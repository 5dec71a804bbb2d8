"""Scenarios that follow from what a plugin declares: each option given, each profile, each architecture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loadkit.testing.scenarios import Scenario

if TYPE_CHECKING:
    from loadkit.testing.subjects import Subject

__all__ = ["Tried", "everywhere", "own_scenarios"]

VALUES: Mapping[str, Sequence[Any]] = {
    "bool": (True, False),
    "float": (0.5,),
    "int": (1, 16),
    "list": (["lm_head"],),
    "mapping": ({"a": 1},),
    "str": ("a",),
    "names or str": ("a",),
    "places or str": ("a",),
    "sizes": ({"0": "1GiB"},),
}
"""Type of an option to values that it may be given; of two types the first counts."""


class Tried(Scenario, frozen=True, kw_only=True):
    """A situation in which an option has a value that is only a guess: refusing it is right."""


def own_scenarios(subject: Subject) -> tuple[Scenario, ...]:
    """A scenario for each option with each value that it may have, each profile and each architecture."""
    return tuple(_scenarios(subject))


def everywhere(subject: Subject) -> tuple[Scenario, ...]:
    """Every scenario that a plugin is planned in."""
    return (*subject.ready, *own_scenarios(subject), *subject.asked)


def _scenarios(subject: Subject) -> Iterator[Scenario]:
    provided = subject.provided()
    for option in provided.options:
        sure = bool(option.choices) or option.type.startswith("bool")
        for value in option.choices or VALUES.get(option.type) or VALUES[option.type.split(" or ")[0]]:
            made = Scenario if sure else Tried
            yield made(name=f"{option.name}={value!r} given", options={option.name: value})
    for profile in provided.profiles:
        yield Scenario(name=f"its profile {profile.name!r}", profile=profile.name)
        yield Scenario(name=f"its profile {profile.name!r} on A100", profile=profile.name, machine="A100")
    for architecture in provided.architectures:
        named = [reference.partition(":")[2] or reference for reference in architecture.models.values()]
        config = {"model_type": architecture.model_type, "architectures": named[:1], "dtype": "bfloat16"}
        for asked in ("", "qlora"):
            yield Scenario(
                name=f"a {architecture.model_type}, {asked or 'nothing asked for'}",
                config=config,
                profile=asked,
            )

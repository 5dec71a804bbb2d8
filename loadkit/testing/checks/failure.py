"""LK6: what goes wrong is said by loadkit's errors, with the plugin's name and a remedy."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from loadkit.errors import Problem
from loadkit.testing.kit import NotApplicable, Unmet, check
from loadkit.testing.own_scenarios import Tried, everywhere, own_scenarios
from loadkit.testing.scenarios import PLAIN, Scenario
from loadkit.testing.subjects import Subject, listed

__all__ = ["STRANGE_FIELDS", "STRANGE_VALUES"]

UNENCODABLE = "\N{PILE OF POO}"
STRANGE_VALUES: tuple[Any, ...] = (object(), -(10**9), UNENCODABLE, [UNENCODABLE], {UNENCODABLE: None})

STRANGE_FIELDS: tuple[dict[str, Any], ...] = (
    {},
    {"model_type": None},
    {"text_config": 5, "vision_config": []},
    {"quantization_config": {"quant_method": 7}},
    {"num_hidden_layers": "many", "vocab_size": -1},
)
"""Fields that anybody's config.json may hold, over that of the scenario."""

rule = partial(check, "failure")


@rule(
    "LK601",
    "Values that an option can't have are refused.",
    "check what your options hold in loadkit_check_plan, and answer with Problems",
)
def bad_options(subject: Subject, scenario: Scenario) -> None:
    hook = subject.hooks().get("loadkit_options")
    if hook is None:
        raise NotApplicable("it declares no options")
    fails_anyhow(subject, scenario)
    for tried in own_scenarios(subject):
        if isinstance(tried, Tried) and (failure := subject.trace(tried).failure):
            raise Unmet(f"{tried.name} makes it fail: {failure}")
    for option in subject.provided().options:
        for value in STRANGE_VALUES:
            asked = msgspec.structs.replace(PLAIN, options={option.name: value})
            _orderly(subject, asked, f"{option.name}={value!r}")


@rule(
    "LK602",
    "A package that isn't there is told.",
    "look at context.machine.packages, and answer with a Problem",
    scenarios="planned",
)
def missing_packages(subject: Subject, scenario: Scenario) -> None:
    fails_anyhow(subject, scenario)
    bare = msgspec.structs.replace(scenario, machine="bare", topology="alone")
    _orderly(subject, bare, "a machine without any package")


@rule(
    "LK603",
    "A strange config breaks nothing.",
    "check the types of what you read from a checkpoint's config",
    scenarios="planned",
)
def strange_configs(subject: Subject, scenario: Scenario) -> None:
    fails_anyhow(subject, scenario)
    for fields in STRANGE_FIELDS:
        # On one machine, as what a config makes of it is the same on all: most scenarios are one then.
        config = {**scenario.config, **fields}
        odd = msgspec.structs.replace(scenario, config=config, machine="CPU", topology="alone")
        _orderly(subject, odd, f"a config with {fields}")


@rule(
    "LK604",
    "Every problem names the plugin and a remedy.",
    "fill in plugin, message and remedy",
    scenarios="planned",
)
def whole_problems(subject: Subject, scenario: Scenario) -> None:
    for machine in (scenario.machine, "bare", "T4"):
        for problem in _problems(subject, msgspec.structs.replace(scenario, machine=machine)):
            if not (problem.message.strip() and problem.remedy.strip() and problem.code.strip()):
                raise Unmet(
                    f"the problem {problem.code or problem.message!r} lacks a code, a message or a remedy"
                )


def _problems(subject: Subject, scenario: Scenario) -> list[Problem]:
    """What the plugin answered with while planning."""
    given = (value for answer in subject.trace(scenario).answers for value in listed(answer.value))
    return [value for value in given if isinstance(value, Problem)]


def _orderly(subject: Subject, scenario: Scenario, what: str) -> None:
    """Plan it: whatever comes of it, it isn't this plugin that breaks."""
    if broken := subject.trace(scenario).failure:
        raise Unmet(f"{what} makes it fail: {broken}")


def fails_anyhow(subject: Subject, scenario: Scenario) -> None:
    """A plugin that fails where it is asked for nothing strange has failed LK205 or LK601 for it."""
    if isinstance(scenario, Tried) and subject.trace(scenario).failure:
        raise NotApplicable("it fails as it is (LK601)")
    for each in everywhere(subject):
        if not isinstance(each, Tried) and subject.trace(each).failure:
            raise NotApplicable("it fails as it is (LK205)")

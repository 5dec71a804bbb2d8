"""LK2: its functions are hooks as loadkit calls them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import msgspec

from loadkit.errors import PlanError, Problem
from loadkit.hooks import hookspecs
from loadkit.hooks.manager import WRAPPABLE
from loadkit.request.options import Option
from loadkit.request.profiles import Profile
from loadkit.schema.claims import Claim
from loadkit.schema.stages import stage_named
from loadkit.schema.values import Architecture
from loadkit.testing.kit import NotApplicable, Unmet, check
from loadkit.testing.scenarios import Scenario, plan_of
from loadkit.testing.subjects import Answer, Subject, listed
from loadkit.text.suggest import did_you_mean

__all__ = ["answers"]

KNOWN = tuple(name for name in vars(hookspecs) if name.startswith("loadkit_"))
CHOOSE = "loadkit_choose_"
DECLARED: Mapping[str, type] = {
    "loadkit_options": Option,
    "loadkit_profiles": Profile,
    "loadkit_architectures": Architecture,
}

rule = partial(check, "contract")


@rule(
    "LK201",
    "Every function that is called like a hook is one.",
    "correct the name, and mark it with @loadkit.hookimpl",
)
def known_hooks(subject: Subject, scenario: Scenario) -> None:
    for name, function in _functions(subject):
        if name not in KNOWN:
            raise Unmet(f"{name} isn't a hook of loadkit{did_you_mean(name, KNOWN)}")
        if _marker(function) is None:
            raise Unmet(f"{name} isn't marked with @loadkit.hookimpl, so it is never called")


@rule(
    "LK202",
    "Hooks have annotations.",
    "annotate parameters and return value as the hook's specification does",
)
def annotated(subject: Subject, scenario: Scenario) -> None:
    for name, function in _functions(subject):
        signature = inspect.signature(function)
        bare = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name != "self"]
        if bare or signature.return_annotation is signature.empty:
            raise Unmet(f"{name} has no annotation for {', '.join(bare) or 'what it returns'}")


@rule(
    "LK203",
    "Only loading is wrapped.",
    "answer the decision with a claim of your own instead of changing others'",
)
def no_wrappers(subject: Subject, scenario: Scenario) -> None:
    for name, function in _functions(subject):
        marker = _marker(function) or {}
        if name != WRAPPABLE and (marker.get("wrapper") or marker.get("hookwrapper")):
            raise Unmet(f"{name} wraps what other plugins say")


@rule("LK204", "Hooks have no default arguments.", "take the parameters that you need, without defaults")
def no_defaults(subject: Subject, scenario: Scenario) -> None:
    for name, function in _functions(subject):
        given = [p.name for p in inspect.signature(function).parameters.values() if p.default is not p.empty]
        if given:
            raise Unmet(
                f"{name} has a default for {', '.join(given)}: pluggy never hands such a parameter over"
            )


@rule(
    "LK205",
    "Hooks return what their specification says.",
    "return a value of that type, or None for no opinion",
    scenarios="planned",
)
def right_types(subject: Subject, scenario: Scenario) -> None:
    for answer in answers(subject, scenario):
        if fault := _type_fault(answer):
            raise Unmet(f"{answer.hook} {fault}")


@rule("LK206", "What it declares is of the right type.", "return Options, Profiles and Architectures")
def declarations(subject: Subject, scenario: Scenario) -> None:
    for name, function in _functions(subject):
        if kind := DECLARED.get(name):
            try:
                wrong = [item for item in function() if not isinstance(item, kind)]
            except Exception as error:
                raise Unmet(f"{name} raises {type(error).__name__}: {error}") from error
            if wrong:
                raise Unmet(f"{name} gives {wrong[0]!r}; it gives {kind.__name__} values")


def answers(subject: Subject, scenario: Scenario) -> list[Answer]:
    """What the plugin answered while a scenario was planned, whether or not the plan could be made."""
    manager = subject.manager()
    try:
        plan_of(scenario, manager)
    except PlanError as error:
        failure = subject.failure_in(error)
        if failure and not manager.answered:
            raise Unmet(failure) from error
    return list(manager.answered)


def _functions(subject: Subject) -> Iterable[tuple[str, Callable[..., Any]]]:
    if subject.plugin is None:
        raise NotApplicable("it can't be imported (LK101)")
    return subject.hooks().items()


def _marker(function: Callable[..., Any]) -> Mapping[str, Any] | None:
    """What pluggy's marker left on a function."""
    found = getattr(function, f"{hookspecs.PROJECT}_impl", None)
    return found if isinstance(found, Mapping) else None


def _type_fault(answer: Answer) -> str:
    """What is wrong with the type of an answer; "" where nothing is."""
    if answer.hook.startswith(CHOOSE):
        stage = stage_named(answer.hook.removeprefix(CHOOSE))
        assert stage is not None
        for given in listed(answer.value):
            if not isinstance(given, Claim | Problem):
                return f"returned {given!r}; it returns a Claim, a Problem, several of them, or None"
            if isinstance(given, Claim):
                try:
                    msgspec.convert(msgspec.to_builtins(given.value), stage.type)
                except (msgspec.ValidationError, TypeError) as error:
                    return f"claims {given.value!r}, which isn't of the stage's type ({error})"
    elif answer.hook == "loadkit_check_plan":
        for given in listed(answer.value):
            if not isinstance(given, Problem):
                return f"returned {given!r}; it returns Problems"
    elif answer.hook == "loadkit_contribute_kwargs" and not isinstance(answer.value, Mapping):
        return f"returned {answer.value!r}; it returns a mapping of keyword to claim"
    return ""

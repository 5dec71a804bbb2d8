"""LK3: it minds its own business, and says so plainly."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from importlib import metadata
from typing import Any

import msgspec

from loadkit.errors import PlanError, PluginError
from loadkit.hooks.manager import PluginManager
from loadkit.schema.claims import Claim, Strength
from loadkit.testing.checks.contract import answers
from loadkit.testing.kit import NotApplicable, Unmet, check
from loadkit.testing.scenarios import PLAIN, Scenario, context_of, plan_of
from loadkit.testing.subjects import Subject, listed

__all__ = ["LONGEST"]

LONGEST = 600
"""Characters of a reason that still reads as one line of a plan, wrapped."""

UNASKED = "a plain Mistral that nobody asked anything of"

rule = partial(check, "manners")


@rule(
    "LK301",
    "It has no opinion on what doesn't concern it.",
    "return None for model types that aren't yours and options that nobody gave; a default for everybody is a fallback",
)
def abstains(subject: Subject, scenario: Scenario) -> None:
    for hook, answer in answers(subject, PLAIN):
        for claim in _claims(hook, answer):
            if claim.strength is not Strength.FALLBACK:
                raise Unmet(f"{hook} claims {claim.value!r} for {UNASKED}")
        if hook == "loadkit_contribute_kwargs" and answer:
            raise Unmet(f"{hook} adds {', '.join(answer)} to {UNASKED}")


@rule(
    "LK302", "It answers the same question the same way.", "decide from the facts alone", scenarios="planned"
)
def deterministic(subject: Subject, scenario: Scenario) -> None:
    first, second = ([(hook, repr(answer)) for hook, answer in answers(subject, scenario)] for _ in range(2))
    if first != second:
        differing = next((a[0] for a, b in zip(first, second, strict=False) if a != b), "one hook")
        raise Unmet(f"{differing} answers differently when it is asked again")


@rule(
    "LK303", "Every reason is one line.", "say why in one sentence, without line breaks", scenarios="planned"
)
def reasons(subject: Subject, scenario: Scenario) -> None:
    for hook, answer in answers(subject, scenario):
        for claim in _claims(hook, answer):
            if not claim.because.strip():
                raise Unmet(f"{hook} gives no reason for {claim.value!r}")
            if "\n" in claim.because or len(claim.because) > LONGEST:
                raise Unmet(
                    f"{hook} gives a reason of {len(claim.because)} characters: {claim.because[:80]!r}…"
                )


@rule("LK304", "It leaves the facts as they are.", "copy what you change", scenarios="planned")
def facts_unchanged(subject: Subject, scenario: Scenario) -> None:
    manager = subject.manager()
    context = context_of(scenario, manager)
    before = msgspec.json.encode(context)
    with suppress(PlanError):
        plan_of(scenario, manager, context)
    if msgspec.json.encode(context) != before:
        raise Unmet("the facts aren't what they were before it was asked")


@rule(
    "LK305",
    "It leaves the process as it is.",
    "change no environment variable, working directory or random state while planning",
    scenarios="planned",
)
def process_unchanged(subject: Subject, scenario: Scenario) -> None:
    manager = subject.manager()
    before = _process()
    with suppress(PlanError):
        plan_of(scenario, manager)
    changed = [name for name, value in _process().items() if value != before[name]]
    if changed:
        raise Unmet(f"planning changes {', '.join(changed)}")


@rule(
    "LK306",
    "It neither connects nor starts anything while planning.",
    "what has to be read is a fact that the core reads",
    scenarios="planned",
)
def no_network(subject: Subject, scenario: Scenario) -> None:
    manager = subject.manager()
    context = context_of(scenario, manager)  # outside: reading the index isn't the plugin's doing
    with _recorded_events() as events, suppress(PlanError):
        plan_of(scenario, manager, context)
    if events:
        raise Unmet(f"planning causes {events[0]}")


@rule(
    "LK307",
    "The order of registration changes nothing.",
    "rely on strengths and named stages, not on who comes first",
    scenarios="planned",
)
def any_order(subject: Subject, scenario: Scenario) -> None:
    subject.manager()  # raises where it can't be registered
    first, again, reversed_ = (_planned(subject, scenario, reverse) for reverse in (False, False, True))
    if first != again:
        raise NotApplicable("it answers differently when it is asked again (LK302)")
    if first != reversed_:
        raise Unmet("the plan isn't the same when plugins are registered the other way round")


def _planned(subject: Subject, scenario: Scenario, reverse: bool) -> str:
    """The plan as text, or what stops it, with the plugins registered by name, or the other way round."""
    manager = PluginManager(entry_points=False, environ={})
    everybody = dict(_everybody(subject))
    for name in sorted(everybody, reverse=reverse):  # somebody else's broken plugin isn't this one's fault
        try:
            manager.register(everybody[name], name)
        except PluginError:  # noqa: PERF203 - there are few
            if name == subject.name:
                raise
    try:
        return msgspec.structs.replace(plan_of(scenario, manager), plugins={}).to_json()
    except PlanError as error:
        return "\n".join(sorted(f"{p.code} {p.message}" for p in error.problems))


def _everybody(subject: Subject) -> Iterator[tuple[str, Any]]:
    for entry in metadata.entry_points(group="loadkit"):
        if entry.name != subject.name:
            try:
                yield entry.name, entry.load()
            except Exception:  # somebody else's broken plugin isn't this one's fault
                continue
    yield subject.name, subject.plugin


def _claims(hook: str, answer: Any) -> list[Claim[Any]]:
    if hook == "loadkit_contribute_kwargs" and isinstance(answer, dict):
        answer = [claim for value in answer.values() for claim in listed(value)]
    return [claim for claim in listed(answer) if isinstance(claim, Claim)]


def _process() -> dict[str, Any]:
    found: dict[str, Any] = {
        "the environment": dict(os.environ),
        "the working directory": os.getcwd(),
        "the random state": random.getstate(),
        "sys.path": list(sys.path),
    }
    if "torch" in sys.modules:
        import torch

        found |= {
            "torch's default dtype": torch.get_default_dtype(),
            "torch's random state": torch.initial_seed(),
            "CUDA, which is initialised": torch.cuda.is_initialized(),  # type: ignore[no-untyped-call]
        }
    return found


_EVENTS = (
    "socket.connect",
    "socket.getaddrinfo",
    "subprocess.Popen",
    "os.system",
    "os.posix_spawn",
    "os.exec",
)
_recordings: list[list[str]] = []


@contextmanager
def _recorded_events() -> Iterator[list[str]]:
    """Record connections and new processes."""
    _install_audit_hook()
    events: list[str] = []
    _recordings.append(events)
    try:
        yield events
    finally:
        _recordings.pop()


@cache
def _install_audit_hook() -> None:
    """Once, since Python keeps an audit hook for ever."""

    def record(event: str, args: tuple[Any, ...]) -> None:
        if event in _EVENTS and _recordings:
            _recordings[-1].append(event)

    sys.addaudithook(record)

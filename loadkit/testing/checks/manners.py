"""LK3: it minds its own business, and says so plainly."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from loadkit.errors import PlanError, PluginError
from loadkit.hooks.manager import PluginManager
from loadkit.schema.claims import Claim, Strength
from loadkit.testing.checks.contract import answers
from loadkit.testing.kit import NotApplicable, Unmet, check
from loadkit.testing.scenarios import PLAIN, Scenario, context_of, plan_of
from loadkit.testing.subjects import Said, Subject

__all__ = ["LONGEST"]

LONGEST = 600
"""Characters of a reason that still reads as one line of a plan, wrapped."""


@check(
    "LK301", "manners", "It has no opinion on what doesn't concern it.",
    "return None for model types that aren't yours and options that nobody gave; a default for everybody is a fallback",
)  # fmt: skip
def abstains(subject: Subject, scenario: Scenario) -> None:
    for said in answers(subject, PLAIN):
        for claim in _claims(said):
            if claim.strength is not Strength.FALLBACK:
                raise Unmet(
                    f"{said.hook} claims {claim.value!r} for a plain Mistral that nobody asked anything of"
                )
        if said.hook == "loadkit_contribute_kwargs" and said.answer:
            raise Unmet(
                f"{said.hook} adds {', '.join(said.answer)} to a plain Mistral that nobody asked anything of"
            )


@check(
    "LK302",
    "manners",
    "It answers the same question the same way.",
    "decide from the facts alone",
    scenarios="planned",
)
def deterministic(subject: Subject, scenario: Scenario) -> None:
    first, second = ([_plain(said) for said in answers(subject, scenario)] for _ in range(2))
    if first != second:
        differing = next((a[0] for a, b in zip(first, second, strict=False) if a != b), "one hook")
        raise Unmet(f"{differing} answers differently when it is asked again")


@check(
    "LK303",
    "manners",
    "Every reason is one line.",
    "say why in one sentence, without line breaks",
    scenarios="planned",
)
def reasons(subject: Subject, scenario: Scenario) -> None:
    for said in answers(subject, scenario):
        for claim in _claims(said):
            if not claim.because.strip():
                raise Unmet(f"{said.hook} gives no reason for {claim.value!r}")
            if "\n" in claim.because or len(claim.because) > LONGEST:
                raise Unmet(
                    f"{said.hook} gives a reason of {len(claim.because)} characters: {claim.because[:80]!r}…"
                )


@check("LK304", "manners", "It leaves the facts as they are.", "copy what you change", scenarios="planned")
def facts_unchanged(subject: Subject, scenario: Scenario) -> None:
    manager = _manager(subject)
    context = context_of(scenario, manager)
    before = msgspec.json.encode(context)
    with suppress(PlanError):
        plan_of(scenario, manager, context)
    if msgspec.json.encode(context) != before:
        raise Unmet("the facts aren't what they were before it was asked")


@check(
    "LK305", "manners", "It leaves the process as it is.",
    "change no environment variable, working directory or random state while planning", scenarios="planned",
)  # fmt: skip
def process_unchanged(subject: Subject, scenario: Scenario) -> None:
    manager = _manager(subject)
    before = _process()
    with suppress(PlanError):
        plan_of(scenario, manager)
    changed = [name for name, value in _process().items() if value != before[name]]
    if changed:
        raise Unmet(f"planning changes {', '.join(changed)}")


@check(
    "LK306", "manners", "It neither connects nor starts anything while planning.",
    "what has to be read is a fact that the core reads", scenarios="planned",
)  # fmt: skip
def no_network(subject: Subject, scenario: Scenario) -> None:
    manager = _manager(subject)
    context = context_of(
        scenario, manager
    )  # reading the index may start nothing either, but isn't the plugin's
    with _watched() as seen, suppress(PlanError):
        plan_of(scenario, manager, context)
    if seen:
        raise Unmet(f"planning causes {seen[0]}")


@check(
    "LK307", "manners", "The order of registration changes nothing.", "rely on strengths and named stages, not on who comes first",
    scenarios="planned",
)  # fmt: skip
def any_order(subject: Subject, scenario: Scenario) -> None:
    _manager(subject)
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
    from importlib import metadata

    for entry in metadata.entry_points(group="loadkit"):
        if entry.name != subject.name:
            try:
                yield entry.name, entry.load()
            except Exception:  # somebody else's broken plugin isn't this one's fault
                continue
    yield subject.name, subject.plugin


def _manager(subject: Subject) -> PluginManager:
    if subject.plugin is None:
        raise NotApplicable("it can't be imported (LK101)")
    return subject.manager()


def _claims(said: Said) -> list[Claim[Any]]:
    given: Any = said.answer
    if said.hook == "loadkit_contribute_kwargs" and isinstance(given, dict):
        given = [
            c for value in given.values() for c in (value if isinstance(value, list | tuple) else [value])
        ]
    return [c for c in (given if isinstance(given, list | tuple) else [given]) if isinstance(c, Claim)]


def _plain(said: Said) -> tuple[str, str]:
    return said.hook, repr(said.answer)


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
        }
        found["CUDA, which is initialised"] = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return found


_EVENTS = (
    "socket.connect",
    "socket.getaddrinfo",
    "subprocess.Popen",
    "os.system",
    "os.posix_spawn",
    "os.exec",
)
_listeners: list[list[str]] = []


@contextmanager
def _watched() -> Iterator[list[str]]:
    """Take down connections and processes; Python keeps an audit hook for ever, so there is one for all."""
    if not _listeners:
        sys.addaudithook(
            lambda event, args: (
                _listeners[-1].append(event) if event in _EVENTS and _listeners[-1] is not _DEAF else None
            )
        )
        _listeners.append(_DEAF)
    seen: list[str] = []
    _listeners.append(seen)
    try:
        yield seen
    finally:
        _listeners.remove(seen)


_DEAF: list[str] = ["nobody listens"]

"""LK1: the plugin arrives by itself, and costs nothing until it is used."""

from __future__ import annotations

import re
from functools import partial

import msgspec

from loadkit.testing.accounts import Account, Question
from loadkit.testing.kit import NotApplicable, Unmet, check
from loadkit.testing.processes import Silent, ask
from loadkit.testing.scenarios import PLAIN, Scenario
from loadkit.testing.subjects import Subject

__all__ = ["LONGEST_IMPORT"]

LONGEST_IMPORT = 0.5
"""Seconds that importing a plugin may take, when loadkit is there: the best of three tries counts."""

BY_HAND = "it was registered by hand, not announced by a distribution"

rule = partial(check, "packaging")


@rule("LK101", "The entry point can be imported.", "correct the entry point, or the module that it names")
def entry_point(subject: Subject, scenario: Scenario) -> None:
    if subject.entry is None:
        raise NotApplicable(BY_HAND)
    if subject.unfit:
        raise NotApplicable("loadkit doesn't import it as it is announced (LK103, LK107)")
    if subject.fault:
        raise Unmet(f"importing {subject.entry.value} {subject.fault}")


@rule("LK102", "Importing it imports no heavy library.", "import them in the bodies of the hooks that load")
def light_import(subject: Subject, scenario: Scenario) -> None:
    found = _import(subject)
    if found.failure:
        raise Unmet(f"importing {subject.module} in a process of its own fails: {found.failure}")
    if found.heavy:
        raise Unmet(f"importing {subject.module} imports {', '.join(found.heavy)}")


@rule(
    "LK103",
    "Its distribution requires loadkit, a version that there is.",
    'add "loadkit" to the dependencies in pyproject.toml, with the version that it needs',
)
def requires_loadkit(subject: Subject, scenario: Scenario) -> None:
    distribution = subject.entry.dist if subject.entry is not None else None
    if distribution is None:
        raise NotApplicable(BY_HAND)
    if distribution.name == "loadkit":
        raise NotApplicable("it comes with loadkit itself")
    if subject.unfit.startswith("its distribution requires"):
        raise Unmet(subject.unfit)
    required = {
        re.split(r"[\s;<>=!~\[(]", line, maxsplit=1)[0].lower() for line in distribution.requires or ()
    }
    if "loadkit" not in required:
        required_text = ", ".join(sorted(required)) or "nothing"
        raise Unmet(f"{distribution.name} requires {required_text}, and not loadkit")


@rule(
    "LK104",
    "Planning with it imports no heavy library.",
    "decide from the facts in context; what needs torch belongs into the hooks that load",
)
def light_planning(subject: Subject, scenario: Scenario) -> None:
    _module(subject)
    if subject.entry is None:
        raise NotApplicable("it was registered by hand: another process wouldn't find it")
    if reason := subject.unregistered:
        raise NotApplicable(f"it can't be registered: {reason}")
    try:
        (account,) = ask(question(subject, PLAIN))
    except Silent as said:
        subject.hung = "LK104"  # in this process it would end the run
        raise Unmet(f"planning in a process of its own fails: {said}") from said
    if account.heavy:
        raise Unmet(f"planning imports {', '.join(account.heavy)}")
    if account.failure:
        raise NotApplicable("it fails as it is (LK205)")


@rule(
    "LK105",
    "Importing it takes no time.",
    "do at import what every process needs, the rest when a hook needs it",
    since="1.1",
)
def quick_import(subject: Subject, scenario: Scenario) -> None:
    seconds = _light(subject).seconds
    for _ in range(2):
        if seconds <= LONGEST_IMPORT:
            return
        seconds = min(seconds, *(a.seconds for a in ask(_question_of_import(subject))), seconds)
    raise Unmet(f"importing {subject.module} takes {seconds:.1f} s; {LONGEST_IMPORT} s are much")


@rule(
    "LK106",
    "Importing it only defines things.",
    "change, read, start and print nothing at import: hooks are handed the facts that they need",
    since="1.1",
)
def inert_import(subject: Subject, scenario: Scenario) -> None:
    if seen := _light(subject).seen:
        raise Unmet(f"importing {subject.module} {seen[0]}")


@rule(
    "LK107",
    "Its name is its own.",
    "choose another name for the entry point; loadkit's own plugins keep theirs",
    since="1.1",
)
def own_name(subject: Subject, scenario: Scenario) -> None:
    if subject.entry is None:
        raise NotApplicable(BY_HAND)
    if subject.unfit and not subject.unfit.startswith("its distribution requires"):
        raise Unmet(subject.unfit)


def question(subject: Subject, *scenarios: Scenario) -> Question:
    """What another process has to know to plan scenarios with an installed plugin."""
    assert subject.entry is not None
    home = subject.entry.dist.name if subject.entry.dist else ""
    encoded = tuple(msgspec.Raw(msgspec.json.encode(s, enc_hook=repr)) for s in scenarios)
    return Question(plugin=subject.entry.name, distribution=home, scenarios=encoded)


def _import(subject: Subject) -> Account:
    """What importing it does in a process of its own, tried once for all that ask."""
    _module(subject)
    if subject.imported is None:
        try:
            (subject.imported,) = ask(_question_of_import(subject))
        except Silent as said:
            subject.imported = Account(failure=str(said))
    return subject.imported


def _light(subject: Subject) -> Account:
    """What importing it does, where it can be imported by itself and imports no heavy library."""
    found = _import(subject)
    if found.heavy or found.failure:
        raise NotApplicable("it imports heavy libraries, or can't be imported by itself (LK102)")
    return found


def _question_of_import(subject: Subject) -> Question:
    return Question(module=_module(subject), home=subject.home)


def _module(subject: Subject) -> str:
    if not subject.module:
        raise NotApplicable("it is an object, not a module")
    if subject.unfit:
        raise NotApplicable("loadkit doesn't import it as it is announced (LK103, LK107)")
    if subject.fault:
        raise NotApplicable("it can't be imported (LK101)")
    return subject.module

"""LK3: it minds its own business, and says so plainly."""

from __future__ import annotations

from functools import partial
from typing import Any

from loadkit.schema.claims import Claim, Strength
from loadkit.schema.finishes import Finish
from loadkit.testing.checks.contract import answers
from loadkit.testing.checks.packaging import question
from loadkit.testing.kit import NotApplicable, Unmet, check
from loadkit.testing.own_scenarios import everywhere
from loadkit.testing.processes import ask, told
from loadkit.testing.scenarios import OTHERS, PLAIN, Scenario
from loadkit.testing.set_order import orders_of_sets
from loadkit.testing.subjects import Subject, listed
from loadkit.testing.traces import planned
from loadkit.testing.watching import Kind

__all__ = ["LONGEST"]

LONGEST = 600
"""Characters of a reason that still reads as one line of a plan, wrapped."""

SEEDS = (1, 2, 3, 4)
"""Of the hashes of texts, a process each, for a plugin that has sets: two entries come the same way round in
all of them, and here, once in sixteen."""

rule = partial(check, "manners")


@rule(
    "LK301",
    "It has no opinion on what doesn't concern it.",
    "return None for model types that aren't yours and options that nobody gave; a default for everybody is a fallback",
)
def abstains(subject: Subject, scenario: Scenario) -> None:
    if said := _opinion(subject, PLAIN):
        raise Unmet(f"{said} a plain Mistral that nobody asked anything of")
    concerned = {s.config["model_type"]: said for s in OTHERS if (said := _opinion(subject, s))}
    if len(concerned) > len(OTHERS) / 2:
        kind, said = next(iter(concerned.items()))
        raise Unmet(f"{said} a plain {kind} that nobody asked anything of, and has opinions on most others")


@rule(
    "LK302", "It answers the same question the same way.", "decide from the facts alone", scenarios="planned"
)
def deterministic(subject: Subject, scenario: Scenario) -> None:
    if said := _unlike(subject, scenario):
        subject.undecided = True
        raise Unmet(said)


def _unlike(subject: Subject, scenario: Scenario) -> str:
    """How a second answer differs from the first, here or in another process; "" where none does."""
    first, again = subject.trace(scenario), subject.trace(scenario, again=True)
    for one, other in zip(told(first.answers), told(again.answers), strict=False):
        if one != other:
            return f"{one.partition(' ')[0]} answers differently when it is asked again"
    if len(first.answers) != len(again.answers):
        return "a hook that answers doesn't when it is asked again"
    if not first.answers or subject.entry is None or not orders_of_sets(subject):
        return ""
    mine = told(first.answers)
    for account in _elsewhere(subject):
        for one, other in zip(mine, account.get(scenario.name, mine), strict=False):
            if one != other:
                hook = one.partition(" ")[0]
                return f"{hook} answers differently in another process: sets have another order there"
    return ""


@rule(
    "LK303", "Every reason is one line.", "say why in one sentence, without line breaks", scenarios="planned"
)
def one_line_reasons(subject: Subject, scenario: Scenario) -> None:
    for hook, answer in answers(subject, scenario):
        reasons = [(claim.value, claim.because) for claim in _claims(hook, answer)]
        reasons += [(answer.what, answer.because)] if isinstance(answer, Finish) else []
        for value, because in reasons:
            if not because.strip():
                raise Unmet(f"{hook} gives no reason for {value!r}")
            if len(because.splitlines()) > 1 or len(because) > LONGEST:
                raise Unmet(f"{hook} gives a reason of {len(because)} characters: {because[:80]!r}…")


@rule("LK304", "It leaves the facts as they are.", "copy what you change", scenarios="planned")
def facts_unchanged(subject: Subject, scenario: Scenario) -> None:
    if subject.trace(scenario).facts_changed:
        raise Unmet("the facts aren't what they were before it was asked")


@rule(
    "LK305",
    "It leaves the process as it is.",
    "change no environment variable, working folder, random state, filter of warnings, logger or the like while planning",
    scenarios="planned",
)
def process_unchanged(subject: Subject, scenario: Scenario) -> None:
    acting = {hook for hook, _ in _seen(subject, scenario, "does")}
    for hook, what in _seen(subject, scenario, "changes"):
        by_acting = hook in acting and what == "the threads that run"  # LK306
        by_drawing = subject.undecided and what == "the random numbers of Python"  # LK302
        if not (by_acting or by_drawing):
            raise Unmet(f"{hook} changes {what}")


@rule(
    "LK306",
    "It neither connects, starts nor writes anything while planning.",
    "what has to be read is a fact that the core reads",
    scenarios="planned",
)
def acts_on_nothing(subject: Subject, scenario: Scenario) -> None:
    for hook, what in _seen(subject, scenario, "does"):
        raise Unmet(f"{hook} {what}")


@rule(
    "LK307",
    "The order of registration changes nothing.",
    "rely on strengths and named stages, not on who comes first",
    scenarios="planned",
)
def any_order(subject: Subject, scenario: Scenario) -> None:
    if subject.undecided:
        raise NotApplicable("it answers differently when it is asked again (LK302)")
    first = subject.trace(scenario)
    if planned(subject, scenario, subject.reversed).outcome != first.outcome:
        raise Unmet("the plan isn't the same when plugins are registered the other way round")


@rule(
    "LK308",
    "It looks at the facts alone.",
    "decide from context: the machine, its packages and the files of the checkpoint are in there",
    since="1.1",
    scenarios="planned",
)
def looks_at_facts(subject: Subject, scenario: Scenario) -> None:
    if subject.undecided:
        raise NotApplicable("it answers differently when it is asked again (LK302)")
    if subject.trace(scenario).failure:
        raise NotApplicable("it fails as it is (LK205, LK601)")
    other = {hook for kind in ("does", "changes", "prints") for hook, _ in _seen(subject, scenario, kind)}
    for hook, what in _seen(subject, scenario, "reads"):
        if hook not in other:  # what it does is told by another check, and takes looking
            raise Unmet(f"{hook} looks at {what}")


@rule(
    "LK309",
    "It prints nothing.",
    "say it in a reason or a Problem; what is for the author goes to a logger",
    since="1.1",
    scenarios="planned",
)
def prints_nothing(subject: Subject, scenario: Scenario) -> None:
    for hook, what in _seen(subject, scenario, "prints"):
        raise Unmet(f"{hook} prints {what!r} to standard output")


def _opinion(subject: Subject, scenario: Scenario) -> str:
    """What it claims more than a fallback where nobody asked anything; "" where it abstains."""
    for hook, answer in answers(subject, scenario):
        for claim in _claims(hook, answer):
            if claim.strength is not Strength.FALLBACK:
                return f"{hook} claims {claim.value!r} for"
        if hook == "loadkit_contribute_kwargs" and answer:
            return f"{hook} adds {', '.join(answer)} to"
        if isinstance(answer, Finish):
            return f"{hook} would finish ({answer.what})"
    return ""


def _seen(subject: Subject, scenario: Scenario, kind: Kind) -> list[tuple[str, str]]:
    """What was seen while it was registered and while the scenario was planned."""
    trace = subject.trace(scenario)
    return [*getattr(subject.manager().at_registration, kind), *getattr(trace.seen, kind)]


def _elsewhere(subject: Subject) -> list[dict[str, tuple[str, ...]]]:
    """Its answers in processes with other hashes of texts, by scenario; asked once, where it answers."""
    if subject.elsewhere is None:
        asked = [s for s in everywhere(subject) if subject.trace(s).answers]
        accounts = ask(question(subject, *asked), *SEEDS)
        names = [s.name for s in asked]
        subject.elsewhere = [dict(zip(names, a.answers, strict=False)) for a in accounts]
    return subject.elsewhere


def _claims(hook: str, answer: Any) -> list[Claim[Any]]:
    if hook == "loadkit_contribute_kwargs" and isinstance(answer, dict):
        answer = [claim for value in answer.values() for claim in listed(value)]
    return [claim for claim in listed(answer) if isinstance(claim, Claim)]

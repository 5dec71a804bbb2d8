"""The ledger of a plan: what became of everything that was asked, by who read it and what was decided."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial

from loadkit.errors import Problem
from loadkit.request.options import Option
from loadkit.request.trainer_fields import LEFT_TO_THE_TRAINER, TRAINER_FIELDS
from loadkit.schema.claims import Decision
from loadkit.schema.ledger import Requested
from loadkit.schema.plans import KWARGS
from loadkit.schema.request import Asked, Request, noting_reads

__all__ = ["Reads", "ledger_of", "unread"]

_problem = partial(Problem, "request", "loadkit")

PASSED_ON = "model_kwargs"
"""The option whose fields go to `from_pretrained`, or into the config, as they are."""


class Reads:
    """Which options, and fields of them, were read at which step."""

    def __init__(self) -> None:
        self.at: defaultdict[str, dict[str, None]] = defaultdict(dict)

    def during(self, step: str) -> AbstractContextManager[None]:
        """Note what is read in a block as read at this step."""
        return noting_reads(lambda name: self.at[name].setdefault(step))

    def covers(self, option: str, part: str) -> bool:
        """Whether an option, or its field `part`, was read; one taken whole is read in all its fields."""
        by_field = any(name.startswith(f"{option}.") for name in self.at)
        return part in self.at or (option in self.at and not by_field)


def unread(request: Request, reads: Reads, declared: Mapping[str, tuple[str, Option]]) -> list[Problem]:
    """A problem for everything demanded that nobody read, so that nothing of it can be in the plan.

    A profile's or recipe's wish that nobody read is told in the ledger, and so is a field that asks for
    nothing: config objects come with all of theirs.
    """
    return [
        _problem(
            "not-taken-up",
            f"{asked.by} gave {name}={value!r}, and nothing in this plan takes it up"
            + (f": the plugin {declared[asked.name][0]!r} declares it" if asked.name in declared else ""),
            f"leave {name} out, or ask for what it belongs to ({_stage(asked, declared)})",
        )
        for asked in request.options.values()
        if asked.demanded and asked.value is not None
        for name, value in _parts(asked)
        if not reads.covers(asked.name, name) and (name == asked.name or value not in (False, [], {}, ""))
    ]


def ledger_of(
    request: Request,
    reads: Reads,
    declared: Mapping[str, tuple[str, Option]],
    decisions: Iterable[Decision],
    warnings: Iterable[Problem],
) -> tuple[Requested, ...]:
    """Everything that was asked, and what became of it: yours first, then the recipe's and the profile's.

    Parameters:
        reads: what was read while planning.
        declared: every spelling of an option to (declaring plugin, declaration).
        decisions: what was decided.
        warnings: the plan's, with what a recipe's keys became.
    """
    by_stage = {decision.stage: decision for decision in decisions}
    found = [
        _requested(asked, name, value, reads, _stage(asked, declared), by_stage)
        for asked in request.options.values()
        if asked.value is not None and asked.name != TRAINER_FIELDS
        for name, value in _parts(asked)
    ]
    found += _of_the_trainers_config(request)
    found += [_hidden(asked, request) for asked in request.hidden]
    recipe = f"recipe {request.recipe!r}"
    found += [
        Requested(name=key, value=None, by=recipe, disposition="left to the trainer")
        for key in request.trainer_keys
    ]
    notes = [problem.message for problem in warnings if problem.code == "recipe-note"]
    for note in notes:
        key, _, text = note.partition(": ")[2].partition(":")
        found.append(
            Requested(
                name=key.strip(), value=None, by=recipe, disposition="no counterpart", because=text.strip()
            )
        )
    return tuple(sorted(found, key=lambda each: each.by != "you"))


def _of_the_trainers_config(request: Request) -> list[Requested]:
    """Fields that bear on the model, and that the trainer or the launch carries out."""
    asked = request.asked(TRAINER_FIELDS)
    if asked is None:
        return []
    about = partial(Requested, value=None, by=asked.by, disposition="left to the trainer")
    return [about(name=name, because=LEFT_TO_THE_TRAINER.get(name, "")) for name in asked.value]


def _requested(
    asked: Asked,
    name: str,
    value: object,
    reads: Reads,
    stage: str,
    decisions: Mapping[str, Decision],
) -> Requested:
    about = partial(Requested, name=name, value=value, by=asked.by)
    if not reads.covers(asked.name, name):
        return about(disposition="no counterpart", because="nothing that was decided needs it")
    if asked.name == PASSED_ON:
        argument = name.removeprefix(f"{PASSED_ON}.")
        return about(disposition="passed on", where=argument if KWARGS + argument in decisions else "")
    decision = decisions.get(stage) or decisions.get(KWARGS + asked.name)
    because = "" if decision is None else _overruled(asked, name, decision)
    if because:
        return about(disposition="overruled", where=stage, because=because)
    if stage == "kwargs" or KWARGS + asked.name in decisions:
        return about(disposition="passed on", where=asked.name)
    return about(disposition="decided", where=stage)


def _overruled(asked: Asked, name: str, decision: Decision) -> str:
    """By whom an option was overruled at its stage, and why; "" where it wasn't."""
    for passed in decision.passed_over:
        if passed.value.split("=")[0] in (asked.name, name):
            return f"{decision.plugin}: {passed.reason}"
    if decision.strength.rank > asked.strength.rank and any(
        other.strength is asked.strength for other in decision.instead_of
    ):
        return f"{decision.plugin}: {decision.because}"
    return ""


def _hidden(asked: Asked, request: Request) -> Requested:
    stronger = request.options[asked.name]
    same = stronger.value == asked.value
    return Requested(
        name=asked.name,
        value=asked.value,
        by=asked.by,
        disposition="decided" if same else "overruled",
        where=asked.name if same else "",
        because="" if same else f"{stronger.by} gave {stronger.value!r}",
    )


def _parts(asked: Asked) -> Iterator[tuple[str, object]]:
    """A mapping's fields that ask for something, one by one; an empty mapping, and other values, whole."""
    fields = dict.items(asked.value) if isinstance(asked.value, dict) else ()
    parts = [(f"{asked.name}.{key}", value) for key, value in fields if value is not None]
    yield from parts or [(asked.name, asked.value)]


def _stage(asked: Asked, declared: Mapping[str, tuple[str, Option]]) -> str:
    return declared[asked.name][1].stage if asked.name in declared else ""

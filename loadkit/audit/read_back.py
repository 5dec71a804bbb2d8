"""Asked, planned, loaded: every setting that a model shows is read from it, and held against both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from loadkit.audit.model_access import base_of
from loadkit.errors import Finding
from loadkit.hooks import hookspecs as hooks
from loadkit.hooks.manager import PluginManager
from loadkit.schema.ledger import Requested
from loadkit.schema.plans import Plan
from loadkit.schema.readings import Reading, alike

__all__ = ["compare_with_asked", "read_back"]

TAKEN = ("decided", "passed on")
"""Dispositions of what is to be in the model."""


def read_back(
    plan: Plan, model: Any, processing_class: Any, manager: PluginManager
) -> tuple[tuple[str, Reading], ...]:
    """What plugins read from the model of what they decided, each reading with its plugin."""
    hook: Callable[..., Any] = hooks.loadkit_read_back
    about = {"plan": plan, "model": model, "processing_class": processing_class}
    own = (("loadkit", reading) for reading in _commit(plan, model))
    return (*own, *manager.collect_named(hook, Reading, **about))


def compare_with_asked(plan: Plan, readings: Iterable[tuple[str, Reading]]) -> list[Finding]:
    """An error for every setting that isn't as planned, or was planned otherwise than you demanded."""
    return [finding for plugin, reading in readings for finding in _findings(plan, plugin, reading)]


def _findings(plan: Plan, plugin: str, reading: Reading) -> Iterator[Finding]:
    asked = [each for each in plan.requested if each.name in reading.names and each.disposition in TAKEN]
    if reading.differs:
        yield Finding(
            reading.stage,
            plugin,
            reading.code if reading.code else "not-as-planned",
            f"{reading.where}: not as planned" + "".join(f"; {_said(each)}" for each in asked),
            str(reading.planned),
            str(reading.effective),
        )
        return
    for each in asked:
        if reading.verbatim and each.by == "you" and not alike(each.value, reading.effective):
            yield Finding(
                reading.stage,
                plugin,
                "not-as-asked",
                f"{reading.where}: not as asked; {_said(each)}",
                str(reading.planned),
                str(reading.effective),
            )


def _said(asked: Requested) -> str:
    return f"{asked.by} gave {asked.name}={asked.value!r}"


def _commit(plan: Plan, model: Any) -> Iterator[Reading]:
    """The commit that the config came from, where it is a repository's."""
    found = getattr(base_of(model).config, "_commit_hash", None)
    if plan.checkpoint.commit and found:
        yield Reading(
            stage="checkpoint",
            names=("revision",),
            where="config._commit_hash",
            planned=plan.checkpoint.commit,
            effective=found,
            verbatim=False,
        )

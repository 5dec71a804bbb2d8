"""The plugin that is checked, and a plugin manager that records what it answers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from types import ModuleType
from typing import Any

import msgspec

from loadkit.errors import LoadkitError, PlanError, PluginError
from loadkit.hooks.contained import Left, contained, raised
from loadkit.hooks.discovery import Announced, announced, module_of
from loadkit.hooks.provisions import Provided
from loadkit.testing.accounts import Account
from loadkit.testing.kit import NotApplicable
from loadkit.testing.scenarios import READY, Scenario
from loadkit.testing.time_limit import TIME_LIMIT, Hung, in_time
from loadkit.testing.traces import Answer, Recorder, Trace, planned
from loadkit.text.suggest import did_you_mean

__all__ = ["Answer", "Recorder", "Subject", "entries", "listed", "named", "subject_of", "subjects"]


@dataclass(eq=False)
class Subject:
    """A plugin to check.

    Parameters:
        name: what it is called in plans.
        plugin: the module or object with its hooks; None for an entry point that can't be imported.
        entry: its entry point; None for one that is registered by hand.
        fault: why it can't be imported, as "raises …"; "" where it can.
        hung: the code of the check in which it didn't come back; "" where it always did.
        undecided: whether it answered the same question in two ways.
        imported: what importing it did in a process of its own; None where that wasn't tried yet.
        ready: the scenarios that every plugin is asked in.
        asked: the author's own scenarios.
        elsewhere: its answers in other processes, by scenario; None where they weren't asked yet.
        unfit: why loadkit doesn't import it at all, as its distribution announces it; "" where it does.
    """

    name: str
    plugin: Any
    entry: metadata.EntryPoint | None = None
    fault: str = ""
    hung: str = ""
    unfit: str = ""
    undecided: bool = False
    imported: Account | None = None
    ready: tuple[Scenario, ...] = READY
    asked: tuple[Scenario, ...] = ()
    elsewhere: list[dict[str, tuple[str, ...]]] | None = None
    _refused: str = ""

    @property
    def module(self) -> str:
        """The module that it lives in; "" for an object."""
        if self.entry is not None:
            return module_of(self.entry)
        return self.plugin.__name__ if isinstance(self.plugin, ModuleType) else ""

    def hooks(self) -> dict[str, Callable[..., Any]]:
        """Its functions that are called like hooks, marked or not."""
        with contained():
            names = [name for name in dir(self.plugin) if name.startswith("loadkit_")]
            return {name: found for name in names if callable(found := getattr(self.plugin, name))}

    @property
    def home(self) -> str:
        """The top package of its code."""
        module = self.module or type(self.plugin).__module__
        return module.partition(".")[0]

    def manager(self) -> Recorder:
        """All installed plugins and this one, whose answers are recorded from now on.

        Raises:
            NotApplicable: it can't be imported or registered; or it hung before, and would do so again.
        """
        if self.unfit:
            raise NotApplicable("loadkit doesn't import it as it is announced (LK103, LK107)")
        if self.plugin is None:
            raise NotApplicable("it can't be imported (LK101)")
        if self.hung:
            raise NotApplicable(f"it doesn't come back when it is asked ({self.hung})")
        if reason := self.unregistered:
            raise NotApplicable(f"it can't be registered: {reason}")
        self._recorder.answered.clear()
        return self._recorder

    @property
    def unregistered(self) -> str:
        """Why it can't be registered; "" where it can."""
        if self.hung and "_recorder" not in self.__dict__:
            return f"it doesn't come back when it is asked ({self.hung})"
        if not self._refused:
            try:
                broken = (
                    p.reason for p in self._recorder.plugins if p.name == self.name and p.state == "broken"
                )
                return next(broken, "")
            except PluginError as error:
                self._refused = str(error)
        return self._refused

    def provided(self) -> Provided:
        """What it declares; nothing where it can't be asked."""
        if self.plugin is None or self.hung or self.unregistered:
            return Provided((), (), ())
        return self._recorder.provided.get(self.name, Provided((), (), ()))

    @cached_property
    def reversed(self) -> Recorder:
        """All plugins, registered the other way round."""
        return Recorder(self, reverse=True)

    @cached_property
    def _recorder(self) -> Recorder:
        return Recorder(self)

    def trace(self, scenario: Scenario, *, again: bool = False) -> Trace:
        """What it does while a scenario is planned: the first time, or `again`.

        Raises:
            NotApplicable: it can't be asked.
        """
        manager = self.manager()
        if again:
            return planned(self, scenario, manager)
        key = msgspec.json.encode(msgspec.structs.replace(scenario, name=""), enc_hook=repr)
        if key not in self._traces:
            self._traces[key] = planned(self, scenario, manager)
        return self._traces[key]

    @cached_property
    def loads(self) -> dict[tuple[str, bytes], Any]:
        """What came of its loads so far, by scenario and options."""
        return {}

    @cached_property
    def _traces(self) -> dict[bytes, Trace]:
        return {}

    @property
    def traces(self) -> tuple[Trace, ...]:
        """All that was planned so far."""
        return tuple(self._traces.values())

    @property
    def answering(self) -> set[str]:
        """The hooks that answered in some scenario that was planned so far."""
        return {answer.hook for trace in self._traces.values() for answer in trace.answers}

    def failure_in(self, error: PlanError) -> str:
        """How the plugin itself failed while planning; "" where it didn't."""
        own = (p.message for p in error.problems if p.code == "plugin-failed" and p.plugin == self.name)
        return next(own, "")


def subjects(name: str) -> Sequence[Subject]:
    """The installed plugins that a name, also of a distribution or package, means; `LoadkitError` if none."""
    return [subject_of(found) for found in named(name)]


def entries(name: str) -> Sequence[metadata.EntryPoint]:
    """The entry points that a name means, as for `subjects`; nothing is imported."""
    return [found.entry for found in named(name)]


def named(name: str) -> Sequence[Announced]:
    """The announced plugins that a name means, as for `subjects`; nothing is imported."""
    known = announced()
    found = [each for each in known if name in _names(each)]
    if not found:
        names = sorted({n for each in known for n in _names(each)})
        raise LoadkitError(
            f"no installed plugin, distribution or package is called {name!r}{did_you_mean(name, names)}: is its distribution "
            f"installed here? `loadkit plugins` lists what is"
        )
    return found


def subject_of(found: Announced, timeout: float = TIME_LIMIT) -> Subject:
    """An installed plugin, imported within so many seconds; where that fails, the subject says why."""
    about = Subject(found.name, None, found.entry, unfit=found.fault)
    if not found.fault:
        environment = dict(os.environ)
        try:
            with in_time(timeout), contained():
                about.plugin = found.entry.load()
        except Hung as slow:
            about.fault = str(slow).removeprefix("it ")
        except Left as error:
            about.fault = str(error).removeprefix("it ")
        except Exception as error:
            about.fault = f"raises {raised(error)}"
        finally:  # for the processes in which it is imported again
            if environment != dict(os.environ):
                os.environ.clear()
                os.environ.update(environment)
    return about


def listed(value: Any) -> list[Any]:
    """What a hook gave, several values or one, as a list."""
    return list(value) if isinstance(value, list | tuple) else [value]


def _names(found: Announced) -> set[str]:
    entry = found.entry
    module = module_of(entry)
    plain = {entry.name, module, module.partition(".")[0], found.distribution, found.name} - {""}
    return {*plain, *(re.sub(r"[-_.]+", "-", n).lower() for n in plain)}

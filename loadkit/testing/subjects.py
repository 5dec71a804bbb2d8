"""The plugin that is checked, and a plugin manager that records what it answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from types import ModuleType
from typing import Any, NamedTuple

from loadkit.errors import LoadkitError, PlanError, PluginError
from loadkit.hooks import hookspecs
from loadkit.hooks.manager import PluginManager
from loadkit.testing.kit import NotApplicable
from loadkit.testing.time_limit import TIME_LIMIT, Hung, in_time
from loadkit.text.suggest import did_you_mean

__all__ = ["Answer", "Recorder", "Subject", "entries", "listed", "subject_of", "subjects"]


class Answer(NamedTuple):
    """One answer of the plugin: to which hook, what."""

    hook: str
    value: Any


@dataclass(eq=False)
class Subject:
    """A plugin to check.

    Parameters:
        name: what it is called in plans.
        plugin: the module or object with its hooks; None for an entry point that can't be imported.
        entry: its entry point; None for one that is registered by hand.
        fault: why it can't be imported, as "raises …"; "" where it can.
        hung: the code of the check in which it didn't come back; "" where it always did.
    """

    name: str
    plugin: Any
    entry: metadata.EntryPoint | None = None
    fault: str = ""
    hung: str = ""

    @property
    def module(self) -> str:
        """The module that it lives in; "" for an object."""
        if self.entry is not None:
            return self.entry.module
        return self.plugin.__name__ if isinstance(self.plugin, ModuleType) else ""

    def hooks(self) -> dict[str, Callable[..., Any]]:
        """Its functions that are called like hooks, marked or not."""
        names = [name for name in dir(self.plugin) if name.startswith("loadkit_")]
        return {name: found for name in names if callable(found := getattr(self.plugin, name))}

    def manager(self) -> Recorder:
        """All installed plugins and this one, whose answers are recorded from now on.

        Raises:
            NotApplicable: it can't be imported or registered; or it hung before, and would do so again.
        """
        if self.plugin is None:
            raise NotApplicable("it can't be imported (LK101)")
        if self.hung:
            raise NotApplicable(f"it doesn't come back when it is asked ({self.hung})")
        try:
            self._recorder.answered.clear()
        except PluginError as error:
            raise NotApplicable(f"it can't be registered: {error}") from error
        return self._recorder

    @cached_property
    def _recorder(self) -> Recorder:
        return Recorder(self)

    def failure_in(self, error: PlanError) -> str:
        """How the plugin itself failed while planning; "" where it didn't."""
        own = (p.message for p in error.problems if p.code == "plugin-failed" and p.plugin == self.name)
        return next(own, "")


class Recorder(PluginManager):
    """A plugin manager that records what one plugin answers."""

    def __init__(self, subject: Subject) -> None:
        self.answered: list[Answer] = []
        self._subject = subject
        super().__init__(environ={})
        if subject.entry is None:
            self.register(subject.plugin, subject.name)

    def answers(self, hook: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        """As `PluginManager.answers`, with this plugin's recorded."""
        for plugin, answer in super().answers(hook, *args, **kwargs):
            if plugin == self._subject.name:
                self.answered.append(Answer(hook.__name__, answer))
            yield plugin, answer


def subjects(name: str) -> Sequence[Subject]:
    """The installed plugins that a name, also of a distribution or package, means; `LoadkitError` if none."""
    return [subject_of(entry) for entry in entries(name)]


def entries(name: str) -> Sequence[metadata.EntryPoint]:
    """The entry points that a name means, as for `subjects`; nothing is imported."""
    known = sorted(metadata.entry_points(group=hookspecs.PROJECT), key=lambda e: e.name)
    found = {e.name: e for e in known if name in _names(e)}
    if not found:
        names = sorted({n for e in known for n in _names(e)})
        raise LoadkitError(
            f"no installed plugin, distribution or package is called {name!r}{did_you_mean(name, names)}: is its distribution "
            f"installed here? `loadkit plugins` lists what is"
        )
    return list(found.values())


def subject_of(entry: metadata.EntryPoint, timeout: float = TIME_LIMIT) -> Subject:
    """An installed plugin, imported within so many seconds; where that fails, the subject says why."""
    try:
        with in_time(timeout):
            return Subject(entry.name, entry.load(), entry)
    except Hung as slow:
        return Subject(entry.name, None, entry, str(slow).removeprefix("it "))
    except Exception as error:
        return Subject(entry.name, None, entry, f"raises {type(error).__name__}: {error}")


def listed(value: Any) -> list[Any]:
    """What a hook gave, several values or one, as a list."""
    return list(value) if isinstance(value, list | tuple) else [value]


def _names(entry: metadata.EntryPoint) -> set[str]:
    distribution = entry.dist.name if entry.dist else ""
    plain = {entry.name, entry.module, entry.module.partition(".")[0], distribution}
    return {*plain, *(re.sub(r"[-_.]+", "-", n).lower() for n in plain)}

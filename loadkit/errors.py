"""Every error loadkit raises, and the values that carry what went wrong.

    LoadkitError
    ├── PlanError        the request can't be met: every problem of it, all at once (`.problems`)
    ├── LoadError        planning went well, the library underneath failed while loading
    ├── AuditError       the loaded model isn't what was planned (`.findings`, `.loaded`)
    ├── RankError        another process of the launch failed, or loads something else (`.ranks`)
    ├── ReplayError      what a manifest says isn't here any more (`.differences`)
    ├── SourceError      a plugin's source can't give what was asked (`.code`, `.remedy`)
    └── PluginError      a plugin misbehaved (`.plugin`, `.hook`)

`PlanError` is one class on purpose: the problems of a request come together, so what tells them apart is
each problem's `code`, not the exception's type.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import msgspec

__all__ = [
    "AuditError",
    "Finding",
    "LoadError",
    "LoadkitError",
    "PlanError",
    "PluginError",
    "Problem",
    "RankError",
    "Severity",
    "SourceError",
]

Severity = Literal["error", "warning", "note"]

SEVERITIES = ("error", "warning", "note")
"""The order in which they are listed."""


class Problem(msgspec.Struct, frozen=True):
    """Something wrong with a request, found before anything is loaded.

    Parameters:
        stage: the stage or fact it belongs to, such as "dtype" or "checkpoint".
        plugin: who noticed: a plugin's name, or "loadkit" for the core.
        code: a stable name to tell problems apart, such as "unknown-option".
        message: what was asked, what was found, and who asked.
        remedy: what to do about it.
        severity: "error" stops the plan; "warning" and "note" are carried in it.
    """

    stage: str
    plugin: str
    code: str
    message: str
    remedy: str
    severity: Severity = "error"

    def __str__(self) -> str:
        return f"{self.stage}: {self.message}\n    fix: {self.remedy}  [{self.code}, from {self.plugin}]"


class Finding(msgspec.Struct, frozen=True):
    """Something the audit noticed on a loaded model.

    Parameters:
        stage: the stage whose decision was audited.
        plugin: the plugin that looked.
        code: a stable name to tell findings apart.
        message: what is there.
        planned: what the plan said, in words; "" where there was nothing to compare.
        effective: what was found, in words.
        remedy: what to do about it; "" where nothing need be done.
        severity: "error" fails the load (unless `strict=False`).
    """

    stage: str
    plugin: str
    code: str
    message: str
    planned: str = ""
    effective: str = ""
    remedy: str = ""
    severity: Severity = "error"

    def __str__(self) -> str:
        text = f"{self.stage}: {self.message}"
        if self.planned or self.effective:
            text += f" (planned {self.planned or 'nothing'}, found {self.effective or 'nothing'})"
        if self.remedy:
            text += f"\n    fix: {self.remedy}"
        return f"{text}  [{self.code}, from {self.plugin}]"


class LoadkitError(Exception):
    """The root of everything loadkit raises."""


class PlanError(LoadkitError):
    """A request that can't be met, with every problem found.

    Parameters:
        source: what was asked for.
        problems: all of them, errors and warnings; at least one is an error.
        doing: what was to be done with it: "load" or "merge".
    """

    def __init__(self, source: str, problems: Sequence[Problem], doing: str = "load") -> None:
        self.source = source
        self.problems = tuple(problems)
        self.doing = doing
        errors = [p for p in self.problems if p.severity == "error"]
        head = f"can't {doing} {source!r}: {len(errors)} problem{'s' if len(errors) != 1 else ''}"
        super().__init__("\n".join([head, *(f"  - {p}" for p in errors)]))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.source, self.problems, self.doing)


class LoadError(LoadkitError):
    """The library that loads raised; the original exception is `__cause__`."""


class AuditError(LoadkitError):
    """A loaded model that isn't what the plan says.

    Parameters:
        source: what was loaded.
        findings: every finding; at least one is an error.
        loaded: the `Loaded` in question, so that it can still be examined; None for a merge, of which
            nothing is left.
        done: what was done with it: "loaded" or "merged".
    """

    def __init__(
        self, source: str, findings: Sequence[Finding], loaded: Any = None, done: str = "loaded"
    ) -> None:
        self.source = source
        self.findings = tuple(findings)
        self.loaded = loaded
        errors = [f for f in self.findings if f.severity == "error"]
        head = (
            f"{source!r} was {done}, but it isn't what was planned: {len(errors)} finding{'s' if len(errors) != 1 else ''}"
            + (
                " (strict=False turns these into warnings)"
                if done == "loaded"
                else "; nothing of it was kept"
            )
        )
        super().__init__("\n".join([head, *(f"  - {f}" for f in errors)]))


class RankError(LoadkitError):
    """This process stops because another of the launch failed, is gone, or would load something else.

    Parameters:
        ranks: the ranks that it is about.
        message: what happened to them.
    """

    def __init__(self, ranks: Sequence[int], message: str) -> None:
        self.ranks = tuple(ranks)
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.ranks, str(self))


class PluginError(LoadkitError):
    """A plugin raised, returned something of the wrong type, or can't be registered.

    Parameters:
        plugin: its name.
        message: what happened and how to go on without it.
        hook: the hook it happened in; "" while registering.
    """

    def __init__(self, plugin: str, message: str, *, hook: str = "") -> None:
        self.plugin = plugin
        self.hook = hook
        self.message = message
        where = f" in {hook}" if hook else ""
        super().__init__(f"plugin {plugin!r}{where}: {message}")

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), hook=self.hook), (self.plugin, self.message)


class SourceError(LoadkitError):
    """A source can't give what was asked. Plugins raise it; it is told as a problem of the checkpoint.

    Parameters:
        message: what was asked, and what was found; never a credential.
        remedy: what to do about it.
        code: a stable name; "source-unreachable" has a copy on this machine used instead, with a warning.
    """

    def __init__(self, message: str, remedy: str = "", code: str = "source-failed") -> None:
        self.message = message
        self.remedy = remedy
        self.code = code
        super().__init__(message)

    def __reduce__(self) -> tuple[type[SourceError], tuple[str, str, str]]:
        return type(self), (self.message, self.remedy, self.code)

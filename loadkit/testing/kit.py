"""What a check is, and what it may find."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from loadkit.testing.scenarios import Scenario
    from loadkit.testing.subjects import Subject

__all__ = ["CHECKS", "Check", "Group", "NotApplicable", "Result", "Unmet", "Verdict", "check", "fails"]

Group = Literal["packaging", "contract", "manners", "facts", "loading", "failure"]
Verdict = Literal["passed", "failed", "skipped", "expected", "unexpected", "newer"]


class Unmet(Exception):  # noqa: N818 - a verdict
    """The plugin doesn't do what the check asks for; the text is a sentence that says what it does."""


class NotApplicable(Exception):  # noqa: N818 - a verdict
    """The check has nothing to look at in this plugin; the text says why."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One rule that plugins keep.

    Parameters:
        code: its stable name, "LK204".
        group: what it is about.
        since: the level that it came with, "1.0".
        title: the rule, as a sentence.
        remedy: how to keep it.
        run: called with the plugin and a scenario; raises `Unmet` or `NotApplicable`, or gives words that a
            result which passes says.
        scenarios: in which scenarios it is run: "none" once for the plugin, "planned" in those that are
            planned, "loaded" in those that are loaded.
    """

    code: str
    group: Group
    since: str
    title: str
    remedy: str
    run: Callable[[Subject, Scenario], str | None]
    scenarios: Literal["none", "planned", "loaded"] = "none"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a check.

    Parameters:
        code: the check's code.
        title: its rule.
        plugin: who was checked.
        scenario: where; "" for the plugin as a whole.
        verdict: "passed", "failed", "skipped" (nothing to look at), "expected" (a failure that was
            announced), "unexpected" (it was announced, and passes), "newer" (fails a check that is newer than
            the level: it will fail once the level is raised).
        said: what is wrong, why it was skipped, or what there is to know of one that passed.
        remedy: what to do about it; "" where there is nothing to do.
    """

    code: str
    title: str
    plugin: str
    scenario: str
    verdict: Verdict
    said: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        where = f" in {self.scenario!r}" if self.scenario else ""
        fix = f"\n    fix: {self.remedy}" if self.remedy else ""
        return f"{self.code} {self.title}\n  {self.plugin}{where}: {self.said}{fix}"


CHECKS: dict[str, Check] = {}
"""Every check that was made so far, by its code."""


def check(
    group: Group,
    code: str,
    title: str,
    remedy: str,
    *,
    since: str = "1.0",
    scenarios: Literal["none", "planned", "loaded"] = "none",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function a check; it stays a plain function."""

    def made(function: Callable[..., Any]) -> Callable[..., Any]:
        if code in CHECKS:
            raise ValueError(f"two checks are called {code}")
        CHECKS[code] = Check(
            code=code, group=group, since=since, title=title, remedy=remedy, run=function, scenarios=scenarios
        )
        return function

    return made


def fails(function: Callable[[Subject, Scenario], Any], subject: Subject, scenario: Scenario) -> bool:
    """Whether a plugin fails a check in a scenario; one that doesn't apply fails nothing."""
    try:
        function(subject, scenario)
    except Unmet:
        return True
    except NotApplicable:
        pass
    return False

"""Run the checks on a plugin: what comes of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from loadkit.errors import LoadkitError
from loadkit.hooks.contained import raised
from loadkit.testing.checks import known_checks
from loadkit.testing.kit import Check, NotApplicable, Result, Unmet, Verdict
from loadkit.testing.own_scenarios import own_scenarios
from loadkit.testing.scenarios import PLAIN, Scenario
from loadkit.testing.subjects import Subject
from loadkit.testing.time_limit import TIME_LIMIT, Hung, in_time
from loadkit.text.suggest import did_you_mean

__all__ = ["LEVEL", "SLOW", "cases", "checked_expectations", "checked_level", "run", "run_one"]

SLOW = "find what it waits for, and decide without; or allow more time: --timeout on the command line, timeout= under pytest"
"""How to keep a check from taking too long."""

LEVEL = "1.1"
"""The newest level: checks that come later have a higher one."""


def cases(scenarios: Sequence[Scenario] = ()) -> Iterator[tuple[Check, tuple[Scenario, ...]]]:
    """Every check with those of the author's scenarios that it is run in."""
    where = {
        "none": (PLAIN,),
        "planned": tuple(scenarios),
        "loaded": tuple(s for s in scenarios if s.checkpoint),
    }
    yield from ((check, where[check.scenarios]) for check in known_checks())


def run(
    subject: Subject,
    *,
    level: str = LEVEL,
    scenarios: Sequence[Scenario] = (),
    expect_fail: Mapping[str, str] | None = None,
    timeout: float = TIME_LIMIT,
) -> list[Result]:
    """Run all checks on a plugin; one result each.

    Parameters:
        subject: the plugin.
        level: the level it keeps to; a check that is newer warns.
        scenarios: the author's own situations, beside the ready-made ones.
        expect_fail: code to the reason why it fails; strict.
        timeout: seconds that a check may take in one scenario; taking longer fails it, and the others run.

    Raises:
        LoadkitError: `expect_fail` names a code that isn't one, or gives no reason; or the level is none.
    """
    expected = checked_expectations(expect_fail or {})
    checked_level(level)
    subject.asked = tuple(scenarios)
    return [
        run_one(check, subject, where, level=level, expected=expected.get(check.code, ""), timeout=timeout)
        for check, where in cases(scenarios)
    ]


def run_one(
    check: Check,
    subject: Subject,
    scenarios: Sequence[Scenario],
    *,
    level: str = LEVEL,
    expected: str = "",
    timeout: float = TIME_LIMIT,
) -> Result:
    """Run one check in all its scenarios, up to the first that it fails in."""
    said, where, skipped, ran, remedy, note = "", "", "", 0, check.remedy, ""
    scenario = PLAIN
    try:
        for scenario in _everywhere(check, subject, scenarios, timeout):
            try:
                with in_time(timeout):
                    note = check.run(subject, scenario) or note
                ran += 1
            except NotApplicable as reason:  # noqa: PERF203 - a scenario takes milliseconds
                skipped = str(reason)
    except Hung as slow:
        said, where, remedy = str(slow), scenario.name, SLOW
        subject.hung = check.code
    except Unmet as fault:
        said, where = str(fault), scenario.name if check.scenarios != "none" else ""
    except Exception as error:  # of a library underneath, or of loadkit: it is the plugin that was tried
        said, where = f"it raises {raised(error)}", scenario.name

    def result(verdict: Verdict, said: str = "", remedy: str = "") -> Result:
        return Result(
            code=check.code,
            title=check.title,
            plugin=subject.name,
            scenario=where,
            verdict=verdict,
            said=said,
            remedy=remedy,
        )

    if said and expected:
        return result("expected", f"{said} (expected: {expected})")
    if said and checked_level(check.since) > checked_level(level):
        return result("newer", f"{said} (the check came with level {check.since})", remedy)
    if said:
        return result("failed", said, remedy)
    if not ran:
        nothing = "no scenario of yours loads a checkpoint: give one with Scenario(checkpoint=…)"
        return result("skipped", skipped or nothing)
    if expected:
        passes = f"it was expected to fail ({expected}), and passes"
        return result("unexpected", passes, "take it out of expect_fail")
    return result("passed", note)


def _everywhere(
    check: Check, subject: Subject, scenarios: Sequence[Scenario], timeout: float
) -> Iterator[Scenario]:
    """The scenarios given; where it is planned, those that every plugin is asked in before, and after them
    those that follow from what it declares: asking for that runs it."""
    if check.scenarios == "planned":
        yield from subject.ready
    yield from scenarios
    if check.scenarios == "planned":
        with in_time(timeout):
            own = own_scenarios(subject)
        yield from own


def checked_expectations(expect_fail: Mapping[str, str]) -> Mapping[str, str]:
    """The expected failures; `LoadkitError` where a code isn't one or a reason is missing."""
    codes = [check.code for check in known_checks()]
    for code, reason in expect_fail.items():
        if code not in codes:
            raise LoadkitError(f"expect_fail names {code!r}, which isn't a check{did_you_mean(code, codes)}")
        if not reason.strip():
            raise LoadkitError(
                f"expect_fail gives no reason for {code}: say why it fails, and where that is tracked"
            )
    return expect_fail


def checked_level(text: str) -> tuple[int, ...]:
    """A level as numbers, to compare; `LoadkitError` where it is none."""
    try:
        return tuple(int(part) for part in text.split("."))
    except ValueError:
        raise LoadkitError(f"{text!r} isn't a level; levels are versions such as {LEVEL!r}") from None

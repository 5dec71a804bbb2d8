"""The conformance run as a pytest test: one test id a check."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from loadkit.testing.scenarios import Scenario
from loadkit.testing.subjects import Subject, subjects
from loadkit.testing.time_limit import TIME_LIMIT
from loadkit.testing.verdicts import LEVEL, cases, checked_expectations, checked_level, run_one

__all__ = ["ConformanceWarning", "conformance"]

F = TypeVar("F", bound=Callable[..., Any])


class ConformanceWarning(UserWarning):
    """A check that is newer than the plugin's level fails: it will count once the level is raised."""


def conformance(
    name: str | Subject,
    *,
    level: str = LEVEL,
    scenarios: Sequence[Scenario] = (),
    expect_fail: Mapping[str, str] | None = None,
    timeout: float = TIME_LIMIT,
) -> Callable[[F], F]:
    """Make a test function, which calls its argument `check`, run every check on a plugin, each as a test.

    Parameters:
        name: an installed plugin, its distribution or its package; or a `Subject`.
        level: the level that the plugin keeps to.
        scenarios: situations of your own; those with a `checkpoint` are loaded.
        expect_fail: code to the reason why it fails now; one that passes fails the test.
        timeout: seconds that a check may take in one scenario; taking longer fails it, and the others run.

    Raises:
        LoadkitError: nothing is called so, `expect_fail` names a code that isn't one, or the level is none.
    """
    import pytest

    expected = checked_expectations(expect_fail or {})
    checked_level(level)
    found = [name] if isinstance(name, Subject) else subjects(name)
    for subject in found:
        subject.asked = tuple(scenarios)
    params = [
        pytest.param(
            functools.partial(_checked, check, subject, where, level, expected.get(check.code, ""), timeout),
            id=check.code if len(found) == 1 else f"{subject.name}-{check.code}",
        )
        for subject in found
        for check, where in cases(scenarios)
    ]
    return pytest.mark.parametrize("check", params)


def _checked(
    check: Any, subject: Subject, where: Sequence[Scenario], level: str, expected: str, timeout: float
) -> None:
    import pytest

    result = run_one(check, subject, where, level=level, expected=expected, timeout=timeout)
    if result.verdict in ("failed", "unexpected"):
        pytest.fail(str(result), pytrace=False)
    if result.verdict == "skipped":
        pytest.skip(f"{result.code}: {result.said}")
    if result.verdict == "expected":
        pytest.xfail(result.said)
    if result.verdict == "newer":
        warnings.warn(str(result), ConformanceWarning, stacklevel=2)

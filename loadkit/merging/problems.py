"""The problems of a merge: what can't be merged is refused before a byte is written."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from loadkit.errors import PlanError, Problem

__all__ = ["merge_problem", "refuse"]

merge_problem = partial(Problem, "merge", "loadkit")
"""A problem of a merge: code, message, remedy, severity."""


def refuse(source: str, problems: Sequence[Problem]) -> None:
    """Raise a PlanError with all of them, if one is an error."""
    if any(problem.severity == "error" for problem in problems):
        raise PlanError(source, problems, doing="merge")

"""The one exception of the readers: a file that should be there can't be had, and why."""

from __future__ import annotations

from loadkit.errors import Problem

__all__ = ["UnreadableError"]


class UnreadableError(Exception):
    """A file can't be had; `problem` says why. It never leaves the facts."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(problem.message)

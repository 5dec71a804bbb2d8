"""The terminal: results go to standard output, progress and warnings to standard error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console

from loadkit.schema.request import Progress

__all__ = ["console", "errors", "working"]

console = Console(highlight=False, soft_wrap=False)
errors = Console(stderr=True, highlight=False)


@contextlib.contextmanager
def working(first: str) -> Iterator[Progress]:
    """Show what is going on: a spinner in a terminal, a line a step elsewhere.

    Parameters:
        first: the first step.

    Yields:
        A function that is told each further step.
    """
    if not errors.is_terminal:
        errors.print(f"{first} …", style="dim")
        yield lambda step: errors.print(f"{step} …", style="dim")
        return
    with errors.status(f"{first} …") as status:
        yield lambda step: status.update(f"{step} …")

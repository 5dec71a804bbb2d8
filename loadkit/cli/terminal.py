"""The terminal: results go to standard output, progress and warnings to standard error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from loadkit.schema.request import Progress

__all__ = ["console", "errors", "plain_table", "working"]

console = Console(highlight=False, soft_wrap=False)
errors = Console(stderr=True, highlight=False)


def plain_table(*, header: bool = True) -> Table:
    """A table without lines."""
    return Table(box=None, pad_edge=False, show_header=header, header_style="bold", padding=(0, 2, 0, 0))


@contextlib.contextmanager
def working(first: str) -> Iterator[Progress]:
    """Show the first step, and each that is handed on: by a spinner in a terminal, a line elsewhere."""
    if not errors.is_terminal:
        errors.print(f"{first} …", style="dim")
        yield lambda step: errors.print(f"{step} …", style="dim")
        return
    with errors.status(f"{first} …") as status:
        yield lambda step: status.update(f"{step} …")

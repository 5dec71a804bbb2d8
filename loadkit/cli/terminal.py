"""The terminal: results go to standard output, progress and warnings to standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import click
from rich.console import Console, RenderableType
from rich.progress import BarColumn, DownloadColumn, SpinnerColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from loadkit.schema.rendering import unwrapped
from loadkit.schema.request import Progress

__all__ = ["console", "errors", "plain_table", "show", "working", "writing"]

console = Console(highlight=False, soft_wrap=False)
errors = Console(stderr=True, highlight=False)


def show(*renderables: RenderableType) -> None:
    """Print results, a blank line between them: laid out for a terminal; elsewhere a sentence is a line.

    What is piped is read by programs and by eyes that search: nothing is wrapped, nothing trails.
    """
    for number, renderable in enumerate(renderables):
        if number:
            click.echo()
        if sys.stdout is not None and sys.stdout.isatty():
            console.print(renderable)
        else:  # rich takes FORCE_COLOR for a terminal of 80 columns; it asks for colours alone
            coloured = console.is_terminal and not console.no_color
            click.echo(unwrapped(renderable, coloured=coloured), color=coloured)


def plain_table(*, header: bool = True) -> Table:
    """A table without lines."""
    return Table(box=None, pad_edge=False, show_header=header, header_style="bold", padding=(0, 2, 0, 0))


@contextlib.contextmanager
def working(first: str) -> Iterator[Progress]:
    """Show the first step, and each that is handed on: by a spinner in a terminal, a line elsewhere."""
    if not errors.is_terminal:
        errors.print(f"{first} …", style="dim", soft_wrap=True)
        yield lambda step: errors.print(f"{step} …", style="dim", soft_wrap=True)
        return
    with errors.status(f"{first} …") as status:
        yield lambda step: status.update(f"{step} …")


@contextlib.contextmanager
def writing(first: str) -> Iterator[tuple[Progress, Callable[[int, int], None]]]:
    """As `working`, with a bar of the bytes written in a terminal: what shows a step, and what shows them."""
    if not errors.is_terminal:
        with working(first) as progress:
            yield progress, lambda *_: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description} …"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())  # fmt: skip
    with Bars(*columns, console=errors, transient=True) as bars:
        task = bars.add_task(first, total=None)
        yield (
            lambda step: bars.update(task, description=step),
            lambda done, total: bars.update(task, completed=done, total=total),
        )

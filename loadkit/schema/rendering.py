"""How plans and reports are laid out: by rich, in a terminal, as plain text and in a notebook."""

from __future__ import annotations

import io
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from loadkit.errors import Finding, Problem

__all__ = ["COLOURS", "Row", "facts_table", "plain_text", "problem_lines", "rows_table", "unwrapped"]

WIDTH = 110
"""Columns of plain text, where there is no terminal to ask."""

ENDLESS = 1_000_000
"""Columns of what is never wrapped."""

TRAILING = re.compile(r"(?:\s|\x1b\[[\d;]*m)+$")
"""Blanks that a line ends with, and colours that begin and end among them."""

COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}


class Row(NamedTuple):
    """One thing that is told: its name, what there is to say of it, and what stands below it, a line each."""

    name: str
    text: str
    below: tuple[str, ...] = ()


def facts_table() -> Table:
    """An empty table of names and what there is to say of each."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def rows_table(rows: Iterable[Row]) -> Table:
    """These rows as such a table."""
    table = facts_table()
    for row in rows:
        lines = Text(row.text)
        for line in row.below:
            lines.append(f"\n{line}", style="dim")
        table.add_row(row.name, lines)
    return table


def problem_lines(items: Sequence[Problem] | Sequence[Finding]) -> list[RenderableType]:
    """Problems or findings, one paragraph each, coloured by severity."""
    return [Text.assemble("\n", (f"{i.severity}: ", COLOURS[i.severity]), str(i)) for i in items]


def plain_text(renderable: RenderableType) -> str:
    """The same layout without colours and trailing blanks: as wide as the terminal it may be printed to."""
    return _plain(renderable, _width())


def unwrapped(renderable: RenderableType, *, coloured: bool = False) -> str:
    """The same, with each sentence on a line of its own, however long: for files, pipes and programs."""
    return _plain(renderable, ENDLESS, coloured=coloured)


def _plain(renderable: RenderableType, width: int, *, coloured: bool = False) -> str:
    console = Console(
        file=io.StringIO(),
        width=width,
        color_system="standard" if coloured else None,
        force_terminal=coloured,
        highlight=False,
    )
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(TRAILING.sub(_without_blanks, line) for line in capture.get().rstrip().splitlines())


def _without_blanks(found: re.Match[str]) -> str:
    return re.sub(r"\s", "", found[0])


def _width() -> int:
    terminal = sys.stdout is not None and not sys.stdout.closed and sys.stdout.isatty()
    return min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns) if terminal else WIDTH

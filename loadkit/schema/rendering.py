"""How plans and reports are laid out: by rich, in a terminal, as plain text and in a notebook."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from loadkit.errors import Finding, Problem

__all__ = ["COLOURS", "facts_table", "html", "plain_text", "problem_lines"]

WIDTH = 110
"""Columns of plain text, where there is no terminal to ask."""

COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}


def facts_table() -> Table:
    """An empty table of names and what there is to say of each."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def html(renderable: RenderableType) -> str:
    """A plan or report for a notebook: the same layout, with the terminal's colours as styles."""
    console = Console(file=io.StringIO(), width=WIDTH, record=True, highlight=False, force_jupyter=False)
    console.print(renderable)
    code = '<pre style="white-space: pre; line-height: 1.35; font-family: monospace">{code}</pre>'
    return console.export_html(code_format=code, inline_styles=True)


def problem_lines(items: Sequence[Problem] | Sequence[Finding]) -> list[RenderableType]:
    """Problems or findings, one paragraph each, coloured by severity."""
    return [Text.assemble("\n", (f"{i.severity}: ", COLOURS[i.severity]), str(i)) for i in items]


def plain_text(renderable: RenderableType) -> str:
    """The same layout without colours and trailing blanks."""
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())

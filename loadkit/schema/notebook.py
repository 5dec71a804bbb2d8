"""How plans and reports look in a notebook: tables whose reasons fold away, in the notebook's own colours."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from loadkit.errors import Finding, Problem
from loadkit.schema.rendering import Row

__all__ = ["notebook_html"]

# Colours are the page's own (currentColor), fainter or stronger: right on light and on dark.
STYLE = """<style>
.loadkit table {border-collapse: collapse; margin: .4em 0}
.loadkit td {text-align: left; vertical-align: top; padding: .15em 1em .15em 0; background: none}
.loadkit td:first-child {font-weight: 600; white-space: nowrap}
.loadkit .faint, .loadkit details > div {opacity: .7; font-size: 92%}
.loadkit summary {cursor: pointer}
.loadkit .bar {font-family: monospace; white-space: pre}
.loadkit .error, .loadkit .warning, .loadkit .note {border-left: .25em solid currentColor; padding: .1em .6em; margin: .3em 0}
.loadkit .error {border-color: #d33} .loadkit .warning {border-color: #c80}
</style>"""


def notebook_html(
    title: str,
    about: str,
    tables: Sequence[tuple[str, Sequence[Row]]],
    items: Sequence[Problem] | Sequence[Finding] = (),
) -> str:
    """A page of tables for a notebook.

    Parameters:
        title: what it is about, in bold; "" for none.
        about: a fainter line below it; "" for none.
        tables: each with the words that it folds behind, "" where it stands open.
        items: problems or findings, shown between the first table and the others.
    """
    head = f"<strong>{escape(title)}</strong>" if title else ""
    head += f'<div class="faint">{escape(about)}</div>' if about else ""
    told = [_item(item) for item in items]
    shown = [_table(rows) if not words else _folded(words, _table(rows)) for words, rows in tables]
    return f'{STYLE}<div class="loadkit">{head}{"".join([*shown[:1], *told, *shown[1:]])}</div>'


def _table(rows: Sequence[Row]) -> str:
    return f"<table>{''.join(map(_row, rows))}</table>"


def _row(row: Row) -> str:
    text = escape(row.text)
    if row.below:
        text = _folded(row.text, f"<div>{'<br>'.join(map(escape, row.below))}</div>")
    return f"<tr><td>{escape(row.name)}</td><td>{text}</td></tr>"


def _folded(words: str, inside: str) -> str:
    return f"<details><summary>{escape(words)}</summary>{inside}</details>"


def _item(item: Problem | Finding) -> str:
    return f'<div class="{item.severity}"><b>{item.severity}</b>: {escape(str(item)).replace(chr(10), "<br>")}</div>'

"""How reports read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from loadkit.schema.notebook import notebook_html
from loadkit.schema.rendering import COLOURS, Row, plain_text, problem_lines, rows_table
from loadkit.text.units import size

if TYPE_CHECKING:
    from loadkit.schema.reports import Change, Measurements, Report

__all__ = ["change_text", "report_html", "report_rows", "report_table", "report_text"]

NOTICED = 0.005
"""Seconds from which on a phase is named."""


def report_text(report: Report) -> str:
    """A report as plain text."""
    return plain_text(report_table(report))


def report_table(report: Report) -> RenderableType:
    """A report as a table of facts, with the findings below."""
    return Group(rows_table(report_rows(report)), *problem_lines(report.findings))


def report_html(report: Report) -> str:
    """A report for a notebook: the verdict first, and what took how long folded away."""
    first = ("audit", "model", "parameters", "footprint")
    rows: dict[str, Row] = {}
    rest: list[Row] = []
    for row in report_rows(report):
        if row.name in first and row.name not in rows:
            rows[row.name] = row
        else:
            rest.append(row)
    return notebook_html(
        "",
        "",
        [("", [rows[name] for name in first]), ("everything that was measured", rest)],
        report.findings,
    )


def report_rows(report: Report) -> list[Row]:
    """Everything that a report tells, but its findings."""
    m = report.measurements
    rows = {
        "audit": _verdict(report),
        "model": m.model_class,
        "parameters": f"{m.parameters:,}, {_trainable(m)}",
        "footprint": size(m.footprint),
        "by dtype": ", ".join(f"{dtype} {size(count)}" for dtype, count in m.bytes_by_dtype.items()),
        "not quantized": _shares(m),
        "on": ", ".join(f"{device} {size(count)}" for device, count in m.devices.items()),
        "modules": ", ".join(f"{count} {name}" for name, count in m.modules.items()),
        "changed": "\n".join(change_text(change) for change in report.changes),
        "finished": "\n".join(map(str, report.finished)),
        "shortcuts": "\n".join(report.shortcuts),
        "seconds": _seconds(report.seconds),
        "peak memory": ", ".join(f"{where} {size(count)}" for where, count in report.peak_memory.items()),
    }
    told = [Row(each.title, "\n".join(each.lines), (f"({each.plugin})",)) for each in report.sections]
    return [*(Row(name, text) for name, text in rows.items() if text), *told]


def _trainable(m: Measurements) -> str:
    """How many take gradients: of a model that only runs all may, though nothing trains it."""
    if m.trainable == m.parameters:
        return "none of them frozen"
    return f"{m.trainable:,} of them trainable ({m.trainable / max(m.parameters, 1):.2%})"


def _seconds(by_phase: Mapping[str, float]) -> str:
    """All of them, then the phases that took a noticeable part."""
    noticed = ", ".join(f"{phase} {took:.2f}" for phase, took in by_phase.items() if took >= NOTICED)
    return f"{sum(by_phase.values()):.2f}" + (f": {noticed}" if noticed else "")


def _shares(m: Measurements) -> str:
    """What stays as it is, in bytes and as a share of the whole footprint."""
    return ", ".join(
        f"{reason} {size(count)} ({count / m.footprint:.0%})" for reason, count in m.unquantized.items()
    )


def change_text(change: Change) -> str:
    """What a phase did, in a line."""
    many = f"{change.tensors} tensors" if change.tensors > 1 else change.example
    before, after = size(change.bytes_before), size(change.bytes_after)
    held = {"added": after, "removed": before}.get(change.kind, f"{before} → {after}")
    return f"{change.phase}: {change.kind} {many}, {change.what}, {held}"


def _verdict(report: Report) -> str:
    counts = {s: sum(f.severity == s for f in report.findings) for s in COLOURS}
    found = [f"{n} {s}{'s' if n > 1 else ''}" for s, n in counts.items() if n]
    return ", ".join(found) if found else "what was planned is what was loaded"

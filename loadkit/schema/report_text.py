"""How reports read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from loadkit.schema.rendering import COLOURS, facts_table, plain_text, problem_lines
from loadkit.text.units import size

if TYPE_CHECKING:
    from loadkit.schema.reports import Change, Measurements, Report

__all__ = ["change_text", "report_table", "report_text"]


def report_text(report: Report) -> str:
    """A report as plain text."""
    return plain_text(report_table(report))


def report_table(report: Report) -> RenderableType:
    """A report as a table of facts, with the findings below."""
    m = report.measurements
    table = facts_table()
    rows = {
        "model": m.model_class,
        "parameters": f"{m.parameters:,}, {m.trainable:,} of them trainable ({m.trainable / max(m.parameters, 1):.2%})",
        "footprint": size(m.footprint),
        "by dtype": ", ".join(f"{dtype} {size(count)}" for dtype, count in m.bytes_by_dtype.items()),
        "not quantized": _shares(m),
        "on": ", ".join(f"{device} {size(count)}" for device, count in m.devices.items()),
        "modules": ", ".join(f"{count} {name}" for name, count in m.modules.items()),
        "changed": "\n".join(change_text(change) for change in report.changes),
        "shortcuts": "\n".join(report.shortcuts),
        "seconds": ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in report.seconds.items()),
        "peak memory": ", ".join(f"{where} {size(count)}" for where, count in report.peak_memory.items()),
        "audit": _verdict(report),
    }
    for name, text in rows.items():
        if text:
            table.add_row(name, text)
    return Group(table, *problem_lines(report.findings))


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

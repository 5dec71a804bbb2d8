"""How plans read: for each stage its value, who decided it and why, and what it was decided instead of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from loadkit.schema.memory_text import memory_lines
from loadkit.schema.rendering import facts_table, plain_text, problem_lines
from loadkit.schema.value_text import value_text
from loadkit.text.units import size

if TYPE_CHECKING:
    from loadkit.schema.claims import Decision
    from loadkit.schema.plans import Plan
    from loadkit.schema.readings import Reading

__all__ = ["asked_table", "plan_table", "plan_text"]

LISTED, LONGEST = 4, 60
"""Entries of a list, and characters of a text, that are printed of a setting."""

NAME_WIDTH = 50
"""Columns for what was asked: paths in variables may be long, and leave room for what became of them."""


def plan_text(plan: Plan) -> str:
    """A plan as plain text."""
    return plain_text(plan_table(plan))


def plan_table(plan: Plan) -> RenderableType:
    """A plan: for each stage its value, then who decided it and why, then what it was decided instead of."""
    table = facts_table()
    for decision in plan.decisions:
        lines = Text(value_text(decision.value))
        deciders = ", ".join((decision.plugin, *decision.concurring))
        lines.append(f"\n{deciders}: {decision.because}", style="dim")
        for other in _instead_of(decision):
            lines.append(f"\ninstead of {other}", style="dim italic")
        table.add_row(decision.stage.removeprefix("kwargs."), lines)
    if plan.memory is not None:
        table.add_row("memory", memory_lines(plan.memory))
    if plan.shortcuts:
        lines = Text("\n").join(
            Text.assemble(s.line if s.serves else (s.line, "dim"), (f" ({s.plugin})", "dim"))
            for s in plan.shortcuts
        )
        table.add_row("shortcuts", lines)
    return Group(_head(plan), table, *_gave_way(plan), *problem_lines(plan.warnings))


def _head(plan: Plan) -> Text:
    checkpoint = plan.checkpoint
    head = Text(checkpoint.source, style="bold")
    if checkpoint.kind == "hub" and checkpoint.location != checkpoint.source:
        head.append(f"  (base {checkpoint.location})")
    if checkpoint.commit:
        head.append(f"  at {checkpoint.commit[:12]}")
    weights = checkpoint.weight_format
    if checkpoint.tensors:
        weights = f"{size(checkpoint.weight_bytes)} in {checkpoint.tensors} tensors"
    about = f"\n{checkpoint.model_type}, {weights}; on {plan.machine}"
    about += f"; {plan.topology}" if plan.topology else ""
    about += f"; profile {plan.request.profile}" if plan.request.profile else ""
    about += f"; recipe {plan.request.recipe}" if plan.request.recipe else ""
    head.append(f"{about}\n", style="not bold dim")
    return head


def asked_table(plan: Plan, readings: Sequence[Reading] = ()) -> RenderableType:
    """Everything that was asked, and what became of it: of a loaded model with what was read from it."""
    table = facts_table()
    table.columns[0].max_width, table.columns[0].no_wrap = NAME_WIDTH, False
    for each in plan.requested:
        value = "" if each.value is None else f"={each.value}"
        line = Text(f"{each.disposition}" + (f" ({each.where})" if each.where else ""))
        for text in dict.fromkeys(_read(reading) for reading in readings if each.name in reading.names):
            line.append(f"\n{text}")
        line.append(f"\nby {each.by}" + (f"; {each.because}" if each.because else ""), style="dim")
        table.add_row(Text(f"{each.name}{value}", overflow="fold"), line)
    return Group(_head(plan), table)


def _read(reading: Reading) -> str:
    """What was planned and what is loaded, where it was read; long lists by their lengths."""
    planned, loaded = _short(reading.planned), _short(reading.effective)
    return f"planned {planned}, loaded {loaded} ({reading.where})"


def _short(value: object) -> str:
    if isinstance(value, list) and len(value) > LISTED:
        return f"{len(value)} of them"
    return str(value) if len(str(value)) <= LONGEST else f"{str(value)[:LONGEST]}…"


def _gave_way(plan: Plan) -> list[RenderableType]:
    """What was asked and won't be, and what is left to the trainer."""
    request, noted = plan.request, " ".join(problem.message for problem in plan.warnings)
    said = [
        f"{a.name}={stronger.value} by {stronger.by}, instead of {a.value} by {a.by}"
        for a in request.hidden
        if (stronger := request.options[a.name]).value != a.value
    ]
    hidden = {(a.name, a.by) for a in request.hidden}
    said += [
        str(each)
        for each in plan.requested
        if each.differs
        and (each.name, each.by) not in hidden
        and each.because not in noted
        and not (each.by == "environment" and each.name in noted)
    ]
    if request.trainer_keys:
        said.append(f"left to the trainer: {', '.join(request.trainer_keys)}")
    return [Text("\n" + "\n".join(said), style="dim")] if said else []


def _instead_of(decision: Decision) -> list[str]:
    overruled = [f"{value_text(o.value)} ({o.plugin}: {o.because})" for o in decision.instead_of]
    by_reason: dict[str, list[str]] = {}
    for passed in decision.passed_over:
        by_reason.setdefault(passed.reason, []).append(passed.value)
    return overruled + [f"{', '.join(values)}: {reason}" for reason, values in by_reason.items()]

"""How plans read: for each stage its value, who decided it and why, and what it was decided instead of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from loadkit.schema.memory_text import memory_row
from loadkit.schema.notebook import notebook_html
from loadkit.schema.rendering import Row, facts_table, plain_text, problem_lines, rows_table
from loadkit.schema.value_text import value_text
from loadkit.schema.verdict_text import verdict_rows
from loadkit.text.units import size

if TYPE_CHECKING:
    from loadkit.schema.claims import Decision
    from loadkit.schema.finishes import Finish
    from loadkit.schema.plans import Plan
    from loadkit.schema.readings import Reading

__all__ = [
    "asked_table",
    "decision_row",
    "plan_html",
    "plan_table",
    "plan_text",
    "reason_rows",
    "repr_text",
    "why_row",
]

LISTED, LONGEST = 4, 60
"""Entries of a list, and characters of a text, that are printed of a setting."""

NAME_WIDTH = 50
"""Columns for what was asked: paths in variables may be long, and leave room for what became of them."""


def plan_text(plan: Plan, *, why: bool = False) -> str:
    """A plan as plain text: what it comes to, or with the reasons of every decision."""
    return plain_text(plan_table(plan, why=why))


def plan_table(plan: Plan, *, why: bool = False) -> RenderableType:
    """A plan: what it comes to and every warning; with `why`, every stage with who decided it, why, and
    instead of what."""
    rows = [*verdict_rows(plan), Row("", ""), *reason_rows(plan)] if why else verdict_rows(plan)
    return Group(_head(plan), rows_table(rows), *_gave_way(plan), *problem_lines(plan.warnings))


def reason_rows(plan: Plan) -> list[Row]:
    """For each stage its value, then who decided it and why, then what it was decided instead of."""
    rows = [decision_row(decision) for decision in plan.decisions]
    rows += [memory_row(plan.memory)] if plan.memory is not None else []
    rows += [
        Row("finish", each.what, (f"{each.plugin}: {each.because}", _tolerance(each)))
        for each in plan.finishes
    ]
    if plan.shortcuts:
        first, *others = [f"{s.line} ({s.plugin})" for s in plan.shortcuts]
        rows.append(Row("shortcuts", first, tuple(others)))
    return rows


def decision_row(decision: Decision) -> Row:
    """One decision: its value, who decided it and why, and what it was decided instead of."""
    deciders = ", ".join((decision.plugin, *decision.concurring))
    instead = (f"instead of {other}" for other in _instead_of(decision))
    name = decision.stage.removeprefix("kwargs.")
    return Row(name, value_text(decision.value), (f"{deciders}: {decision.because}", *instead))


def why_row(plan: Plan, stage: str) -> Row:
    """What there is to say of one stage, of "memory", of "finish", or of "shortcuts".

    Raises:
        LoadkitError: the plan has none of that name.
    """
    rows = [row for row in reason_rows(plan) if row.name == stage in ("memory", "finish", "shortcuts")]
    if not rows:
        return decision_row(plan.why(stage))
    first, *others = rows
    return Row(
        first.name,
        first.text,
        (*first.below, *(line for row in others for line in (row.text, *row.below))),
    )


def _tolerance(finish: Finish) -> str:
    """How far the outputs may be from those without it."""
    share = f"within {finish.tolerance:.2g} of the largest" if finish.tolerance else "the same to the bit"
    return f"outputs stay {share}, it says"


def plan_html(plan: Plan) -> str:
    """A plan for a notebook: what it comes to, then, folded away, each decision with its reasons."""
    head, _, about = _head(plan).plain.strip().partition("\n")
    gave_way = [Row("", line) for line in _gave_way_lines(plan)]
    tables = [("", verdict_rows(plan)), ("who decided what, and why", reason_rows(plan))]
    return notebook_html(
        head, about, [*tables, *([("what gave way", gave_way)] if gave_way else [])], plan.warnings
    )


def repr_text(plan: Plan) -> str:
    """A plan in a line."""
    profile = f", profile {plan.request.profile}" if plan.request.profile else ""
    return f"<Plan {plan.checkpoint.source!r}{profile}: {plan.model_class.model_class}, {plan.dtype}>"


def _head(plan: Plan) -> Text:
    checkpoint = plan.checkpoint
    head = Text(checkpoint.source, style="bold")
    if checkpoint.kind != "folder" and checkpoint.location != checkpoint.source.rstrip("/"):
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
    said = _gave_way_lines(plan)
    return [Text("\n" + "\n".join(said), style="dim")] if said else []


def _gave_way_lines(plan: Plan) -> list[str]:
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
    return said


def _instead_of(decision: Decision) -> list[str]:
    overruled = [f"{value_text(o.value)} ({o.plugin}: {o.because})" for o in decision.instead_of]
    by_reason: dict[str, list[str]] = {}
    for passed in decision.passed_over:
        by_reason.setdefault(passed.reason, []).append(passed.value)
    return overruled + [f"{', '.join(values)}: {reason}" for reason, values in by_reason.items()]

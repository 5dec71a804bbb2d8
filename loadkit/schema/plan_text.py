"""How plans and reports read in a terminal. Rich lays them out; plain text is the same without colour."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from loadkit.schema.values import (
    Adapter,
    Adapters,
    ModelClass,
    Placement,
    Preparation,
    Processing,
    Quantization,
    Tokens,
)
from loadkit.text.units import size

if TYPE_CHECKING:
    from loadkit.errors import Finding, Problem
    from loadkit.schema.claims import Decision
    from loadkit.schema.plans import Memory, Plan, RankMemory
    from loadkit.schema.reports import Change, Measurements, Report
    from loadkit.schema.request import Request

__all__ = [
    "change_text",
    "memory_lines",
    "plan_table",
    "plan_text",
    "problem_lines",
    "report_table",
    "report_text",
    "value_text",
]

WIDTH = 110
"""Columns of plain text, where there is no terminal to ask."""

BAR = 30
"""Columns of the bar of memory."""

COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}


def plan_text(plan: Plan) -> str:
    """A plan as plain text."""
    return _text(plan_table(plan))


def report_text(report: Report) -> str:
    """A report as plain text."""
    return _text(report_table(report))


def html(renderable: RenderableType) -> str:
    """A plan or report for a notebook: the same layout, with the terminal's colours as styles."""
    console = Console(file=io.StringIO(), width=WIDTH, record=True, highlight=False, force_jupyter=False)
    console.print(renderable)
    code = '<pre style="white-space: pre; line-height: 1.35; font-family: monospace">{code}</pre>'
    return console.export_html(code_format=code, inline_styles=True)


def plan_table(plan: Plan) -> RenderableType:
    """A plan: for each stage its value, then who decided it and why, then what it was decided instead of."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
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


def memory_lines(memory: Memory) -> Text:
    """What a plan takes: a bar in proportion, then the parts by name."""
    parts = [
        ("█", memory.quantized, "quantized"),
        ("▓", sum(memory.weights.values()), " + ".join(memory.weights)),
        ("▒", memory.constants, "constants"),
        ("░", memory.adapters, "adapters"),
        ("▚", memory.gradients, "gradients"),
        ("▞", memory.optimizer, f"state of {memory.optim}"),
    ]
    held = [part for part in parts if part[1]]
    lines = Text("".join(mark * max(1, round(BAR * count / memory.total)) for mark, count, _ in held))
    of = f" of the {size(memory.room)} of {memory.where}" if memory.room else ""
    of = of if memory.per_rank is None else " in all"
    lines.append(f"  {size(memory.total)}{of}")
    named = [f"{mark} {name} {size(count)}" for mark, count, name in held]
    for first in range(0, len(named), 2):
        lines.append("\n" + " · ".join(named[first : first + 2]), style="dim")
    if memory.unquantized:
        said = ", ".join(f"{reason} {size(count)}" for reason, count in memory.unquantized.items())
        lines.append(f"\nnot quantized: {said}", style="dim")
    if memory.per_rank is not None:
        lines.append(_rank_lines(memory.per_rank, memory.room))
    on_top = [*(f"the {part}, whose size isn't known before" for part in memory.unknown), "activations"]
    lines.append(f"\non top: {', '.join(on_top)}", style="dim")
    return lines


def _rank_lines(rank: RankMemory, room: int) -> str:
    """What each process and each node takes."""
    parts = {"weights": rank.weights, "gradients": rank.gradients, "optimizer": rank.optimizer}
    held = ", ".join(f"{name} {size(count)}" for name, count in parts.items() if count)
    of = f" of the {size(room)} there" if room else ""
    lines = [f"each process, on {rank.device}: {size(rank.total)}{of} ({held}): {rank.shared}"]
    if rank.loading > rank.weights:
        lines.append(f"while loading, each device: {size(rank.loading)}")
    lines.append(
        f"while loading, each node's main memory: {size(rank.host_shared)} mapped once for {rank.processes} processes, "
        f"{size(rank.host_own)} of their own"
    )
    lines.append(rank.how)
    return "\n" + "\n".join(lines)


def report_table(report: Report) -> RenderableType:
    """A report as a table of facts, with the findings below."""
    m = report.measurements
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
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
    held = {
        "added": size(change.bytes_after),
        "removed": size(change.bytes_before),
    }.get(change.kind, f"{size(change.bytes_before)} → {size(change.bytes_after)}")
    return f"{change.phase}: {change.kind} {many}, {change.what}, {held}"


def problem_lines(items: tuple[Problem, ...] | tuple[Finding, ...]) -> list[RenderableType]:
    """Problems or findings, one paragraph each, coloured by severity."""
    return [Text.assemble("\n", (f"{i.severity}: ", COLOURS[i.severity]), str(i)) for i in items]


def value_text(value: Any) -> str:
    """A stage's value in few words; the JSON has all of it."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value)
        case ModelClass():
            auto = f"{value.auto_class} → " if value.auto_class else ""
            part = f" ({value.config_key} only)" if value.config_key else ""
            own = f" [{value.implementation}]" if value.implementation != "transformers" else ""
            code = ", ".join(f"{name} {digest[:12]}" for name, digest in value.code.items())
            return f"{auto}{value.model_class}{part}{own}" + (f", running {code}" if code else "")
        case Quantization():
            return (
                f"{value.method} {value.bits:g}-bit"
                + (" (stored)" if value.prequantized else "")
                + _fields(_told(value))
            )
        case Placement():
            device_map = value.device_map
            limits = f", at most {value.max_memory}" if value.max_memory else ""
            if isinstance(device_map, dict) and list(device_map) == [""]:
                return f"all on {device_map['']}{limits}"
            return f"{'left to the engine' if device_map is None else device_map}{limits}"
        case Preparation():
            steps = ["k-bit preparation"] if value.kbit else []
            if value.gradient_checkpointing:
                steps.append("gradient checkpointing" + _fields(value.gradient_checkpointing_kwargs))
            steps += ["input gradients"] if value.input_gradients else []
            return " → ".join([*steps, "train()" if value.training else "eval()"])
        case Processing():
            origin = value.template_origin or "the one given"
            template = f", chat template: {origin}" if value.chat_template else ""
            side = f", padding {value.padding_side}" if value.padding_side else ""
            return f"{value.kind}{template}{side}"
        case Tokens():
            return _tokens(value)
        case Adapters():
            named = len(value.members) > 1
            told = [
                (f"{a.name}{' (active)' if a.name == value.active else ''}: " if named else "") + _adapter(a)
                for a in value.members
            ]
            merged = ", merged into the " + ("dequantized " if value.dequantize else "") + "base"
            return "; ".join(told) + (merged if value.merge else "")
        case dict():
            return ", ".join(f"{k or '(whole)'}: {v}" for k, v in value.items())
    return str(value)


def _adapter(value: Adapter) -> str:
    options = {k: v for k, v in value.options.items() if v is not None}
    about = f" from {value.source}" if value.source else _fields(options)
    return f"{value.peft_type}{about} in {value.dtype}" + ("" if value.trainable else ", frozen")


def _tokens(value: Tokens) -> str:
    said = [
        f"{role} {token}" for role, token in (("eos", value.eos_token), ("pad", value.pad_token)) if token
    ]
    added = [token for token in value.additional if token not in (value.eos_token, value.pad_token)]
    said += [f"added {', '.join(added)}"] if added else []
    said += [f"rows a multiple of {value.pad_to_multiple_of}"] if value.pad_to_multiple_of else []
    return ", ".join(said) or "the tokenizer's own"


def _told(value: Quantization) -> dict[str, Any]:
    """What is worth saying of a quantization: its settings without their prefixes, and not that it is on."""
    shown = {
        k.removeprefix("bnb_4bit_").removeprefix("llm_int8_"): v
        for k, v in value.options.items()
        if v not in (None, False, [])
        and not k.startswith("load_in_")
        and not (value.prequantized and isinstance(v, dict | list))
    }
    return {**shown, **({"skip": ", ".join(value.skip_modules)} if value.skip_modules else {})}


def _fields(fields: dict[str, Any]) -> str:
    said = [
        k if v is True else f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in fields.items()
    ]
    return f" ({', '.join(said)})" if said else ""


def _head(plan: Plan) -> Text:
    checkpoint = plan.checkpoint
    head = Text(checkpoint.source, style="bold")
    if checkpoint.kind == "hub" and checkpoint.location != checkpoint.source:
        head.append(f"  (base {checkpoint.location})")
    if checkpoint.commit:
        head.append(f"  at {checkpoint.commit[:12]}")
    weights = (
        f"{size(checkpoint.weight_bytes)} in {checkpoint.tensors} tensors"
        if checkpoint.tensors
        else checkpoint.weight_format
    )
    about = f"\n{checkpoint.model_type}, {weights}; on {plan.machine}"
    about += f"; {plan.topology}" if plan.topology else ""
    about += f"; profile {plan.request.profile}" if plan.request.profile else ""
    about += f"; recipe {plan.request.recipe}" if plan.request.recipe else ""
    head.append(f"{about}\n", style="not bold dim")
    return head


def _gave_way(plan: Plan) -> list[RenderableType]:
    """The profile's options that the caller replaced."""
    request = plan.request
    said = [
        f"{a.name}={request.value(a.name)} by {_by(request, a.name)}, instead of {a.value} by {a.by}"
        for a in request.hidden
        if request.value(a.name) != a.value
    ]
    if request.trainer_keys:
        said.append(f"left to the trainer: {', '.join(request.trainer_keys)}")
    return [Text("\n" + "\n".join(said), style="dim")] if said else []


def _by(request: Request, name: str) -> str:
    asked = request.asked(name)
    return asked.by if asked else "you"


def _instead_of(decision: Decision) -> list[str]:
    overruled = [f"{value_text(o.value)} ({o.plugin}: {o.because})" for o in decision.instead_of]
    by_reason: dict[str, list[str]] = {}
    for passed in decision.passed_over:
        by_reason.setdefault(passed.reason, []).append(passed.value)
    return overruled + [f"{', '.join(values)}: {reason}" for reason, values in by_reason.items()]


def _verdict(report: Report) -> str:
    counts = {s: sum(f.severity == s for f in report.findings) for s in COLOURS}
    found = [f"{n} {s}{'s' if n > 1 else ''}" for s, n in counts.items() if n]
    return ", ".join(found) if found else "what was planned is what was loaded"


def _text(renderable: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())

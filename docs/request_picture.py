"""The way of a request as a picture, from the stages, phases, facts and hooks as the code has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from loadkit.facts.context import Context
from loadkit.hooks import hookspecs
from loadkit.loading.phases import PHASES
from loadkit.schema.stages import STAGES

__all__ = ["PICTURE", "picture", "steps", "style"]

PICTURE = Path(__file__).parent / "explanation" / "request.svg"
PREFIX = "loadkit_"

WIDTH, MARGIN, PADDING, GAP = 940, 18, 14, 10
BOX, HEAD, BAR, ARROW = 40, 30, 48, 20
"""Heights in pixels: of a box, of a step's heading, of a value that comes out, and of the arrow between two
steps."""

LIGHT = {
    "sheet": "#ffffff",
    "band": "#f1f4f8",
    "box": "#ffffff",
    "edge": "#b8c4d2",
    "word": "#1b2733",
    "soft": "#4a5a6b",
    "hook": "#0b5fa5",
    "value": "#0b5fa5",
    "on-value": "#ffffff",
}
DARK = {
    "sheet": "#12181f",
    "band": "#1c252f",
    "box": "#12181f",
    "edge": "#48586a",
    "word": "#e8eef4",
    "soft": "#b4c0cc",
    "hook": "#7fc4ff",
    "value": "#7fc4ff",
    "on-value": "#12181f",
}


class Box(NamedTuple):
    """One thing of a step, and the hook by which plugins are asked about it ("" where none is)."""

    name: str
    hook: str = ""


class Step(NamedTuple):
    """One step of a request: the room that takes it, what happens there, and in what parts."""

    room: str
    about: str
    boxes: tuple[Box, ...]
    ordered: bool = False


class Value(NamedTuple):
    """What has come out so far."""

    name: str
    about: str


def steps() -> list[Step | Value]:
    """The way of a request, from the top.

    Raises:
        LookupError: a hook of the picture isn't there, or one that is there isn't in the picture.
    """
    stages = [Box(stage.name, f"choose_{stage.name}") for stage in STAGES]
    facts = [name for name in Context.__struct_fields__ if name != "request"]
    way: list[Step | Value] = [
        Value("plan(source, profile, **options)  ·  load(source, profile, **options)", "a request"),
        Step(
            "request/",
            "what was asked, and who asked for it",
            (
                Box("options", "options"),
                Box("profiles", "profiles"),
                Box("training recipes", "recipe_dialects"),
                Box("named machines", "accelerators"),
            ),
        ),
        Step(
            "facts/",
            "what is there: read once, frozen, without torch",
            (
                Box("source", "open_source"),
                *(Box(name, name if f"{PREFIX}{name}" in vars(hookspecs) else "") for name in facts),
            ),
        ),
        Step(
            "planning/",
            "stages: all plugins are asked, the strongest claim wins, the others are kept with their reasons",
            (*stages, Box("further kwargs", "contribute_kwargs")),
            ordered=True,
        ),
        Step(
            "planning/",
            "the whole plan is weighed and checked: every problem at once",
            (
                Box("memory of weights", "estimate_weights"),
                Box("memory of adapters", "estimate_adapters"),
                Box("memory of optimizers", "optimizers"),
                Box("finishes", "announce_finish"),
                Box("checks", "check_plan"),
                Box("shortcuts", "shortcuts"),
            ),
        ),
        Value("Plan", "plain data: it prints, compares, hashes, goes through JSON  ·  plan() ends here"),
        Step(
            "ranks/",
            "the processes of a launch load as one; a process on its own passes by",
            (
                Box("same plan and commit"),
                Box("one download a node"),
                Box("same random numbers"),
                Box("one verdict"),
            ),
        ),
        Step(
            "loading/",
            "torch and transformers are imported; from_pretrained is called once",
            (
                Box("loading aids", "shorten_loading"),
                Box("files"),
                Box("tokenizer or processor"),
                Box("quantization config", "build_quantization_config"),
                Box("model", "load_model"),
            ),
            ordered=True,
        ),
        Step(
            "audit/",
            "a sample of the weights is held against the files' bytes",
            (Box("stored formats", "decode_stored"), Box("comparison", "compare_tensor")),
        ),
        Step(
            "loading/",
            "phases: in this order, one plugin each (a finish: all that the plan names), measured by the core",
            (
                *(Box(phase.name, phase.hook.__name__.removeprefix(PREFIX)) for phase in PHASES),
                Box("finishes", "finish_model"),
            ),
            ordered=True,
        ),
        Step(
            "audit/",
            "what was planned against what is there: a mismatch is an error",
            (
                Box("findings", "audit_model"),
                Box("settings", "read_back"),
                Box("measurements", "open_parameter"),
                Box("sections", "report_sections"),
                Box("workarounds", "workarounds"),
            ),
        ),
        Value(
            "Loaded", "model, processing class, plan, report  ·  manifest/ takes it down, to be loaded again"
        ),
    ]
    drawn = [box.hook for step in way if isinstance(step, Step) for box in step.boxes if box.hook]
    there = [name.removeprefix(PREFIX) for name in vars(hookspecs) if name.startswith(PREFIX)]
    if sorted(drawn) != sorted(there):
        raise LookupError(
            f"hooks drawn and hooks there differ in {sorted(set(drawn) ^ set(there))}: say where they come"
        )
    return way


def picture() -> str:
    """The picture as SVG, with its own background: it can be read on light and dark pages."""
    parts, y = [], MARGIN
    for number, step in enumerate(steps()):
        if number:
            middle = WIDTH // 2
            parts.append(f'<path class="arrow" d="M{middle} {y + 2}v{ARROW - 9}m-5 -5l5 5l5 -5"/>')
            y += ARROW
        drawn, height = _value(step, y) if isinstance(step, Value) else _step(step, y)
        parts += drawn
        y += height
    legend = "Blue: the hook by which plugins answer, without its prefix loadkit_. Steps without one are the core's."
    parts.append(f'<text class="soft" x="{MARGIN}" y="{y + 26}">{escape(legend)}</text>')
    height = y + 40
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title">',
            '<title id="title">The way of a request through loadkit</title>',
            f"<style>\n{style()}\n</style>",
            f'<rect class="sheet" width="{WIDTH}" height="{height}" rx="10"/>',
            *parts,
            "</svg>",
            "",
        ]
    )


def _value(value: Value, y: int) -> tuple[list[str], int]:
    middle = WIDTH // 2
    return [
        f'<rect class="value" x="{MARGIN}" y="{y}" width="{WIDTH - 2 * MARGIN}" height="{BAR}" rx="8"/>',
        f'<text class="on-value name" x="{middle}" y="{y + 20}" text-anchor="middle">{escape(value.name)}</text>',
        f'<text class="on-value small" x="{middle}" y="{y + 37}" text-anchor="middle">{escape(value.about)}</text>',
    ], BAR


def _step(step: Step, y: int) -> tuple[list[str], int]:
    placed = list(_placed(step))
    height = HEAD + max(row for row, _, _ in placed) * (BOX + GAP) + BOX + PADDING
    left, about = MARGIN + PADDING, MARGIN + PADDING + round(len(step.room) * 9) + 12
    parts = [
        f'<rect class="band" x="{MARGIN}" y="{y}" width="{WIDTH - 2 * MARGIN}" height="{height}" rx="8"/>',
        f'<text class="word room" x="{left}" y="{y + 20}">{escape(step.room)}</text>',
        f'<text class="soft" x="{about}" y="{y + 20}">{escape(step.about)}</text>',
    ]
    for number, (box, (row, x, width)) in enumerate(zip(step.boxes, placed, strict=True)):
        top = y + HEAD + row * (BOX + GAP)
        middle = x + width / 2
        parts.append(f'<rect class="box" x="{x}" y="{top}" width="{width}" height="{BOX}" rx="6"/>')
        name = f"{number + 1}  {box.name}" if step.ordered else box.name
        line = top + (17 if box.hook else 25)
        parts.append(
            f'<text class="word name" x="{middle:g}" y="{line}" text-anchor="middle">{escape(name)}</text>'
        )
        if box.hook:
            parts.append(
                f'<text class="hook" x="{middle:g}" y="{top + 32}" text-anchor="middle">{escape(box.hook)}</text>'
            )
    return parts, height


def _placed(step: Step) -> Iterator[tuple[int, int, int]]:
    """Row, left edge and width of each box, in as many rows as they need."""
    row, x = 0, MARGIN + PADDING
    for box in step.boxes:
        width = round(max((len(box.name) + 3 * step.ordered) * 8.6, len(box.hook) * 6.7)) + 18
        if x + width > WIDTH - MARGIN - PADDING:
            row, x = row + 1, MARGIN + PADDING
        yield row, x, width
        x += width + GAP


def style() -> str:
    """Fonts and colours of pictures, light and dark."""
    words = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
    code = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
    fonts = [
        f"text {{ font: 12px {words}; }}",
        f".name {{ font: 600 13px {words}; }}",
        f".small {{ font: 12px {words}; }}",
        f".room {{ font: 600 14px {code}; }}",
        f".hook {{ font: 11px {code}; }}",
        f".code {{ font: 13px {code}; }}",
        ".strong { font-weight: 600; }",
        ".arrow { fill: none; stroke-width: 1.6; stroke-linecap: round; stroke-linejoin: round; }",
    ]
    return "\n".join(
        [*fonts, *_colours(LIGHT), "@media (prefers-color-scheme: dark) {", *_colours(DARK), "}"]
    )


def _colours(of: dict[str, str]) -> list[str]:
    return [
        f".sheet {{ fill: {of['sheet']}; }}",
        f".band {{ fill: {of['band']}; stroke: {of['edge']}; }}",
        f".box {{ fill: {of['box']}; stroke: {of['edge']}; }}",
        f".value {{ fill: {of['value']}; }}",
        f".arrow {{ stroke: {of['soft']}; }}",
        *(f".{kind} {{ fill: {of[kind]}; }}" for kind in ("word", "soft", "hook", "on-value")),
    ]

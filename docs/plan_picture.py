"""A plan as a picture, with what each of its lines tells: of Mistral-7B's shape as QLoRA on a card of 24 GB.

Planned when the picture is made, from headers alone: what it shows is what `loadkit plan` prints.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from xml.sax.saxutils import escape

from moe_plans import COMMON, Large, write
from request_picture import style

import loadkit
from loadkit.schema.verdict_text import verdict_rows

__all__ = ["PLAN_PICTURE", "plan_picture"]

PLAN_PICTURE = Path(__file__).parent / "plan.svg"
MACHINE, PROFILE = "RTX4090-24GB", "qlora"

MISTRAL = Large("Mistral-7B", "bfloat16", {
    **COMMON, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "vocab_size": 32000, "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 32768, "rope_theta": 10000.0,
})  # fmt: skip

NOTES = {
    "fits": "The verdict: what it takes of what is there. Activations depend on the batch, and come on top.",
    "model": "The class that will load it; how many parameters there are, and how many of them train.",
    "weights": "The form they will have: dtype, quantization and how much of them it reaches, attention, device.",
    "training": "How it trains: the adapter and what it is on, checkpointing, the cache.",
}
"""What each line tells, by its name."""

WIDTH, MARGIN, LINE, NAME = 940, 22, 22, 92
"""Pixels: of the picture, around it, of a line, and of the names."""


def the_plan() -> loadkit.Plan:
    """The plan that is shown."""
    with tempfile.TemporaryDirectory() as folder:
        write(MISTRAL, Path(folder, MISTRAL.name))
        with contextlib.chdir(folder):
            return loadkit.plan(MISTRAL.name, PROFILE, machine=MACHINE)


def plan_picture() -> str:
    """The picture as SVG, with its own background: it can be read on light and dark pages."""
    rows = verdict_rows(the_plan())
    if missing := {row.name for row in rows} ^ NOTES.keys():
        raise LookupError(f"say what these lines of a plan tell, and no others: {', '.join(sorted(missing))}")
    y = MARGIN + 14
    parts = [
        f'<text class="soft code" x="{MARGIN}" y="{y}">{escape(f"$ loadkit plan {MISTRAL.name} {PROFILE} --machine {MACHINE}")}</text>'
    ]
    for row in rows:
        y += LINE + 10
        parts.append(f'<text class="word code strong" x="{MARGIN}" y="{y}">{escape(row.name)}</text>')
        for number, line in enumerate((row.text, *row.below)):
            y += LINE if number else 0
            parts.append(f'<text class="word code" x="{MARGIN + NAME}" y="{y}">{escape(line)}</text>')
        y += LINE - 2
        parts.append(f'<text class="hook" x="{MARGIN + NAME}" y="{y}">{escape(NOTES[row.name])}</text>')
    y += LINE + 12
    asks = f"$ loadkit plan {MISTRAL.name} {PROFILE} --machine {MACHINE} --why"
    parts += [
        f'<text class="soft code" x="{MARGIN}" y="{y}">{escape(asks)}</text>',
        f'<text class="hook" x="{MARGIN + 510}" y="{y}">who decided each of it, why, and instead of what</text>',
    ]
    height = y + MARGIN
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="plan-title">',
            '<title id="plan-title">A plan of loadkit, and what each of its lines tells</title>',
            f"<style>\n{style()}\n</style>",
            f'<rect class="band" x="1" y="1" width="{WIDTH - 2}" height="{height - 2}" rx="10"/>',
            *parts,
            "</svg>",
            "",
        ]
    )

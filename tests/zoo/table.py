"""Sweep every model type and write the table: `python tests/zoo/table.py` (ten minutes on two cores)."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import transformers
from zoo.expected import NEEDS, PROFILES, TABLE, expected, model_types, row, works
from zoo.sweeping import sweep

HEAD = """# Architectures

Every model type of transformers {version}'s maps for causal language models and for image-text-to-text, with every profile: a tiny checkpoint of
its own config class is loaded, audited, run forward, and backward where the profile trains. ✓ stands for all of that; where plain `from_pretrained`
gives logits, those of `full` and `inference` are the same bits. Made by `python tests/zoo/table.py`; CI runs the same sweep and fails where a line isn't
what it finds.

{counts}

## What doesn't work

**refused**: the plan says so, and why. **fails**: it loads and fails to run, as in plain transformers or PEFT. **—**: it couldn't be made here.

| model type | {profiles} |
|---|{rules}|
"""

REASONS = """
## Why not

Each is checked too: one that begins to work fails the sweep until its line goes.

"""

WORKING = """
## What works with every profile
"""

TASKS = {"causal-lm": "Language models", "image-text-to-text": "Vision-language models"}


def main() -> None:
    verdicts, off = {}, []
    for number, model_type in enumerate(model_types(), 1):
        print(f"\r{number} {model_type:40}", end="", file=sys.stderr, flush=True)
        if model_type in NEEDS:
            verdicts[model_type] = {"made": "not made"}
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = sweep(model_type, Path(folder) / "checkpoint")
        verdicts[model_type] = {profile: outcome.verdict for profile, outcome in found.items()}
        off += [(*o.off, profile) for profile, o in found.items() if o.verdict == "works"]
    TABLE.write_text(page(verdicts, off), encoding="utf-8")


def page(verdicts: dict[str, dict[str, str]], off: list[tuple[float, float, str]]) -> str:
    """The page, for the verdicts of every model type, and how far the estimates of memory are off."""
    counts = Counter(verdict for found in verdicts.values() for verdict in found.values())
    said = (
        f"{len(verdicts)} model types; of {sum(counts.values()) - counts['not made']} loads {counts['works']} work, "
        f"{counts['refused']} are refused with a reason, and {counts['runs not']} load and then fail to run, as they do in plain transformers or PEFT."
    )
    adapted = [adapters for _, adapters, profile in off if profile not in ("full", "inference")]
    said += (
        f"\n\n`plan.memory` is within 1 % of what is then loaded for {sum(abs(b) <= 0.01 for b, *_ in off)} of {len(off)} of them, adapters "
        f"aside; for {sum(abs(a) <= 0.01 for a in adapted)} of {len(adapted)} the adapters' size is too."
    )
    head = HEAD.format(
        version=transformers.__version__,
        counts=said,
        profiles=" | ".join(PROFILES),
        rules="|".join(["---"] * len(PROFILES)),
    )
    rows = "\n".join(row(model_type, found) for model_type, found in verdicts.items() if not works(found))
    return head + rows + "\n" + REASONS + "\n".join(_reasons()) + "\n" + _working(verdicts)


def _working(verdicts: dict[str, dict[str, str]]) -> str:
    parts = [WORKING]
    for task, title in TASKS.items():
        names = [
            row(model_type, found)
            for model_type, found in verdicts.items()
            if works(found) and model_types()[model_type] == task
        ]
        parts.append(f"### {title} ({len(names)})\n\n" + "\n".join(names) + "\n")
    return "\n".join(parts)


def _reasons() -> list[str]:
    lines = [
        f"- **{model_type}**: needs {package}, which isn't installed here."
        for model_type, package in NEEDS.items()
    ]
    for model_type in model_types():
        by_reason: dict[str, list[str]] = {}
        for profile, found in expected(model_type).items():
            by_reason.setdefault(found.because, []).append(profile)
        lines += [
            f"- **{model_type}** ({', '.join(profiles)}): {because}."
            for because, profiles in by_reason.items()
        ]
    return sorted(lines)


if __name__ == "__main__":
    main()

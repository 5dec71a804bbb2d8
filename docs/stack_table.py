"""What the tests came to beside which versions, from the results that `tests/stacks/run` keeps."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

__all__ = ["stack_table"]

STACKS = Path(__file__).parent.parent / "tests" / "stacks"


def stack_table(page: Path) -> str:
    """A row for each stack that ran, and the names of those that have pins and didn't."""
    results = json.loads((STACKS / "results.json").read_text(encoding="utf-8"))
    rows = ["| stack | Python | with | tests | passed | failed | skipped |", "|---|---|---|---|---|---|---|"]
    for stack, ran in results.items():
        counts: Counter[str] = Counter()
        for each in ran["tests"].values():
            counts.update(each)
        versions = ", ".join(f"{name} {version}" for name, version in ran["versions"].items())
        cells = [stack, ran["python"], versions, ", ".join(f"`{f}`" for f in ran["tests"])]
        rows.append(
            f"| {' | '.join(cells)} | {counts['passed']} | {counts['failed']} | {counts['skipped']} |"
        )
    waiting = sorted({path.stem for path in STACKS.glob("*.txt")} - results.keys())
    return "\n".join(rows) + f"\n\nPins that no run stands behind: {', '.join(waiting) or 'none'}."

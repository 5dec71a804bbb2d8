"""A load from the Hub, as each of several processes on one machine makes it."""

from __future__ import annotations

from ranks.launch import report

import loadkit

__all__ = ["load"]


def load(out: str, adapter: str) -> None:
    """Report what was loaded, and how often the rank reported progress."""
    steps: list[str] = []
    loaded = loadkit.load("owner/wren", "inference", adapter=adapter, progress=steps.append)
    checkpoint, given = loaded.plan.checkpoint, loaded.plan.adapter
    assert given is not None
    values = sum(float(p.detach().double().sum()) for p in loaded.model.parameters())
    report(
        out,
        {
            "commit": checkpoint.commit,
            "asked": checkpoint.revision,
            "adapter": given.revision,
            "values": values,
            "steps": len(steps),
        },
    )

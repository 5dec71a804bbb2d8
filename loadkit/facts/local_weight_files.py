"""Where a plan's weight files lie on this machine."""

from __future__ import annotations

from pathlib import Path

from loadkit.facts.local_copies import copy_of
from loadkit.schema.plans import Plan

__all__ = ["local_weight_files"]


def local_weight_files(plan: Plan) -> list[Path]:
    """The safetensors files that are here already; none for pickles, and none of what isn't downloaded
    yet."""
    checkpoint = plan.checkpoint
    if checkpoint.weight_format != "safetensors":
        return []
    cache_dir = next((d.value for d in plan.decisions if d.stage == "kwargs.cache_dir"), None)
    here = copy_of(checkpoint.location, checkpoint.commit, cache_dir=cache_dir)
    missing = set(here.missing(checkpoint.weight_files))
    return [here.folder / name for name in checkpoint.weight_files if name not in missing]

"""Where a plan's weight files lie on this machine."""

from __future__ import annotations

from pathlib import Path

from loadkit.schema.plans import Plan

__all__ = ["local_weight_files"]


def local_weight_files(plan: Plan) -> list[Path]:
    """The safetensors files that are here already; none for pickles, and none of what isn't downloaded
    yet."""
    checkpoint = plan.checkpoint
    if checkpoint.weight_format != "safetensors":
        return []
    if checkpoint.kind == "folder":
        paths = [Path(checkpoint.location) / name for name in checkpoint.weight_files]
    else:
        from huggingface_hub import try_to_load_from_cache

        cache = next((d.value for d in plan.decisions if d.stage == "kwargs.cache_dir"), None)
        found = [
            try_to_load_from_cache(checkpoint.location, name, cache_dir=cache, revision=checkpoint.commit)
            for name in checkpoint.weight_files
        ]
        paths = [Path(path) for path in found if isinstance(path, str)]
    return [path for path in paths if path.is_file()]

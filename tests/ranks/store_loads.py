"""A load from a plugin's store, as each of several processes on one machine makes it."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants
from ranks.launch import report
from stores import Store, manager_with

import loadkit

__all__ = ["load"]


def load(out: str, folder: str) -> None:
    """Report what was loaded, and how much this rank read of the weights."""
    constants.HF_HUB_OFFLINE = False  # sources are asked only online; the variable was read before the fork
    store = Store(tiny=Path(folder))
    loaded = loadkit.load("store://tiny", plugin_manager=manager_with(store))
    values = sum(float(p.detach().double().sum()) for p in loaded.model.parameters())
    commit = loaded.plan.checkpoint.commit
    report(out, {"commit": commit, "values": values, "read": store.read.get("model.safetensors", 0)})

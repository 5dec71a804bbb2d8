"""Loads whose quantized base is kept, what their reports say of it, and whether two are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import loadkit
from loadkit import Loaded
from loadkit_plugins.quantized_cache.writer import finish_writing

__all__ = ["load", "same", "told"]


def load(folder: Path, **options: Any) -> Loaded:
    loaded = loadkit.load(folder, "inference-4bit", **options)
    finish_writing()
    return loaded


def told(loaded: Loaded) -> str:
    return "; ".join(line for line in loaded.report.shortcuts if line.endswith("(quantized-cache)"))


def same(first: Loaded, second: Loaded) -> bool:
    a, b = first.model.state_dict(), second.model.state_dict()
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)

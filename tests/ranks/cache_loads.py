"""Loads of a base that is quantized while loading, by two ranks beside one cache of what was quantized, or
two caches."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import torch
from ranks.launch import report

import loadkit
from loadkit_plugins.quantized_cache.entry import Cached
from loadkit_plugins.quantized_cache.writer import finish_writing

__all__ = ["both_orders", "in_own_folders"]

RANK = int(os.environ.get("RANK", "0"))


def both_orders(out: str, folder: str) -> None:
    """Load beside one cache, and beside another, where the other rank comes to its lock first."""
    found = {}
    for first in (0, 1):
        os.environ["LOADKIT_CACHE"] = str(Path(out).parent / f"first-{first}")
        with second_at_the_lock(1 - first, Path(out).parent / f"locked-{first}"):
            found[first] = load(folder)
    report(out, found)


def in_own_folders(out: str, *caches: str) -> None:
    """Load "owner/wren" beside each of these pairs of caches: rank 0's and rank 1's, with a comma between."""
    found = []
    for pair in caches:
        os.environ["LOADKIT_CACHE"] = pair.split(",")[RANK]
        found.append(load("owner/wren"))
    report(out, found)


def load(source: str) -> dict[str, Any]:
    torch.manual_seed(RANK)
    start = time.monotonic()
    loaded = loadkit.load(source, "qlora")
    seconds = time.monotonic() - start
    digest = hashlib.sha256()
    for (
        name,
        tensor,
    ) in loaded.model.state_dict().items():  # the fresh adapter too: it is the same on all ranks
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    finish_writing()
    used = [line for line in loaded.report.shortcuts if line.endswith("(quantized-cache)")]
    return {"bits": digest.hexdigest(), "cache": " ".join(used), "seconds": seconds}


class second_at_the_lock:  # noqa: N801 - a context manager, named as it reads
    """This rank doesn't ask for the cache's lock before the other one has it."""

    def __init__(self, second: int, mark: Path) -> None:
        self.second, self.mark, self.enter = second, mark, Cached.__enter__

    def __enter__(self) -> None:
        def enter(aid: Cached) -> Cached:
            while self.second == RANK and not self.mark.exists():
                time.sleep(0.01)
            entered = self.enter(aid)
            self.mark.touch()
            if self.second != RANK:
                time.sleep(0.5)  # the other one waits for the lock meanwhile
            return entered

        Cached.__enter__ = enter  # type: ignore[method-assign]

    def __exit__(self, *error: object) -> None:
        Cached.__enter__ = self.enter  # type: ignore[method-assign]

"""Ranks beside the cache of quantized checkpoints: one of them quantizes, none waits for one that waits for
it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from forks import Forks
from hub_server import HubServer
from ranks.launch import Launched, launch
from ranks.test_hub_loads import downloads

import loadkit
from loadkit_plugins.quantized_cache.writer import finish_writing

ON = {"LOADKIT_QUANTIZED_CACHE": "1", "LOADKIT_RANKS_TIMEOUT": "100"}
"""The ranks themselves would report a deadlock."""


def results(done: Launched) -> list:
    assert sorted(done.results) == [0, 1], done.output
    return [done.results[rank] for rank in (0, 1)]


def test_one_rank_quantizes_for_both(tiny, forks: Forks, own_cache, tmp_path: Path) -> None:
    """Whoever has the lock: rank 0 whom the other waits for, or rank 1 who waits for rank 0's random numbers
    next."""
    for first in ("0", "1"):
        own_cache(tmp_path / f"first-{first}")
    launches = [
        results(launch("cache_loads:both_orders", 2, tmp_path / name, tiny("mistral"), launcher=forks, **ON))
        for name in ("new", "again")
    ]
    for first in ("0", "1"):
        new, again = ([rank[first] for rank in ranks] for ranks in launches)
        quantized = ["kept for the next load" in rank["cache"] for rank in new]
        assert quantized == [first == "0", first == "1"]
        assert "from the cache" in new[1 - int(first)]["cache"]
        assert all("from the cache" in rank["cache"] for rank in again)
        assert len({rank["bits"] for rank in (*new, *again)}) == 1
        assert len(list((tmp_path / f"first-{first}" / "quantized").glob("*/model.safetensors"))) == 1


@pytest.mark.slow
def test_a_rank_that_is_served_keeps_none_waiting(
    hub: HubServer, cache: Path, tiny, forks: Forks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First both find the entry, and nobody downloads; then only the one who would download first."""
    hub.add("owner/wren", tiny("mistral"))
    with monkeypatch.context() as patch:
        patch.setenv("LOADKIT_QUANTIZED_CACHE", "1")
        patch.setenv("LOADKIT_CACHE", str(tmp_path / "there"))
        loadkit.load("owner/wren", "qlora")
        finish_writing()
    for path in cache.rglob("model.safetensors"):
        path.resolve().unlink()
        path.unlink()
    there, fresh = str(tmp_path / "there"), str(tmp_path / "fresh")
    more: dict[str, Any] = {"launcher": forks, **ON}
    more |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache.parent), "HF_HUB_OFFLINE": "0"}

    before = downloads(hub, "model.safetensors")
    both = results(launch("cache_loads:in_own_folders", 2, tmp_path / "both", f"{there},{there}", **more))
    assert all("from the cache" in rank[0]["cache"] for rank in both)
    assert not list(cache.rglob("model.safetensors"))
    assert downloads(hub, "model.safetensors").count("GET") == before.count("GET")

    one = results(launch("cache_loads:in_own_folders", 2, tmp_path / "one", f"{there},{fresh}", **more))
    assert "from the cache" in one[0][0]["cache"]
    assert "kept for the next load" in one[1][0]["cache"]
    assert downloads(hub, "model.safetensors").count("GET") == before.count("GET") + 1
    assert len({rank[0]["bits"] for rank in (*both, *one)}) == 1

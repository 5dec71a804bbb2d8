"""Three ranks on one machine, and a store: one commit, and one of them fetches."""

from __future__ import annotations

from pathlib import Path

from forks import Forks
from ranks.launch import launch


def test_one_commit_and_one_fetch(tiny, forks: Forks, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    out = tmp_path / "out"
    done = launch("store_loads:load", 3, out, tiny("mistral"), launcher=forks, LOADKIT_CACHE=str(cache))
    assert sorted(done.results) == [0, 1, 2], done.output
    assert len({(found["commit"], found["values"]) for found in done.results.values()}) == 1
    size = (tiny("mistral") / "model.safetensors").stat().st_size
    read = sorted(found["read"] for found in done.results.values())
    assert read[-1] >= size
    assert all(few <= 65_536 for few in read[:-1])  # their headers

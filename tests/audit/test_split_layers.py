"""The share of each process under tensor parallelism, planned against loaded: two real processes,
transformers' own splitting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from forks import Forks
from ranks.launch import launch

SPLIT = ("gemma3", "llama", "llava", "mistral", "mixtral", "qwen2", "qwen2-tied", "smollm3")


def test_each_process_holds_what_was_planned(tiny: Callable[..., Path], forks: Forks, tmp_path: Path) -> None:
    paths = [str(tiny(name)) for name in SPLIT]
    done = launch("split_layers:hold", 2, tmp_path, *paths, launcher=forks)
    assert done.code == 0, done.output
    for rank in (0, 1):
        found = done.results[rank]
        assert list(found) == paths
        for path, (held, planned, whole) in found.items():
            assert held == planned < 0.8 * whole, path

"""Four ranks on one machine, and branches that move while they load: one commit, one download."""

from __future__ import annotations

from pathlib import Path

import pytest
from forks import Forks
from hub_server import HubServer
from ranks.launch import launch

import loadkit


@pytest.fixture(scope="module")
def adapters(tiny, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    for number in range(2):
        loadkit.load(tiny("mistral"), "lora").model.save_pretrained(folder / str(number))
    return [folder / "0", folder / "1"]


def downloads(hub: HubServer, name: str) -> list[str]:
    """How a whole file was asked for, its metadata included; headers are read by ranges before."""
    return sorted(a.method for a in hub.answers if a.path.endswith(f"/{name}") and not a.range)


def test_one_commit_and_one_download(
    hub: HubServer, cache: Path, tiny, adapters: list[Path], forks: Forks, tmp_path: Path
) -> None:
    commit = hub.add("owner/wren", tiny("mistral"))
    adapter = hub.add("owner/song", adapters[0])
    hub.after("/api/models/owner/wren", lambda: hub.add("owner/wren", tiny("mistral", seed=1)))
    hub.after("/api/models/owner/song", lambda: hub.add("owner/song", adapters[1]))
    done = launch(
        "hub_loads:load",
        4,
        tmp_path / "out",
        "owner/song",
        launcher=forks,
        HF_ENDPOINT=hub.url,
        HF_HOME=str(cache.parent),
        HF_HUB_OFFLINE="0",
    )
    assert sorted(done.results) == [0, 1, 2, 3], done.output
    moved = {name: hub.repositories[name].branches["main"] for name in ("owner/wren", "owner/song")}
    assert moved["owner/wren"] != commit
    assert moved["owner/song"] != adapter
    for rank, found in done.results.items():
        assert (found["commit"], found["asked"], found["adapter"]) == (commit, "", adapter), rank
        assert found["values"] == done.results[0]["values"]
        assert (found["steps"] > 0) == (rank == 0)
    for name in ("model.safetensors", "adapter_model.safetensors"):
        assert downloads(hub, name) == ["GET", "HEAD"]
    assert not [a for a in hub.answers if any(new in a.path for new in moved.values())]

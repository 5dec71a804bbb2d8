"""Memory, disks and web servers: planned, loaded, and refused where something is wrong."""

from __future__ import annotations

import http.server
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

import loadkit
from loadkit import PlanError, PluginManager
from loadkit_fsspec import plugin

Tiny = Callable[[str], Path]


@pytest.fixture
def memory(tiny: Tiny) -> Iterator[Any]:
    """A checkpoint at memory://models/tiny."""
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(tiny("mistral")), "/models/tiny", recursive=True)
    yield filesystem
    filesystem.rm("/models", recursive=True)


def codes(caught: pytest.ExceptionInfo[PlanError]) -> list[str]:
    return [problem.code for problem in caught.value.problems if problem.severity == "error"]


def same_weights(one: Any, other: Any) -> bool:
    import torch

    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == its and torch.equal(a, b) for (name, a), (its, b) in pairs)


def test_it_takes_its_own_schemes_only() -> None:
    assert plugin.loadkit_open_source("ms://owner/name") is None


def test_memory_loads_as_the_folder_does(memory: Any, tiny: Tiny, manager: PluginManager) -> None:
    loaded = loadkit.load("memory://models/tiny", plugin_manager=manager)
    assert same_weights(loaded.model, loadkit.load(tiny("mistral")).model)
    memory.pipe_file("/models/tiny/generation_config.json", b"{}")
    changed = loadkit.plan("memory://models/tiny", plugin_manager=manager)
    assert changed.checkpoint.commit != loaded.plan.checkpoint.commit


def test_a_tokenizer_and_a_template_come_from_there_too(
    memory: Any, tiny: Tiny, manager: PluginManager
) -> None:
    place = "memory://models/tiny"
    loaded = loadkit.load(tiny("llama"), tokenizer=place, chat_template=place, plugin_manager=manager)
    assert loaded.processing_class.name_or_path == place
    assert (loaded.plan.processing.source, len(loaded.plan.processing.revision)) == (place, 40)


def test_a_disk_loads_and_its_links_stay_inside(tiny: Tiny, tmp_path: Path, manager: PluginManager) -> None:
    shutil.copytree(tiny("mistral"), tmp_path / "tiny")
    place = f"file://{tmp_path / 'tiny'}"
    assert same_weights(
        loadkit.load(place, plugin_manager=manager).model, loadkit.load(tiny("mistral")).model
    )
    (tmp_path / "secret").write_text("{}")
    os.symlink(tmp_path / "secret", tmp_path / "tiny" / "special_tokens_map.json")
    with pytest.raises(PlanError) as caught:
        loadkit.plan(place, plugin_manager=manager)
    assert codes(caught) == ["link-outside"]


@pytest.mark.parametrize("place", ["memory://models/none", "file:///no/such/folder"])
def test_what_isnt_there_is_one_problem(memory: Any, place: str, manager: PluginManager) -> None:
    with pytest.raises(PlanError) as caught:
        loadkit.plan(place, plugin_manager=manager)
    assert codes(caught) == ["no-such-source"]


def test_a_driver_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, manager: PluginManager) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(PlanError) as caught:
        loadkit.plan("gs://bucket/tiny", plugin_manager=manager)
    assert codes(caught) == ["driver-not-installed"]
    assert "pip install 'loadkit-fsspec[gs]'" in str(caught.value)


class Handler(http.server.SimpleHTTPRequestHandler):
    """A web server of a folder, which knows ranges unless told otherwise."""

    ranges = True
    status = 0

    def send_head(self) -> Any:
        if self.status:
            self.send_error(self.status)
            return None
        wanted = self.headers.get("Range", "")
        path = self.translate_path(self.path)
        if not self.ranges or not wanted.startswith("bytes=") or not os.path.isfile(path):
            return super().send_head()
        start, _, end = wanted.removeprefix("bytes=").partition("-")
        size = os.path.getsize(path)
        last = min(int(end or size - 1), size - 1)
        file = open(path, "rb")  # noqa: SIM115 - the base class closes it
        content = file.read()[int(start) : last + 1]
        file.close()
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{last}/{size}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        import io

        return io.BytesIO(content)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def website(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a checkpoint of two shards on a web server."""
    pytest.importorskip("aiohttp", reason="aiohttp isn't installed, which fsspec needs for http")
    import functools

    shutil.copytree(tiny("mistral"), tmp_path / "web" / "tiny")
    handler = functools.partial(Handler, directory=str(tmp_path / "web"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/tiny"
    server.shutdown()
    server.server_close()


@pytest.mark.filterwarnings("ignore")
def test_a_website_loads(website: str, tiny: Tiny, manager: PluginManager) -> None:
    loaded = loadkit.load(website, plugin_manager=manager)
    assert same_weights(loaded.model, loadkit.load(tiny("mistral")).model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"ranges": False}, "no-ranges"),
        ({"status": 403}, "no-access"),
        ({"status": 503}, "source-unreachable"),
    ],
)
def test_a_website_that_refuses_is_one_problem(
    website: str, manager: PluginManager, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any], code: str
) -> None:
    for name, value in fault.items():
        monkeypatch.setattr(Handler, name, value)
    with pytest.raises(PlanError) as caught:
        loadkit.plan(website, plugin_manager=manager)
    assert set(codes(caught)) == {code}

"""Tiny real checkpoints, a manager with the plugin, and a wire that counts, breaks and is cut."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import loadkit


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A maker of tiny checkpoints: `tiny("mistral")`."""
    from loadkit.testing.checkpoints import make_checkpoint

    made: dict[str, Path] = {}

    def make(arch: str = "mistral") -> Path:
        if arch not in made:
            made[arch] = make_checkpoint(tmp_path_factory.mktemp(arch) / arch, arch)
        return made[arch]

    return make


@pytest.fixture
def manager() -> loadkit.PluginManager:
    """Every installed plugin, and this one."""
    from loadkit_fsspec import plugin

    made = loadkit.PluginManager(environ={})
    if "fsspec" not in {about.name for about in made.plugins}:
        made.register(plugin, "fsspec")
    return made


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of a test's own, and sources that are asked, whatever the environment says of the Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    # the copies alone: the index of transformers stays
    monkeypatch.setattr("loadkit.facts.stores.copies.cache_folder", lambda: tmp_path / "cache")
    for module in ("store_files", "fetch"):
        monkeypatch.setattr(f"loadkit.facts.stores.{module}.PAUSES", (0.0, 0.0))


class Wire:
    """Loopback to a server: what it sends is counted, and after so many bytes the connection ends."""

    def __init__(self, server: tuple[str, int]) -> None:
        self.server = server
        self.sent = 0
        self.cut_after: int | None = None
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Let nobody in any more."""
        self._socket.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                if self.cut_after is not None and self.sent >= self.cut_after:
                    client.close()
                    continue
                server = socket.create_connection(self.server)
                threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := one.recv(65_536):
                if counted and self.cut_after is not None and self.sent + len(data) > self.cut_after:
                    other.sendall(data[: max(0, self.cut_after - self.sent)])
                    self.sent = max(self.sent, self.cut_after)
                    break
                other.sendall(data)
                self.sent += len(data) * counted
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def wire() -> Iterator[Callable[[tuple[str, int]], Wire]]:
    """A maker of wires to servers."""
    made: list[Wire] = []

    def make(server: tuple[str, int]) -> Wire:
        made.append(Wire(server))
        return made[-1]

    yield make
    for each in made:
        each.close()

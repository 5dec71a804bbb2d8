"""The key-value store that the processes of a launch share.

It is that of torch's default process group, if there is one; else the one that torchrun's agent keeps; else
one that rank 0 keeps at MASTER_ADDR and MASTER_PORT, "multi-tenant" in torch's words: a process group that is
made later at the same port shares it.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol

from loadkit.errors import LoadkitError
from loadkit.facts.machine.topology import Topology
from loadkit.ranks.settings import Settings
from loadkit.schema.request import Progress

__all__ = ["Store", "open_store", "prefixed"]

PREFIX = "loadkit"
ATTEMPT = 10.0
"""Seconds of one attempt to connect: after each, a line says so, and the user can interrupt."""


class Store(Protocol):
    """What is used of torch's `Store`, which its stubs don't export."""

    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def multi_get(self, keys: Sequence[str], /) -> list[bytes]: ...
    def check(self, keys: Sequence[str], /) -> bool: ...
    def compare_set(self, key: str, expected: str, value: str, /) -> bytes: ...
    def clone(self) -> Store: ...
    def set_timeout(self, timeout: timedelta, /) -> None: ...


def open_store(topology: Topology, settings: Settings, say: Progress) -> Store:
    """Open the store that all processes of the launch share.

    Raises:
        LoadkitError: this torch can't, the launcher doesn't say where it is, or it can't be reached in time.
    """
    dist = _torch_distributed()
    if not dist.is_available():
        raise LoadkitError(
            f"{topology.world_size} processes were launched, and this torch is built without torch.distributed\n"
            "    fix: install a torch that has it, or give together=False to let each process load on its own"
        )
    attempt = f"{PREFIX}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if dist.is_initialized() and dist.get_world_size() == topology.world_size:
        # torch 2.13 has no public name for it; a store of one's own would need a port that nobody else uses
        return prefixed(attempt, dist.distributed_c10d._get_default_store())
    host, port = _address(topology)
    return prefixed(attempt, _connected(host, port, topology.rank, settings, say))


def prefixed(prefix: str, store: Store) -> Store:
    """The part of a store whose keys begin with the prefix."""
    found: Store = _torch_distributed().PrefixStore(prefix, store)
    return found


def _torch_distributed() -> Any:
    return importlib.import_module("torch.distributed")


def _address(topology: Topology) -> tuple[str, int]:
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if host and port.isdigit() and 0 < int(port) < 2**16:
        return host, int(port)
    raise LoadkitError(
        f"{topology.world_size} processes were launched, and the launcher doesn't say where they meet: MASTER_ADDR is "
        f"{host!r} and MASTER_PORT is {port!r}\n"
        "    fix: export both (torchrun and accelerate do), or give together=False to let each process load on its own"
    )


_open: dict[tuple[str, int], Store] = {}
"""One connection a process, never closed: a process group made later at that port shares the server."""


def _connected(host: str, port: int, rank: int, settings: Settings, say: Progress) -> Store:
    """The store; `LoadkitError` where the port is taken, or nobody keeps it in time."""
    dist = _torch_distributed()
    keeps = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    start = time.monotonic()
    while (host, port) not in _open:
        try:
            _open[host, port] = dist.TCPStore(
                host,
                port,
                is_master=keeps,
                timeout=timedelta(seconds=min(ATTEMPT, settings.timeout)),
                wait_for_workers=False,
                multi_tenant=keeps,
            )
        except dist.DistError as error:  # noqa: PERF203 - an attempt takes seconds
            waited = time.monotonic() - start
            if keeps or waited >= settings.timeout:
                raise LoadkitError(
                    f"the store at {host}:{port} that the processes of this launch share couldn't be {'opened' if keeps else 'reached'} in "
                    f"{waited:.0f} s: {str(error).splitlines()[0]}\n"
                    "    fix: see that every rank calls load() and that MASTER_ADDR and MASTER_PORT are those of rank 0, or give "
                    "together=False to let each process load on its own"
                ) from error
            say(f"waiting for rank 0 at {host}:{port}")
    return _open[host, port]

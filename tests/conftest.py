"""Fixtures that every house shares: caches of their own, and tiny real checkpoints made once a session."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import HubServer, point_to

# transformers copies a checkpoint's own code there, and reads the variable when it is imported, which is while collecting.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="loadkit-modules-")


# OpenMP's threads spin while they wait, by default: with another process on the same cores a step then takes 50 times longer.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(autouse=True, scope="session")
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's caches out of the tests, and the network too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOADKIT_CACHE", str(tmp_path_factory.getbasetemp().parent / "loadkit-cache"))
        patch.setenv(
            "LOADKIT_QUANTIZED_CACHE", "0"
        )  # each test quantizes for itself, but for those of the cache
        for name in ("LOADKIT_DISABLE", "LOADKIT_PLUGINS", "LOADKIT_STRICT", "HF_TOKEN"):
            patch.delenv(name, raising=False)
        yield
    shutil.rmtree(os.environ["HF_MODULES_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A maker of tiny checkpoints that makes each one once a session: `tiny("mistral")`."""
    from loadkit.testing.checkpoints import make_checkpoint

    made: dict[tuple[object, ...], Path] = {}

    def make(arch: str = "mistral", **options: object) -> Path:
        key = (arch, *sorted(options.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp(arch.replace("/", "-")) / arch
            made[key] = make_checkpoint(folder, arch, **options)  # type: ignore[arg-type]
        return made[key]

    return make


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "home" / "hub"


@pytest.fixture
def hub(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        point_to(monkeypatch, server.url, cache.parent)
        # Where a relative path is looked for first: nothing is there.
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path / "empty")
        yield server
        huggingface_hub.close_session()  # its connections are to a server that ends

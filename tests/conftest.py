"""Fixtures that every room shares: caches of their own, tiny real checkpoints made once a run, processes that
start at once."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from filelock import FileLock
from forks import Forks
from hub_server import HubServer, point_to
from hypothesis import HealthCheck, settings

collect_ignore = ["benchmarks"]  # run by hand, on a quiet machine

# transformers copies a checkpoint's own code there, and reads the variable when it is imported, which is
# while collecting.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="loadkit-modules-")

# Models are tiny, and workers as many as cores: with a second thread of OpenMP's each step would wait for a
# core that another process has, 50 times as long as it takes. Where a test asks for threads, they sleep while
# they wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A hundred processes start here: compiling loadkit would be half of what they cost.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


# How long an example takes tells of the machine, not of loadkit.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run, the same for all its workers."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own


@pytest.fixture(autouse=True, scope="session")
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's caches out of the tests, and the network too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOADKIT_CACHE", str(tmp_path_factory.getbasetemp().parent / "loadkit-cache"))
        patch.setenv(
            "LOADKIT_QUANTIZED_CACHE", "0"
        )  # each test quantizes for itself, but for the cache's own
        for name in ("LOADKIT_DISABLE", "LOADKIT_PLUGINS", "LOADKIT_STRICT", "HF_TOKEN"):
            patch.delenv(name, raising=False)
        yield
    shutil.rmtree(os.environ["HF_MODULES_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def tiny(shared: Path) -> Callable[..., Path]:
    """A maker of tiny checkpoints that makes each one once a run, whichever worker asks:
    `tiny("mistral")`."""
    from loadkit.testing.checkpoints import make_checkpoint

    def make(arch: str = "mistral", **options: object) -> Path:
        options_of = "".join(f"-{name}-{value}" for name, value in sorted(options.items()))
        home = shared / "tiny" / f"{arch}{options_of}".replace("/", "-")
        folder = home / arch
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / "lock"):
            if not folder.is_dir():
                make_checkpoint(home / "unfinished" / arch, arch, **options)  # type: ignore[arg-type]
                (home / "unfinished" / arch).rename(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def kernels(shared: Path, _own_caches: None) -> Path:
    """The folder of the run's compiled kernels, all of them compiled."""
    from loadkit_plugins.cpu_kernels.register import KERNELS, registered

    folder = Path(os.environ["LOADKIT_CACHE"], "kernels")
    with FileLock(shared / "kernels.lock"):
        for operator in KERNELS:
            with registered(operator, folder, lambda sentence: None) as refused:
                assert refused == ""
    return folder


@pytest.fixture(scope="session")
def own_cache(kernels: Path) -> Callable[[Path], Path]:
    """A maker of caches of a test's own that have the run's index of transformers and compiled kernels, and
    nothing else."""
    index = kernels.with_name("library")

    def make(folder: Path) -> Path:
        folder.mkdir(parents=True)
        for part in (index, kernels):
            part.mkdir(parents=True, exist_ok=True)
            (folder / part.name).symlink_to(part, target_is_directory=True)
        return folder

    return make


@pytest.fixture(scope="session")
def forks(_own_caches: None, tmp_path_factory: pytest.TempPathFactory) -> Forks:
    """Processes of their own that needn't import the libraries."""
    return Forks(tmp_path_factory.mktemp("forks"))


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

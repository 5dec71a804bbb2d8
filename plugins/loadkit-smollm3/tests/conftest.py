"""Tiny real checkpoints of the family, and a plugin manager that has the plugin, installed or not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

DISTRIBUTION = Path(__file__).parent.parent
SIZES = {"num_hidden_layers": 4, "no_rope_layer_interval": 4, "initializer_range": 0.3}
"""As in the real model every fourth layer has no rotary embedding; weights so wide that mistakes show."""


@pytest.fixture(autouse=True, scope="session")
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOADKIT_CACHE", str(tmp_path_factory.getbasetemp().parent / "loadkit-cache"))
        for name in ("LOADKIT_DISABLE", "LOADKIT_PLUGINS", "LOADKIT_STRICT"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A maker of checkpoints, each made once: `make()`, `make("mistral")`, `make(chat_template=False)`."""
    from loadkit.testing.checkpoints import make_checkpoint

    made: dict[tuple[object, ...], Path] = {}

    def maker(arch: str = "smollm3", *, chat_template: bool = True, **options: object) -> Path:
        key = (arch, chat_template, *sorted(options.items()))
        if key not in made:
            sizes = SIZES if arch == "smollm3" else {}
            folder = tmp_path_factory.mktemp(arch) / arch
            made[key] = make_checkpoint(folder, arch, **{**sizes, **options})  # type: ignore[arg-type]
            if not chat_template:
                (folder / "chat_template.jinja").unlink()
        return made[key]

    return maker


@pytest.fixture(scope="session")
def manager():
    import loadkit
    import loadkit_smollm3.plugin

    found = loadkit.PluginManager(environ={})
    if "smollm3" not in {about.name for about in found.plugins}:
        found.register(loadkit_smollm3.plugin, "smollm3")
    return found


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process in which the distribution, built from a copy, is installed."""
    source, target = tmp_path_factory.mktemp("source") / "smollm3", tmp_path_factory.mktemp("installed")
    shutil.copytree(DISTRIBUTION, source, ignore=shutil.ignore_patterns("tests", "__pycache__"))
    switches = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *switches, "--target", str(target), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    path = os.pathsep.join(p for p in (str(target), os.environ.get("PYTHONPATH", "")) if p)
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def edited(folder: Path, target: Path, **fields: object) -> Path:
    """A copy of a checkpoint with other fields in its config.json; None takes one out."""
    shutil.copytree(folder, target)
    path = target / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), **fields}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}), encoding="utf-8")
    return target


@pytest.fixture(name="edited", scope="session")
def _edited() -> Callable[..., Path]:
    return edited

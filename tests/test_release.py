"""A release could be cut: one version everywhere, and what is built is whole."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
VERSION = re.compile(r'^version\s*[=:]\s*"?([\w.]+)"?$', re.MULTILINE)


def version_in(name: str) -> str:
    found = VERSION.search((ROOT / name).read_text(encoding="utf-8"))
    assert found is not None, name
    return found[1]


def test_the_version_is_the_same_wherever_a_format_wants_it() -> None:
    names = ["CITATION.cff", *(str(p.relative_to(ROOT)) for p in ROOT.glob("plugins/*/pyproject.toml"))]
    assert len(names) > 2
    assert {version_in(name) for name in names} == {version_in("pyproject.toml")}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("build") is None, reason="the package build isn't installed")
def test_sdist_and_wheel_are_built_and_whole(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "-o", str(tmp_path), str(ROOT)], check=True
    )
    wheel, sdist = next(tmp_path.glob("*.whl")), next(tmp_path.glob("*.tar.gz"))
    if importlib.util.find_spec("twine"):
        done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", wheel, sdist], check=False)
        assert done.returncode == 0
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "SECURITY.md",
        "CITATION.cff",
        "tests/conftest.py",
        "tests/stacks/oldest.txt",
        "LICENSE",
    } <= inside

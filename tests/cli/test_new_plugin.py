"""What `loadkit new-plugin` writes works as it is: found once installed, formatted, typed, and conforming."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadkit import LoadkitError
from loadkit.cli.new_plugin import write


def installed(folder: Path, name: str) -> None:
    """What an editable installation leaves beside the package: metadata and entry points."""
    package = f"loadkit_{name.replace('-', '_')}"
    info = folder / f"{package}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: loadkit-{name}\nVersion: 0.1.0\nRequires-Dist: loadkit\n"
    )
    (info / "entry_points.txt").write_text(f"[loadkit]\n{name} = {package}.plugin\n")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(folder), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": paths, "MYPYPATH": ""},
    )  # fmt: skip


@pytest.mark.slow
def test_what_is_written_conforms_as_it_is(tmp_path: Path) -> None:
    folder = write("very-mine", tmp_path / "made")
    installed(folder, "very-mine")
    tested = run(folder, "pytest", "-q", "-rs", "-p", "no:cacheprovider", "tests")
    assert tested.returncode == 0, tested.stdout
    assert "failed" not in tested.stdout
    assert "passed" in tested.stdout
    for linter in (("ruff", "check", "."), ("ruff", "format", "--check", ".")):
        done = run(folder, *linter)
        assert done.returncode == 0, (linter, done.stdout, done.stderr)
    typed = run(folder, "mypy")
    assert typed.returncode == 0, typed.stdout


def test_it_decides_for_its_own_models_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write("mine-too", tmp_path / "made")
    installed(folder, "mine-too")
    monkeypatch.syspath_prepend(str(folder))
    from loadkit.testing import Scenario, plan_of, subjects

    (mine,) = subjects("mine-too")
    own = Scenario(name="own", config={"model_type": "granite", "architectures": ["GraniteForCausalLM"]})
    assert plan_of(own, mine.manager()).why("dtype").plugin == "mine-too"
    assert plan_of(Scenario(name="other"), mine.manager()).why("dtype").plugin == "dtype"


def test_a_claim_that_is_never_made_fails_its_conformance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a broken condition in the scaffold comes to: it was green once."""
    folder = write("mine-three", tmp_path / "made")
    plugin = folder / "loadkit_mine_three" / "plugin.py"
    plugin.write_text(
        plugin.read_text().replace("model_type != MODEL_TYPE", "model_type == MODEL_TYPE or True", 1)
    )
    installed(folder, "mine-three")
    monkeypatch.syspath_prepend(str(folder))
    from loadkit.testing import Scenario, known_checks, subjects
    from loadkit.testing.verdicts import run_one

    (mine,) = subjects("mine-three")
    (check,) = (c for c in known_checks() if c.code == "LK211")
    own = Scenario(name="own", config={"model_type": "granite", "architectures": ["GraniteForCausalLM"]})
    mine.asked = (own,)
    result = run_one(check, mine, [own])
    assert result.verdict == "failed"
    assert "never answered" in result.said
    assert "loadkit_choose_dtype" in result.said
    mine.asked = ()
    assert run_one(check, mine, [own]).verdict == "skipped"  # nobody said what it is for


@pytest.mark.parametrize("name", ["Mine", "1st", "mine!", "", "../mine"])
def test_a_name_that_cannot_be_one_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(LoadkitError, match="can't be a plugin's name"):
        write(name, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with pytest.raises(LoadkitError, match="is there already"):
        write("mine", tmp_path / "made")

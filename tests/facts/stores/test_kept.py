"""What is kept of checkpoints from elsewhere is listed and removed, and nothing else is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from filelock import FileLock
from stores import Store, manager_with

import loadkit
from loadkit.cli.main import main
from loadkit.facts.stores.copies import copy_folder
from loadkit.facts.stores.kept import drop_copy, kept_copies

Tiny = Callable[..., Path]


@pytest.fixture
def kept(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of stores, with one checkpoint of which the small files are kept."""
    for module in ("copies", "kept"):
        monkeypatch.setattr(f"loadkit.facts.stores.{module}.cache_folder", lambda: tmp_path / "cache")
    shutil.copytree(tiny("mistral"), tmp_path / "served")
    loadkit.plan("store://tiny", plugin_manager=manager_with(Store(tiny=tmp_path / "served")))
    return tmp_path / "cache" / "stores"


def called(*words: str) -> Result:
    return CliRunner().invoke(main, ["cache", "copies", *words])


def test_it_is_listed(kept: Path) -> None:
    [copy] = kept_copies()
    assert (copy.reference, copy.folder) == ("store://tiny", str(copy_folder("store://tiny")))
    assert len(copy.commits) == 1
    assert copy.bytes == sum(p.lstat().st_size for p in kept.rglob("*") if p.is_file())
    assert "store://tiny" in called().output
    assert json.loads(called("--json").output)[0]["reference"] == "store://tiny"


@pytest.mark.parametrize("words", [("--drop", "store://tiny"), ("--all",)])
def test_it_is_removed(kept: Path, words: tuple[str, ...]) -> None:
    (kept / "notes").mkdir()  # somebody's
    (kept / "0abc").mkdir()  # of the right form, and not loadkit's
    assert called(*words).output.startswith("removed store://tiny")
    assert sorted(path.name for path in kept.iterdir()) == ["0abc", "notes"]
    assert kept_copies() == []
    assert called().output == "0 B of checkpoints from elsewhere\n"


def test_what_is_being_fetched_stays(kept: Path) -> None:
    [copy] = kept_copies()
    with FileLock(Path(copy.folder) / f".{copy.commits[0]}.lock"):
        assert not drop_copy(copy)
        assert "being fetched by another process" in called("--all").output
    assert kept_copies() == [copy]


def test_a_slip_is_told(kept: Path) -> None:
    assert "nothing is kept of 'store://tinny'" in called("--drop", "store://tinny").output
    assert "give one" in called("--drop", "store://tiny", "--all").output
    assert len(kept_copies()) == 1


def test_a_record_that_was_changed_names_nothing(kept: Path) -> None:
    [record] = copy_folder("store://tiny").glob("*.json")
    record.write_bytes(record.read_bytes().replace(b"store://tiny", b"store://tony"))
    [copy] = kept_copies()
    assert (copy.reference, copy.commits) == ("", ())
    assert "nothing whole" in called().output
    assert called("--all").exit_code == 0
    assert kept_copies() == []

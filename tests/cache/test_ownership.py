"""The cache removes what it made, and nothing else; and it serves nothing that anybody may have written."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from cache.test_commands import call
from cache.test_entries import put

from loadkit.cache import ownership
from loadkit.cache.cache_folder import cache_folder
from loadkit.cache.checksums import checksum
from loadkit.cache.ownership import MARK, mark
from loadkit.cache.refusals import Refusal, Refusals
from loadkit.plugins import Entries

KEY = "0123456789abcdef" * 2


def stranger(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    return folder


def entry_by_another_name(root: Path) -> Path:
    shutil.copytree(root / "a1", root / "my-copy")
    return root / "my-copy"


def link_to_a_folder(root: Path) -> Path:
    target = stranger(root.parent / "elsewhere")
    (root / "b2").symlink_to(target, target_is_directory=True)
    return target


def link_to_an_entry(root: Path) -> Path:
    shutil.copytree(root / "a1", root.parent / "moved")
    record = root.parent / "moved" / "entry.json"
    record.write_bytes(record.read_bytes().replace(b'"a1"', b'"b2"'))
    (root / "b2").symlink_to(root.parent / "moved", target_is_directory=True)
    return root.parent / "moved"


FOREIGN: dict[str, Callable[[Path], Path]] = {
    "a model of the user's": lambda root: stranger(root / "my-llama-awq"),
    "hidden": lambda root: stranger(root / ".git"),
    "like a writing": lambda root: stranger(root / ".mine.partial"),
    "like a key": lambda root: stranger(root / "cafe"),
    "as long as a key": lambda root: stranger(root / KEY),
    "another cache's": lambda root: stranger(root / "models--a--b" / "snapshots"),
    "a copy of an entry": entry_by_another_name,
    "a link": link_to_a_folder,
    "a link to an entry": link_to_an_entry,
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_loadkit_didnt_make_stays(entries: Entries, what: str) -> None:
    put(entries, "a1")
    folder = FOREIGN[what](entries.root)
    before = sorted((p.name, p.read_bytes()) for p in folder.rglob("*") if p.is_file())
    put(entries, "c3")
    entries.prune()
    for name in os.listdir(entries.root):
        entries.drop(name)
    call("prune", "--all")
    call("verify")
    assert sorted((p.name, p.read_bytes()) for p in folder.rglob("*") if p.is_file()) == before
    assert not (entries.root / "a1").exists()
    assert not [name for name in os.listdir(entries.root) if name.endswith(".lock") and "mine" in name]


def test_a_path_is_no_key(entries: Entries, tmp_path: Path) -> None:
    put(entries, "a1")
    outside = tmp_path / "outside"
    shutil.copytree(entries.root / "a1", outside)
    for name in (str(outside), os.path.relpath(outside, entries.root), "..", ".", ""):
        entries.drop(name)
    assert (outside / "entry.json").is_file()
    assert entries.find("a1") is not None


def test_strangers_are_listed_and_not_called_damaged(entries: Entries) -> None:
    put(entries, "a1")
    stranger(entries.root / "my-llama-awq")
    assert entries.broken() == []
    assert entries.strangers() == ["my-llama-awq"]
    assert "not loadkit's, and left alone: my-llama-awq" in call("list")
    assert json.loads(call("list", "--json"))["strangers"] == ["my-llama-awq"]


def test_what_was_made_before_there_were_marks_is_known_by_its_record(entries: Entries) -> None:
    for key in ("a1", "b2"):
        put(entries, key)
        (entries.root / key / MARK).unlink()
        record = entries.root / key / "entry.json"
        plain = json.loads(record.read_text())
        del plain["checksum"]
        record.write_text(json.dumps(plain))
    assert {entry.record.key for entry in entries} == {"a1", "b2"}
    entries.drop("a1")
    (entries.root / f".{KEY}.partial").mkdir()
    entries.prune(0)
    assert not [path for path in entries.root.iterdir() if path.is_dir()]


def test_a_removal_that_was_cut_off_is_ended_by_the_next(
    entries: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every file: what is left is known as loadkit's to the last."""
    for cut in range(1, 5):
        put(entries, "a1")
        (entries.root / "a1" / "more.json").write_bytes(b"1")
        left, real = [cut], Path.unlink

        def unlink(path: Path, left: list[int] = left, real: Callable[[Path], None] = real) -> None:
            if not left[0]:
                raise OSError("cut off")
            left[0] -= 1
            real(path)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", unlink)
            entries.drop("a1")
        entries.prune()
        assert not (entries.root / "a1").exists(), cut


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_what_everybody_may_write_isnt_used(entries: Entries, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOADKIT_QUANTIZED_CACHE", raising=False)
    put(entries, "a1")
    assert entries.root.stat().st_mode & 0o002 == 0
    (entries.root / "a1").chmod(0o777)
    assert entries.find("a1") is None
    (entries.root / "a1").chmod(0o755)
    assert entries.find("a1") is not None
    entries.root.chmod(0o777)
    assert f"everybody can write to {entries.root}" in Entries(entries.root, {}).off
    assert "chmod o-w" in call("list")
    entries.root.chmod(0o755)
    assert Entries(entries.root, {}).off == ""


def test_whatever_the_mask_not_everybody_writes_here(entries: Entries) -> None:
    before = os.umask(0)
    try:
        put(entries, "a1")
    finally:
        os.umask(before)
    assert Entries(entries.root, {}).off == ""
    assert entries.find("a1") is not None


def test_an_entry_says_whose_it_is(entries: Entries, monkeypatch: pytest.MonkeyPatch) -> None:
    put(entries, "a1")
    found = entries.find("a1")
    assert found is not None
    assert found.owner == ""
    owner = Path(found.folder).stat().st_uid
    monkeypatch.setattr(ownership.os, "geteuid", lambda: owner + 1)
    assert found.owner == ("" if owner == 0 else Path(found.folder).owner())
    if owner == 0:  # only root can give files away
        os.chown(found.folder, 54321, -1)
        assert found.owner == "with the number 54321"


def test_a_record_that_isnt_as_it_was_written_is_none(entries: Entries) -> None:
    put(entries, "a1")
    path = entries.root / "a1" / "entry.json"
    path.write_bytes(path.read_bytes().replace(b'"about":{}', b'"about":{"source":"another"}'))
    assert entries.find("a1") is None
    assert entries.broken() == ["a1"]


def test_an_entry_of_another_version_is_neither_taken_nor_removed(entries: Entries) -> None:
    """Its record has fields that this one doesn't know, or knows as something else."""
    put(entries, "a1")
    put(entries, "b2")
    fields = json.loads((entries.root / "a1" / "entry.json").read_text())
    del fields["checksum"]
    for key, change in (("a1", {"more_to_come": [1]}), ("b2", {"created": {"seconds": 5}})):
        content = {**fields, **change, "key": key}
        sealed = {**content, "checksum": checksum(msgspec.json.encode(content, order="sorted"))}
        (entries.root / key / "entry.json").write_text(json.dumps(sealed))
    entries.prune()
    assert [entry.record.key for entry in entries] == ["a1"]
    assert (entries.root / "b2" / "some.json").is_file()
    assert entries.broken() == []


def test_a_refusal_that_isnt_as_it_was_written_is_none(tmp_path: Path) -> None:
    refusals = Refusals(tmp_path)
    refusals.add("a1", "no room", lasting=True)
    (path,) = tmp_path.iterdir()
    written = path.read_bytes()
    for harmed in (written.replace(b"no room", b"no doom"), written[:-3], b"", b"\xff"):
        path.write_bytes(harmed)
        assert refusals.of("a1") is None
    path.write_bytes(msgspec.json.encode(Refusal(reason="old", at=time.time())))  # before checksums
    assert [key for key, _ in refusals] == ["a1"]


def test_refusals_are_shown_and_cleared(entries: Entries) -> None:
    put(entries, "a1")
    entries.abandon("b2", "the disk was full")
    entries.abandon("c3", "it loads otherwise", lasting=True)
    said = call("list")
    assert "b2 isn't kept since 20" in said
    assert "for an hour: the disk was full" in said
    assert "until `loadkit cache prune c3`: it loads otherwise" in said
    assert [r["key"] for r in json.loads(call("list", "--json"))["refusals"]] == ["b2", "c3"]
    assert "b2 may be kept again" in call("prune", "b2")
    assert (entries.refused("b2"), entries.refused("c3")) == ("", "it loads otherwise")
    assert "c3 may be kept again" in call("prune", "--all")
    assert entries.refused("c3") == ""


def test_the_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder({"LOADKIT_CACHE": "~/cache"}) == tmp_path / "cache"


def test_a_mark_is_a_file_of_the_folders_own(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    mark(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a", target_is_directory=True)
    assert ownership.is_marked(tmp_path / "a")
    assert not ownership.is_marked(tmp_path / "link")

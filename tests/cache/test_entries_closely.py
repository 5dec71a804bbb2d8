"""The store, case by case: limits to the byte, what outlives what, and what others may leave lying about."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from cache.test_entries import put

from loadkit.cache.checksums import checksum, file_checksums
from loadkit.cache.ownership import MARK, mark
from loadkit.plugins import Entries, Record


class Disk(NamedTuple):
    total: int
    used: int
    free: int


def keys(entries: Entries) -> set[str]:
    return {entry.record.key for entry in entries}


# --- Where and whether ----------------------------


def test_the_place_is_the_folder_given_or_one_in_the_cache(tmp_path: Path) -> None:
    environ = {"LOADKIT_CACHE": str(tmp_path / "cache")}
    assert Entries(environ=environ).root == tmp_path / "cache" / "quantized"
    assert Entries(tmp_path / "own", environ).root == tmp_path / "own"
    assert Entries(tmp_path, {}).processor == platform.machine()


@pytest.mark.parametrize(
    ("value", "off"),
    [("0", "0"), ("false", "false"), ("no", "no"), ("off", "off"), (" OFF ", "off"), ("", ""), ("1", ""), ("on", "")],
)  # fmt: skip
def test_it_is_off_where_the_environment_says_so(value: str, off: str, tmp_path: Path) -> None:
    said = f"LOADKIT_QUANTIZED_CACHE={off}" if off else ""
    assert Entries(tmp_path, {"LOADKIT_QUANTIZED_CACHE": value}).off == said
    assert Entries(tmp_path, {}).off == ""


def test_a_limit_of_blanks_is_none(tmp_path: Path) -> None:
    assert Entries(tmp_path, {"LOADKIT_CACHE_MAX": "  "}).limit == Entries(tmp_path, {}).limit > 0
    assert Entries(tmp_path, {"LOADKIT_CACHE_MAX": " 7 "}).limit == 7


# --- What an entry says of itself ----------------------------


def test_age_and_use_are_what_the_record_and_its_file_say(entries: Entries) -> None:
    folder = entries.begin("a1")
    (folder / "x").write_bytes(b"123")
    (folder / "y").write_bytes(b"12345")
    record = Record(key="a1", created=time.time() - 1000, files={"x": 3, "y": 5})
    made = entries.finish(folder, record)
    assert (made.folder, made.record, made.used) == (str(entries.root / "a1"), record, record.created)
    os.utime(entries.root / "a1" / "entry.json", (500, 500))
    found = entries.find("a1")
    assert found is not None
    assert (found.folder, found.record, found.used, found.bytes) == (made.folder, record, 500, 8)
    assert 1000 <= found.age < 1100
    entries.touch("a1")
    again = entries.find("a1")
    assert again is not None
    assert time.time() - 100 < again.used <= time.time()
    entries.touch("never there")
    entries.drop("never there")
    assert entries.bytes == 8


def weights(entries: Entries) -> Path:
    """An entry with a safetensors file of two tensors and a text beside it; its folder."""
    partial = entries.begin("a1")
    header = {n: {"dtype": "U8", "shape": [4], "data_offsets": [i, i + 4]} for n, i in (("v", 0), ("w", 4))}
    text = json.dumps(header).encode()
    (partial / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"aaaabbbb")
    (partial / "z.json").write_bytes(b"{}")
    files = {name: (partial / name).stat().st_size for name in ("m.safetensors", "z.json")}
    digests = {**file_checksums(partial / "m.safetensors"), "z.json": checksum(b"{}")}
    entries.finish(partial, Record(key="a1", created=1.0, files=files, digests=digests))
    return entries.root / "a1"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (b"", b"", ""),
        (b"bbbb", b"bbbc", "w has another checksum"),
        (b"aaaabbbb", b"cccccccc", "v has another checksum"),
        (b'"U8"', b'"I8"', "the header has another checksum"),
        (b'"v"', b'"u"', "the header has another checksum"),
    ],
)
def test_damage_of_weights_names_the_tensor(entries: Entries, before: bytes, after: bytes, said: str) -> None:
    path = weights(entries) / "m.safetensors"
    path.write_bytes(path.read_bytes().replace(before, after) if before else path.read_bytes())
    found = entries.find("a1")
    assert found is not None
    assert found.damage() == said


def test_damage_of_a_file_that_cant_be_read_says_why(entries: Entries) -> None:
    folder = weights(entries)
    found = entries.find("a1")
    assert found is not None
    count = (folder / "m.safetensors").stat().st_size
    (folder / "m.safetensors").write_bytes(b"\xff" * count)
    assert found.damage() == f"{folder / 'm.safetensors'} is shorter than its header says"
    (folder / "m.safetensors").unlink()
    assert "No such file" in found.damage()


def test_what_no_checksum_was_written_for_is_damage(entries: Entries) -> None:
    for key, digests in (("a1", {}), ("b2", {"x": checksum(b"1"), "y": checksum(b"2")})):
        partial = entries.begin(key)
        (partial / "x").write_bytes(b"1")
        entries.finish(partial, Record(key=key, created=1.0, files={"x": 1}, digests=digests))
    assert [entry.damage() for entry in sorted(entries, key=lambda e: e.record.key)] == [
        "x has another checksum",
        "y has another checksum",
    ]


# --- How much may stay ----------------------------


def test_pruning_is_to_the_byte(entries: Entries) -> None:
    now = time.time()
    for key, ago in (("a1", 300), ("b2", 200), ("c3", 100)):
        put(entries, key, used=now - ago)
    assert entries.prune(3000) == []
    assert [e.record.key for e in entries.prune(2999)] == ["a1"]
    assert entries.prune(500, keep="b2") != []
    assert keys(entries) == {"b2"}
    assert [e.record.key for e in entries.prune(0)] == ["b2"]
    assert keys(entries) == set()


def test_what_is_kept_counts_and_smaller_ones_may_stay_beside(entries: Entries) -> None:
    now = time.time()
    for key, count, ago in (("a1", 100, 300), ("b2", 900, 200), ("c3", 1000, 400)):
        put(entries, key, count, used=now - ago)
    assert [e.record.key for e in entries.prune(1100, keep="c3")] == ["b2"]
    assert keys(entries) == {"a1", "c3"}


def test_there_is_room_for_what_pruning_makes_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = Entries(tmp_path, {"LOADKIT_CACHE_MAX": "1000"})
    put(entries, "a1", 600)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(10_000, 9_100, 900))
    assert entries.room_for(700) == ""  # 300 are freed, 200 stay free
    assert entries.room_for(1000) == ""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(10_000, 9_500, 500))
    assert entries.room_for(300) == ""
    assert "500 B left" in entries.room_for(301)  # nothing has to go for it
    assert entries.room_for(1001) == "it takes 1001 B, and the cache may hold 1000 B (LOADKIT_CACHE_MAX)"


# --- Writings, whole, cut off and given up ----------------------------


def test_beginning_removes_what_was_there(entries: Entries) -> None:
    put(entries, "a1")
    (entries.begin("a1") / "half").write_bytes(b"1")
    assert keys(entries) == set()
    folder = entries.begin("a1")
    assert (folder, list(folder.iterdir())) == (entries.root / ".a1.partial", [folder / MARK])
    assert entries.broken() == [".a1.partial"]


def test_finishing_clears_a_refusal_and_gives_the_record_to_the_disk_last(
    entries: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries.abandon("a1", "no room")
    assert not entries.refused("a1")  # there is no folder yet to note it in
    partial = entries.begin("a1")
    entries.abandon("a1", "no room")
    assert (entries.refused("a1"), partial.exists()) == ("no room", False)
    synced: list[str] = []
    monkeypatch.setattr("loadkit.cache.entries.sync", lambda path: synced.append(path.name))
    put(entries, "a1")
    assert entries.refused("a1") == ""
    assert synced == ["some.json", "entry.json", ".a1.partial", entries.root.name]


def test_a_refusal_holds_for_an_hour_before_and_after(
    entries: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries.root.mkdir(parents=True)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    entries.abandon("a1", "no room")
    said = {}
    for seconds in (-3601, -3599, 3599, 3601):
        monkeypatch.setattr(time, "time", lambda seconds=seconds: now + seconds)
        said[seconds] = entries.refused("a1")
    assert said == {-3601: "", -3599: "no room", 3599: "no room", 3601: ""}
    (entries.root / ".a1.refused").write_bytes(b'{"reason": 5}')
    assert entries.refused("a1") == entries.refused("never there") == ""


def made(folder: Path) -> None:
    folder.mkdir()
    mark(folder)


def test_sweeping_leaves_whole_entries_and_what_is_locked(entries: Entries) -> None:
    put(entries, "a1")
    for key in ("a1", "b2", "c3"):
        made(entries.root / f".{key}.partial")
    made(entries.root / "d4")
    lock = entries.lock("b2")
    assert lock is not None
    with lock:
        entries.prune()
        assert entries.broken() == [".b2.partial"]
        assert keys(entries) == {"a1"}
    entries.prune()
    assert entries.broken() == []
    for key in ("a1", "c3"):
        free = entries.lock(key)
        assert free is not None
        with free.acquire(timeout=0):
            pass


def test_what_isnt_a_folder_of_its_own_is_no_entry(entries: Entries, tmp_path: Path) -> None:
    put(entries, "a1")
    (entries.root / "file").write_bytes(b"1")
    (tmp_path / "other").mkdir()
    (entries.root / "link").symlink_to(tmp_path / "other", target_is_directory=True)
    assert (keys(entries), entries.broken()) == ({"a1"}, [])


def test_where_nothing_can_be_written_nothing_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    entries = Entries(tmp_path / "file" / "within", {"LOADKIT_CACHE_MAX": "10"})
    assert entries.lock("a1") is None
    assert (list(entries), entries.broken(), entries.bytes, entries.prune()) == ([], [], 0, [])
    with pytest.raises(OSError):
        entries.begin("a1")
    entries.abandon("a1", "no room")
    assert entries.refused("a1") == ""


def test_one_lock_serves_one_load_at_a_time(entries: Entries) -> None:
    """Threads of one process included: the lock isn't of the thread."""
    lock = entries.lock("a1")
    other = entries.lock("a1")
    assert lock is not None
    assert other is not None
    assert not lock.is_thread_local()
    with lock, pytest.raises(TimeoutError):
        other.acquire(timeout=0)
    assert Path(lock.lock_file) == entries.root / ".a1.lock"

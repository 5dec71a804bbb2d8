"""The store: whole entries or none, a limit, a lock, and nothing that fails a load."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from loadkit import LoadkitError
from loadkit.cache import refusals
from loadkit.cache.disk_space import size_limit
from loadkit.plugins import Entries, Record, checksum


def put(entries: Entries, key: str, count: int = 1000, used: float | None = None) -> None:
    partial = entries.begin(key)
    content = os.urandom(count)
    (partial / "some.json").write_bytes(content)
    record = Record(
        key=key, created=time.time(), files={"some.json": count}, digests={"some.json": checksum(content)}
    )
    entries.finish(partial, record)
    if used is not None:
        os.utime(entries.root / key / "entry.json", (used, used))


def test_an_entry_is_there_once_it_is_finished(entries: Entries) -> None:
    partial = entries.begin("a1")
    (partial / "some.json").write_bytes(b"1")
    assert entries.find("a1") is None
    entries.finish(partial, Record(key="a1", created=1.0, files={"some.json": 1}))
    found = entries.find("a1")
    assert found is not None
    assert found.bytes == 1
    assert [e.record.key for e in entries] == ["a1"]
    assert entries.broken() == []


@pytest.mark.parametrize("harm", ["shorter", "gone", "record", "no record", "another key"])
def test_what_isnt_whole_isnt_there(entries: Entries, harm: str) -> None:
    put(entries, "a1")
    folder = entries.root / "a1"
    {
        "shorter": lambda: (folder / "some.json").write_bytes(b"1"),
        "gone": lambda: (folder / "some.json").unlink(),
        "record": lambda: (folder / "entry.json").write_bytes(b'{"key": [[[['),
        "no record": lambda: (folder / "entry.json").unlink(),
        "another key": lambda: folder.rename(entries.root / "a2"),
    }[harm]()
    assert entries.find("a1") is None
    assert entries.find("a2") is None
    assert list(entries) == []
    assert len(entries.broken()) == 1
    entries.prune()
    assert entries.broken() == []


def test_damage_of_the_same_size_is_found_by_reading(entries: Entries) -> None:
    put(entries, "a1")
    found = entries.find("a1")
    assert found is not None
    assert found.damage() == ""
    (entries.root / "a1" / "some.json").write_bytes(bytes(1000))
    assert "some.json has another checksum" in found.damage()


def test_the_least_recently_used_goes_first(entries: Entries) -> None:
    now = time.time()
    for key, ago in (("a1", 300), ("b2", 100), ("c3", 200)):
        put(entries, key, used=now - ago)
    assert [e.record.key for e in entries] == ["b2", "c3", "a1"]
    entries.touch("a1")
    removed = entries.prune(2000)
    assert [e.record.key for e in removed] == ["c3"]
    assert {e.record.key for e in entries} == {"a1", "b2"}


def test_finishing_keeps_to_the_limit_and_keeps_what_is_new(
    entries: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOADKIT_CACHE_MAX", "2500B".removesuffix("B"))
    limited = Entries()
    now = time.time()
    put(limited, "a1", used=now - 50)
    put(limited, "b2", used=now - 40)
    put(limited, "c3")
    assert {e.record.key for e in limited} == {"b2", "c3"}


def test_a_clock_that_was_put_back_makes_nothing_old_or_negative(entries: Entries) -> None:
    put(entries, "a1", used=time.time() + 10**6)
    found = entries.find("a1")
    assert found is not None
    assert found.used <= time.time()
    record = Record(key="b2", created=time.time() + 10**6, files={})
    entries.finish(entries.begin("b2"), record)
    later = entries.find("b2")
    assert later is not None
    assert later.age == 0.0


def test_unfinished_writing_is_swept_unless_somebody_writes(entries: Entries) -> None:
    entries.begin("a1")
    lock = entries.lock("a1")
    assert lock is not None
    with lock:
        entries.prune()
        assert entries.broken() == [".a1.partial"]
    entries.prune()
    assert entries.broken() == []


def test_a_failed_writing_is_remembered_for_a_while(
    entries: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries.root.mkdir(parents=True)
    entries.abandon("a1", "the disk was full")
    assert entries.refused("a1") == "the disk was full"
    entries.abandon("b2", "it loads otherwise", lasting=True)
    later = time.time() + refusals.REFUSAL_SECONDS + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert entries.refused("a1") == ""
    assert entries.refused("b2") == "it loads otherwise"


def test_a_failing_write_leaves_nothing(entries: Entries) -> None:
    partial = entries.begin("a1")
    with pytest.raises(OSError):
        entries.finish(partial, Record(key="a1", created=1.0, files={"not there": 1}))
    assert not partial.exists()
    assert entries.find("a1") is None


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [("0", 0), ("50GB", 50 * 10**9), ("1.5GiB", 1536 * 2**20), (" 20 mb ", 20 * 10**6), ("123", 123)],
)
def test_limits(text: str, bytes_: int, tmp_path: Path) -> None:
    assert size_limit(text, tmp_path) == bytes_


def test_a_limit_may_be_a_share_of_the_disk(tmp_path: Path) -> None:
    total = shutil.disk_usage(tmp_path).total
    assert size_limit("5%", tmp_path / "not" / "there") == int(0.05 * total)
    assert size_limit("500%", tmp_path) == total
    assert Entries(tmp_path, {}).limit == int(0.1 * total)


@pytest.mark.parametrize("text", ["much", "-3GB", "5 apples", "%"])
def test_a_limit_that_is_none_is_refused_before_anything_is_loaded(text: str, tmp_path: Path) -> None:
    with pytest.raises(LoadkitError, match="LOADKIT_CACHE_MAX"):
        Entries(tmp_path, {"LOADKIT_CACHE_MAX": text})


def test_no_room_is_told(tmp_path: Path) -> None:
    assert "may hold 10 B" in Entries(tmp_path, {"LOADKIT_CACHE_MAX": "10"}).room_for(11)
    assert Entries(tmp_path, {"LOADKIT_CACHE_MAX": "10"}).room_for(10) == ""
    everything = Entries(tmp_path, {"LOADKIT_CACHE_MAX": "100%"})
    assert "left" in everything.room_for(shutil.disk_usage(tmp_path).free)


def test_syncing_meanwhile_harms_nothing(entries: Entries) -> None:
    """Files come and go under other names while they are written."""
    partial = entries.begin("k1")
    (partial / ".tmp").write_bytes(b"half")
    (partial / "gone").symlink_to(partial / "nowhere")
    entries.sync(partial)
    assert (partial / ".tmp").read_bytes() == b"half"

"""Files that are whole or not there, with the rights of any other file; and the folder of all that."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import platformdirs
import pytest

from loadkit.cache.atomic_write import sync, write_whole
from loadkit.cache.cache_folder import cache_folder


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        write_whole(str(tmp_path / "x"), content)
        assert (tmp_path / "x").read_bytes() == content
    assert os.listdir(tmp_path) == ["x"]


def test_it_is_written_beside_its_place_under_a_hidden_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file on another disk couldn't be moved into its place at once."""
    real, moved = os.replace, []
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(Path(a)), real(a, b)))
    write_whole(tmp_path / "x", b"1")
    (beside,) = moved
    assert beside.parent == tmp_path
    assert beside.name.startswith(".x.")


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError):
        write_whole(tmp_path / "x", b"1")
    assert os.listdir(tmp_path) == ["x"]
    with pytest.raises(OSError):
        write_whole(tmp_path / "not there" / "x", b"1")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no mask")
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_others_may_read_what_the_mask_lets_them_and_the_mask_stays(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "x", b"1")
    finally:
        after = os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o666 & ~mask
    assert after == mask


def test_syncing_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, synced = os.fsync, []
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_ino), real(handle)))
    write_whole(tmp_path / "x", b"1")
    sync(tmp_path / "x")
    sync(tmp_path)
    assert synced == [(tmp_path / "x").stat().st_ino, tmp_path.stat().st_ino]
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "y")


def test_a_disk_that_fails_is_no_reason_to_keep_a_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(handle: int) -> None:
        handles.append(handle)
        raise OSError("the disk failed")

    handles: list[int] = []
    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="the disk failed"):
        sync(tmp_path)
    with pytest.raises(OSError):
        os.fstat(handles[0])


def test_where_no_folder_can_be_opened_it_isnt_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise PermissionError("no")

    (tmp_path / "x").write_bytes(b"1")
    monkeypatch.setattr(os, "open", refused)
    sync(tmp_path)
    with pytest.raises(PermissionError):
        sync(tmp_path / "x")


def test_the_folder_is_the_one_named_else_the_platforms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOADKIT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert cache_folder({"LOADKIT_CACHE": "elsewhere"}) == Path("elsewhere")
    usual = Path(platformdirs.user_cache_dir("loadkit"))
    assert cache_folder({}) == cache_folder({"LOADKIT_CACHE": ""}) == usual

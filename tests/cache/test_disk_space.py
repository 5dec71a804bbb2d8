"""Sizes as people write them, and whether a disk has so many bytes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from loadkit import LoadkitError
from loadkit.cache.disk_space import lacking, size_limit


class Disk(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk of 1000 bytes with 100 of them free."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(1000, 900, 100))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2", 2),
        ("2kB", 2 * 10**3),
        ("2 MB", 2 * 10**6),
        ("2gb", 2 * 10**9),
        ("2TB", 2 * 10**12),
        ("2KiB", 2 * 2**10),
        ("2MIB", 2 * 2**20),
        ("2GiB", 2 * 2**30),
        ("2TiB", 2 * 2**40),
        ("0.5kb", 500),
        ("\t12.25 kB\n", 12_250),
    ],
)
def test_every_unit(text: str, expected: int, tmp_path: Path) -> None:
    assert size_limit(text, tmp_path) == expected


@pytest.mark.parametrize("text", ["", "1.", ".5GB", "1 2", "1,5GB", "5GBs", "5%%", "5B"])
def test_what_isnt_a_size_is_quoted(text: str, tmp_path: Path) -> None:
    with pytest.raises(LoadkitError) as caught:
        size_limit(text, tmp_path)
    assert str(caught.value) == (
        f"the limit of the cache was given as {text!r} (LOADKIT_CACHE_MAX, or --max), which isn't a size: "
        "write one such as 50GB, 20GiB or 5%, or 0 for nothing"
    )


@pytest.mark.parametrize(("text", "expected"), [("0%", 0), ("2.5%", 25), ("100 %", 1000), ("101%", 1000)])
def test_a_share_is_of_the_whole_disk(text: str, expected: int, tmp_path: Path, disk: None) -> None:
    found = size_limit(text, tmp_path)
    assert (found, type(found)) == (expected, int)


def test_the_disk_asked_is_that_of_the_nearest_folder_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def usage(path: Path) -> Disk:
        asked.append(path)
        return Disk(1000, 0, 1000)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    size_limit("1%", tmp_path / "not" / "there")
    lacking(tmp_path / "neither", 1, 0)
    lacking(tmp_path, 1, 0)
    lacking(Path("nothing here"), 1, 0)
    assert asked == [tmp_path, tmp_path, tmp_path, Path()]


def test_a_disk_that_cant_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Path) -> Disk:
        raise OSError("it is gone")

    monkeypatch.setattr(shutil, "disk_usage", failing)
    assert size_limit("10%", tmp_path) == 0
    assert size_limit("10kB", tmp_path) == 10_000
    assert lacking(tmp_path, 1, 0) == f"the disk of {tmp_path} can't be asked: it is gone"


@pytest.mark.parametrize(
    ("wanted", "freed", "lacks"), [(80, 0, False), (81, 0, True), (90, 10, False), (91, 10, True)]
)
def test_two_percent_stay_free_and_what_is_freed_counts(
    wanted: int, freed: int, lacks: bool, tmp_path: Path, disk: None
) -> None:
    said = f"it takes {wanted} B, and the disk has 100 B left"
    assert lacking(tmp_path, wanted, freed) == (said if lacks else "")

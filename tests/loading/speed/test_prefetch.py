"""Weight files are read into the page cache ahead of the loader, by one process of a machine, where there is
room."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadkit.loading.speed.prefetch import CHUNK, ReadAhead, missing_bytes, room

SIZE = 8 * CHUNK + 12_345

pytestmark = pytest.mark.skipif(
    sys.platform != "linux",
    reason="loadkit reads ahead on Linux only",
)


def dropped(path: Path) -> None:
    """Put a file out of memory."""
    file = os.open(path, os.O_RDWR)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def resident(path: Path) -> float:
    """Share of a file's pages that the system says are in memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    pages = -(-path.stat().st_size // mmap.PAGESIZE)
    told = (ctypes.c_ubyte * pages)()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        address = ctypes.addressof(ctypes.c_char.from_buffer(view))
        assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(view)), told) == 0
    return sum(page & 1 for page in told) / pages


@pytest.fixture
def cold(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(os.urandom(SIZE))
    dropped(path)
    if resident(path) > 0.5:
        pytest.skip("this file system keeps its files in memory")
    return path


def test_a_cold_file_is_in_memory_afterwards(cold: Path, tmp_path: Path) -> None:
    assert missing_bytes(cold) > SIZE / 2
    ahead = ReadAhead([cold], lock_folder=tmp_path / "locks")
    ahead.wait(60)
    assert ahead.read == SIZE
    assert resident(cold) == 1.0
    assert missing_bytes(cold) == 0


def test_a_warm_file_isnt_read_again(cold: Path, tmp_path: Path) -> None:
    cold.read_bytes()
    ahead = ReadAhead([cold], lock_folder=tmp_path / "locks")
    ahead.wait(60)
    assert ahead.read == 0
    assert not (tmp_path / "locks").exists()


def test_nothing_is_read_without_the_room(cold: Path, tmp_path: Path) -> None:
    ahead = ReadAhead([cold], lock_folder=tmp_path / "locks", available=SIZE)
    ahead.wait(60)
    assert ahead.read == 0
    assert resident(cold) < 0.5
    assert room() > 0


def test_one_process_reads_a_file(cold: Path, tmp_path: Path) -> None:
    locks = tmp_path / "locks"
    ReadAhead([cold], lock_folder=locks).wait(60)
    (lock,) = locks.iterdir()
    holder = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        dropped(cold)
        refused = ReadAhead([cold], lock_folder=locks)
        refused.wait(60)
        assert refused.read == 0
        other.communicate("")
    allowed = ReadAhead([cold], lock_folder=locks)
    allowed.wait(60)
    assert allowed.read == SIZE  # a lock doesn't outlive the process that held it


def test_what_cant_be_read_stops_nothing(cold: Path, tmp_path: Path) -> None:
    ahead = ReadAhead([tmp_path / "absent", cold], lock_folder=tmp_path / "locks")
    ahead.wait(60)
    (tmp_path / "a file").write_text("")
    nowhere = ReadAhead([cold], lock_folder=tmp_path / "a file" / "locks")
    nowhere.wait(60)
    assert nowhere.read == 0
    assert ReadAhead([]).read == 0

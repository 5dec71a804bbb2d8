"""Read weight files into memory while the libraries import, where they aren't there yet and there is room.

Importing torch and transformers takes seconds in which a disk has nothing to do. On Linux a thread reads the
files meanwhile, so that the loader finds them in the page cache; elsewhere nothing happens. One process of a
machine does it for a file: it holds a lock, and the others go on without reading ahead.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from loadkit.cache.cache_folder import cache_folder

__all__ = ["CHUNK", "SHARE", "ReadAhead", "missing_bytes", "room"]

CHUNK = 4 * 2**20
"""Bytes of one read: enough for a disk's full speed."""

SHARE = 0.5
"""How much of the available memory may be filled; the model needs some too."""


class ReadAhead:
    """A thread that reads files into the page cache. It starts at once, never raises, ends with the process.

    Parameters:
        paths: the files, in the order in which they will be needed.
        lock_folder: where the locks lie; in loadkit's cache by default.
        available: bytes of memory that may be counted on; asked of the system by default.
    """

    def __init__(
        self, paths: Sequence[Path], *, lock_folder: Path | None = None, available: int | None = None
    ) -> None:
        self.read = 0
        """Bytes read so far."""
        self._paths = tuple(paths)
        self._locks = lock_folder
        self._available = available
        self._thread = threading.Thread(target=self._run, name="loadkit-read-ahead", daemon=True)
        if sys.platform == "linux" and self._paths:
            self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until all is read, at most so many seconds."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # what fails here costs time only: the loader reads for itself
            missing = {path: missing_bytes(path) for path in self._paths if path.is_file()}
            available = room() if self._available is None else self._available
            if sum(missing.values()) > SHARE * available:
                return
            folder = self._locks or cache_folder() / "reading"
            for path in (path for path in missing if missing[path]):
                with contextlib.suppress(OSError):
                    self._read(path, folder)

    def _read(self, path: Path, folder: Path) -> None:
        import fcntl

        buffer = bytearray(CHUNK)
        file = os.open(path, os.O_RDONLY)
        try:
            about = os.fstat(file)
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"{about.st_dev:x}-{about.st_ino:x}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held by another: an OSError
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_SEQUENTIAL)
                while got := os.readv(file, [buffer]):
                    self.read += got
        finally:
            os.close(file)


def missing_bytes(path: Path) -> int:
    """How many bytes of a file aren't in memory; 0 where the system can't tell, or won't.

    Of a file that this user may only read, Linux says that all is there.
    """
    size = path.stat().st_size
    if sys.platform != "linux" or not size:
        return 0
    pages = -(-size // mmap.PAGESIZE)
    resident = (ctypes.c_ubyte * pages)()
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    with path.open("rb") as file:
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if address == ctypes.c_void_p(-1).value:
        return 0
    refused = libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), resident)
    libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
    return 0 if refused else min(size, (pages - bytes(resident).count(1)) * mmap.PAGESIZE)


def room() -> int:
    """Bytes that can be used before the system, or the container's limit, has to take something away."""
    import psutil

    available = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError, StopIteration):
        limit = int((group / "memory.max").read_text())  # "max" where there is none
        used = int((group / "memory.current").read_text())
        stat = (group / "memory.stat").read_text().splitlines()
        pages = int(next(line for line in stat if line.startswith("inactive_file ")).split()[1])
        available = min(available, limit - used + pages)
    return available

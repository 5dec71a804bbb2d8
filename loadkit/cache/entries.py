"""Checkpoints that loadkit prepared on this machine: whole or not there, least recently used first to go."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from loadkit.cache.atomic_write import sync, write_whole
from loadkit.cache.cache_folder import cache_folder
from loadkit.cache.disk_space import SHARE, lacking, size_limit
from loadkit.cache.ownership import MARK, is_key, is_marked, mark, open_to_all
from loadkit.cache.records import RECORD, Entry, Record, is_of_another_version, read_record
from loadkit.cache.refusals import Refusals
from loadkit.cache.seals import seal
from loadkit.text.units import size

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = ["Entries"]

KEY_LENGTH = 32
"""Of the keys that loadkit's own plugin makes, in digits."""

OURS = 0o775
"""The mode of what is made here, less the process's mask: never to be written by everybody."""


class Entries:
    """The entries under one folder. Reading never fails: what can't be read isn't there.

    Only what loadkit made is ever removed: folders with its mark, or with a record of their own name.

    Parameters:
        root: the folder; by default "quantized" in loadkit's cache.
        environ: where LOADKIT_CACHE, LOADKIT_CACHE_MAX and LOADKIT_QUANTIZED_CACHE are read.

    Raises:
        LoadkitError: LOADKIT_CACHE_MAX isn't a size.
    """

    def __init__(self, root: Path | None = None, environ: Mapping[str, str] | None = None) -> None:
        env = os.environ if environ is None else environ
        self.root = (cache_folder(env) / "quantized") if root is None else root
        off = env.get("LOADKIT_QUANTIZED_CACHE", "").strip().lower()
        said = f"LOADKIT_QUANTIZED_CACHE={off}" if off in ("0", "false", "no", "off") else ""
        self.off = said or open_to_all(self.root)
        self.refusals = Refusals(self.root)
        self._limit = env.get("LOADKIT_CACHE_MAX", "").strip() or SHARE
        size_limit(self._limit, self.root)

    @property
    def processor(self) -> str:
        """The kind of processor that this machine's bytes are computed by, such as "x86_64"."""
        return platform.machine()

    def find(self, key: str) -> Entry | None:
        """The entry of that key, if all its files are there with the bytes that they had."""
        folder = self.root / key
        record = read_record(folder)
        if record is None or open_to_all(folder):
            return None
        try:
            found = (folder / RECORD).stat()
            sizes = {name: (folder / name).stat().st_size for name in record.files}
        except (OSError, ValueError):
            return None
        used = min(found.st_mtime, time.time())
        return Entry(folder=str(folder), record=record, used=used) if sizes == record.files else None

    def __iter__(self) -> Iterator[Entry]:
        """Every whole entry, the most recently used first."""
        found = (self.find(name) for name in self._names() if not _hidden(name))
        yield from sorted((e for e in found if e is not None), key=lambda e: -e.used)

    def broken(self) -> list[str]:
        """Folders of loadkit's that are no whole entry: of writings that were cut off, or damaged."""
        made = [name for name in self._names() if self._made(name)]
        others = {name for name in made if is_of_another_version(self.root / name)}
        return [n for n in made if n not in others and (_hidden(n) or self.find(n) is None)]

    def strangers(self) -> list[str]:
        """Folders that loadkit didn't make: they are left alone."""
        return [name for name in self._names() if not self._made(name)]

    @property
    def bytes(self) -> int:
        """Bytes of all entries."""
        return sum(entry.bytes for entry in self)

    @property
    def limit(self) -> int:
        """Bytes that all entries may take together; 0 where the disk can't be asked."""
        return size_limit(self._limit, self.root)

    def room_for(self, wanted: int, *, begun: int = 0) -> str:
        """Why an entry of so many bytes can't be kept; "" where it can.

        Parameters:
            wanted: bytes of the entry.
            begun: how many of them are on the disk already.
        """
        if wanted > self.limit:
            return f"it takes {size(wanted)}, and the cache may hold {size(self.limit)} (LOADKIT_CACHE_MAX)"
        over = max(0, self.bytes + wanted - self.limit)  # what pruning frees
        return lacking(self.root, wanted - begun, over)

    def lock(self, key: str) -> BaseFileLock | None:
        """The lock under which the entry of that key is written; None where the folder can't be written."""
        from filelock import FileLock

        try:
            self._make_root()
            probe = self.root / f".{key}.lock"
            with probe.open("a"):
                pass
        except OSError:
            return None
        # A lock of its own for each load, threads of one process included.
        return FileLock(probe, thread_local=False)

    def begin(self, key: str) -> Path:
        """An empty folder to write an entry's files to, beside its place. Call it under the entry's lock.

        Raises:
            OSError: it can't be made.
        """
        self.drop(key)
        self._remove(f".{key}.partial")
        self._make_root()
        folder = self.root / f".{key}.partial"
        folder.mkdir(mode=OURS)
        mark(folder)
        return folder

    def sync(self, partial: Path) -> None:
        """Have the disk take what was written so far to a folder that `begin` made: less is left to do."""
        for path in partial.iterdir():
            with suppress(OSError):  # what can't be synced yet is left
                sync(path)

    def finish(self, partial: Path, record: Record) -> Entry:
        """Move a folder that `begin` made, with its files, into its place. Call it under the entry's lock.

        Raises:
            OSError: something can't be written; nothing is left then.
        """
        try:
            for name in record.files:
                sync(partial / name)
            write_whole(partial / RECORD, seal(record))
            sync(partial / RECORD)
            sync(partial)
            place = self.root / record.key
            os.rename(partial, place)
            sync(self.root)
        except OSError:
            self._remove(partial.name)
            raise
        self.refusals.clear(record.key)
        self.prune(keep=record.key)
        return Entry(folder=str(place), record=record, used=record.created)

    def discard(self, key: str) -> None:
        """Remove what was begun, if it is there, and nothing else. Call it under the entry's lock."""
        self._remove(f".{key}.partial")

    def abandon(self, key: str, reason: str, *, lasting: bool = False) -> None:
        """Remove what was begun, and let others know that it can't be kept: for an hour unless lasting."""
        self._remove(f".{key}.partial")
        self.refusals.add(key, reason, lasting=lasting)

    def refused(self, key: str) -> str:
        """Why this entry can't be kept; "" where nothing is known against it."""
        found = self.refusals.of(key)
        return found.reason if found is not None else ""

    def touch(self, key: str) -> None:
        """Note that an entry was used, where that can be noted."""
        with suppress(OSError):
            os.utime(self.root / key / RECORD)

    def drop(self, key: str) -> None:
        """Remove an entry: its record first, so that nobody takes it for whole meanwhile."""
        if not self._made(key):
            return
        with suppress(OSError):
            mark(self.root / key)  # what was made before there were marks is known by its record alone
            (self.root / key / RECORD).unlink()
        self._remove(key)

    def prune(self, limit: int | None = None, keep: str = "") -> list[Entry]:
        """Remove the least recently used entries over the limit, and remains of writings that were cut off.

        Parameters:
            limit: bytes that may stay; by default the cache's own limit.
            keep: a key that stays, whatever its size.

        Returns:
            The entries that were removed.
        """
        self._sweep()
        room = self.limit if limit is None else limit
        removed, total = [], 0
        for entry in sorted(self, key=lambda e: (e.record.key != keep, -e.used)):
            if total + entry.bytes > room and entry.record.key != keep:
                self.drop(entry.record.key)
                removed.append(entry)
            else:
                total += entry.bytes
        return removed

    def _sweep(self) -> None:
        """Remove what nobody writes any more: partial folders whose lock is free, and records' remains."""
        for name in self.broken():
            key = name.removeprefix(".").removesuffix(".partial")
            lock = self.lock(key)
            if lock is None:
                return
            with suppress(OSError, TimeoutError):
                lock.acquire(timeout=0)
                try:
                    if self.find(key) is None:
                        self.drop(key)
                    self._remove(f".{key}.partial")
                finally:
                    lock.release()

    def _made(self, name: str) -> bool:
        """Whether loadkit made the folder of that name.

        Before it marked them a record said so, or the name of a writing that was cut off.
        """
        key = name.removeprefix(".").removesuffix(".partial")
        if not is_key(key) or name not in (key, f".{key}.partial"):
            return False
        if is_marked(self.root / name) or read_record(self.root / name) is not None:
            return True
        return _hidden(name) and len(key) == KEY_LENGTH and not (self.root / name).is_symlink()

    def _remove(self, name: str) -> None:
        """Remove a folder, if loadkit made it; the mark goes last, so that the next try knows the rest."""
        folder = self.root / name
        if not self._made(name):
            return
        with suppress(OSError):
            for path in sorted(folder.iterdir(), key=lambda path: path.name == MARK):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            folder.rmdir()

    def _make_root(self) -> None:
        if not self.root.is_dir():
            self.root.parent.mkdir(parents=True, exist_ok=True)
            self.root.mkdir(mode=OURS, exist_ok=True)

    def _names(self) -> list[str]:
        """Folders, those of writings under way among them."""
        try:
            return sorted(e.name for e in os.scandir(self.root) if e.is_dir(follow_symlinks=False))
        except OSError:
            return []


def _hidden(name: str) -> bool:
    return name.startswith(".")

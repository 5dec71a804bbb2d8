"""Checkpoints that loadkit prepared on this machine: whole or not there, least recently used first to go."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from loadkit.cache.atomic_write import sync, write_whole
from loadkit.cache.cache_folder import cache_folder
from loadkit.cache.checksums import checksum, file_checksums
from loadkit.cache.disk_space import SHARE, lacking, size_limit
from loadkit.text.units import size

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = ["Entries", "Entry", "Record"]

REFUSAL_SECONDS = 3600.0
"""How long a failed writing is remembered, so that waiting processes don't repeat it one after the other."""

RECORD = "entry.json"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is written beside an entry's files, last of all.

    Parameters:
        key: the entry's name.
        created: seconds since 1970.
        files: file name to bytes.
        digests: file name to its checksum; for a safetensors file, those of its tensors and its header.
        about: what it was made from, for people.
        more: what whoever wrote it needs to know again.
    """

    key: str
    created: float
    files: dict[str, int]
    digests: dict[str, str] = {}
    about: dict[str, str] = {}
    more: dict[str, Any] = {}


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry that is whole, as far as names and sizes tell.

    Parameters:
        folder: where its files are.
        record: what was written beside them.
        used: when it was last loaded, in seconds since 1970; never later than now.
    """

    folder: str
    record: Record
    used: float

    @property
    def bytes(self) -> int:
        """Bytes of its files."""
        return sum(self.record.files.values())

    @property
    def age(self) -> float:
        """Seconds since it was made; 0 where the clock was put back."""
        return max(0.0, time.time() - self.record.created)

    def damage(self) -> str:
        """What isn't as it was written; "" for nothing. Every byte is read."""
        folder, digests = Path(self.folder), self.record.digests
        found: dict[str, str] = {}
        try:
            for name in self.record.files:
                if name.endswith(".safetensors"):
                    found |= file_checksums(folder / name)
                else:
                    found[name] = checksum((folder / name).read_bytes())
        except (OSError, ValueError) as error:
            return str(error)
        wrong = sorted(name for name in digests.keys() | found.keys() if digests.get(name) != found.get(name))
        return f"{wrong[0] or 'the header'} has another checksum" if wrong else ""


class _Refusal(msgspec.Struct, frozen=True, kw_only=True):
    reason: str
    at: float
    lasting: bool = False


class Entries:
    """The entries under one folder. Reading never fails: what can't be read isn't there.

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
        self.off = f"LOADKIT_QUANTIZED_CACHE={off}" if off in ("0", "false", "no", "off") else ""
        self._limit = env.get("LOADKIT_CACHE_MAX", "").strip() or SHARE
        size_limit(self._limit, self.root)

    @property
    def processor(self) -> str:
        """The kind of processor that this machine's bytes are computed by, such as "x86_64"."""
        return platform.machine()

    def find(self, key: str) -> Entry | None:
        """The entry of that key, if all its files are there with the bytes that they had."""
        folder = self.root / key
        try:
            found = (folder / RECORD).stat()
            record = msgspec.json.decode((folder / RECORD).read_bytes(), type=Record)
            sizes = {name: (folder / name).stat().st_size for name in record.files}
        except (OSError, ValueError, RecursionError, msgspec.MsgspecError):
            return None
        if sizes != record.files or record.key != key:
            return None
        return Entry(folder=str(folder), record=record, used=min(found.st_mtime, time.time()))

    def __iter__(self) -> Iterator[Entry]:
        """Every whole entry, the most recently used first."""
        found = (self.find(name) for name in self._names() if not _hidden(name))
        yield from sorted((e for e in found if e is not None), key=lambda e: -e.used)

    def broken(self) -> list[str]:
        """Folders that are no whole entry: of writings that were cut off, or damaged."""
        return [name for name in self._names() if _hidden(name) or self.find(name) is None]

    @property
    def bytes(self) -> int:
        """Bytes of all entries."""
        return sum(entry.bytes for entry in self)

    @property
    def limit(self) -> int:
        """Bytes that all entries may take together; 0 where the disk can't be asked."""
        return size_limit(self._limit, self.root)

    def room_for(self, wanted: int) -> str:
        """Why an entry of so many bytes can't be kept; "" where it can."""
        if wanted > self.limit:
            return f"it takes {size(wanted)}, and the cache may hold {size(self.limit)} (LOADKIT_CACHE_MAX)"
        over = max(0, self.bytes + wanted - self.limit)  # what pruning frees
        return lacking(self.root, wanted, over)

    def lock(self, key: str) -> BaseFileLock | None:
        """The lock under which the entry of that key is written; None where the folder can't be written."""
        from filelock import FileLock

        try:
            self.root.mkdir(parents=True, exist_ok=True)
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
        folder = self.root / f".{key}.partial"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
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
            write_whole(partial / RECORD, msgspec.json.encode(record))
            sync(partial / RECORD)
            sync(partial)
            place = self.root / record.key
            os.rename(partial, place)
            sync(self.root)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        with suppress(OSError):
            (self.root / f".{record.key}.refused").unlink()
        self.prune(keep=record.key)
        return Entry(folder=str(place), record=record, used=record.created)

    def abandon(self, key: str, reason: str, *, lasting: bool = False) -> None:
        """Remove what was begun, and let others know that it can't be kept: for an hour unless lasting."""
        shutil.rmtree(self.root / f".{key}.partial", ignore_errors=True)
        refusal = _Refusal(reason=reason, at=time.time(), lasting=lasting)
        with suppress(OSError):
            write_whole(self.root / f".{key}.refused", msgspec.json.encode(refusal))

    def refused(self, key: str) -> str:
        """Why this entry can't be kept; "" where nothing is known against it."""
        try:
            found = msgspec.json.decode((self.root / f".{key}.refused").read_bytes(), type=_Refusal)
        except (OSError, msgspec.DecodeError):
            return ""
        return found.reason if found.lasting or abs(time.time() - found.at) < REFUSAL_SECONDS else ""

    def touch(self, key: str) -> None:
        """Note that an entry was used, where that can be noted."""
        with suppress(OSError):
            os.utime(self.root / key / RECORD)

    def drop(self, key: str) -> None:
        """Remove an entry: its record first, so that nobody takes it for whole meanwhile."""
        with suppress(OSError):
            (self.root / key / RECORD).unlink()
        shutil.rmtree(self.root / key, ignore_errors=True)

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
                        shutil.rmtree(self.root / key, ignore_errors=True)
                    shutil.rmtree(self.root / f".{key}.partial", ignore_errors=True)
                finally:
                    lock.release()

    def _names(self) -> list[str]:
        """Folders, those of writings under way among them."""
        try:
            return sorted(e.name for e in os.scandir(self.root) if e.is_dir(follow_symlinks=False))
        except OSError:
            return []


def _hidden(name: str) -> bool:
    return name.startswith(".")

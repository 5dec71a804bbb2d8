"""Files of a source brought into its copy: whole, in the state that was planned with, resumed where they
broke off."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from loadkit.cache.atomic_write import sync
from loadkit.cache.disk_space import lacking
from loadkit.errors import Problem
from loadkit.facts.checkpoint.config_files import read_each
from loadkit.facts.checkpoint.references import unclaimed
from loadkit.facts.checkpoint.source import OpenedStore, OpenStore
from loadkit.facts.stores.copies import StoreCopy, unwritable
from loadkit.facts.stores.listing import bad_source, checked
from loadkit.facts.stores.open_store import changed
from loadkit.facts.stores.store_files import PAUSES, cut_short, damaged
from loadkit.schema.sources import SourceFile

__all__ = ["StoreFetch"]

ATTEMPTS = 100
"""At one file, while each brings something."""

_BLOCK = 1 << 22


class StoreFetch:
    """A source at a commit, and how to bring its files here.

    Parameters:
        location: its reference.
        commit: the commit.
        stores: asks the plugins.
    """

    def __init__(self, location: str, commit: str, stores: OpenStore) -> None:
        self.location = location
        self.commit = commit
        self._copy = StoreCopy(location, commit)
        self._stores = stores
        self._failed: Problem | None = None

    @property
    def folder(self) -> Path:
        """Where its files lie, once they are there."""
        return self._copy.folder

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of the files that aren't here."""
        return self._copy.missing(list(names))

    def listed(self) -> Sequence[str] | Problem:
        """Every file that the source had at the commit."""
        known = self._copy.files()
        if known is not None:
            return list(known)
        store = self._opened()
        return store if isinstance(store, Problem) else list(self._copy.files() or ())

    def fetch(self, names: Iterable[str]) -> list[Problem]:
        """Bring the files that aren't here, several at a time; one process of a machine at a time.

        The source is asked for its state before the first byte and after the last: what came from another
        isn't kept.

        Returns:
            What went wrong, each cause once.
        """
        from filelock import FileLock

        wanted = list(names)
        if self._copy.files() is not None and not self.missing(wanted):
            return []
        store = self._opened()
        if isinstance(store, Problem):
            return [store]
        try:
            with FileLock(self._copy.root / f".{self.commit}.lock", thread_local=False):
                return self._fetch(store, self.missing(wanted))
        except OSError as error:
            return [unwritable(self.location, error)]

    def _fetch(self, store: OpenedStore, names: Sequence[str]) -> list[Problem]:
        files = self._copy.files() or {}
        if unknown := [name for name in names if name not in files]:
            return [bad_source(self.location, store.plugin, f"it lists no {unknown[0]!r} any more")]
        if fault := lacking(self._copy.root, sum(files[name].size for name in names), 0):
            return [unwritable(self.location, fault)]
        results = read_each(store.workers, names, lambda name: self._bring(store, name, files[name]))
        problems = [problem for _, problem in results if problem]
        if not problems and isinstance(again := self._opened(), Problem):
            problems = [again]
            if again.code == "source-changed":
                for name in names:
                    self._copy.part(name).unlink(missing_ok=True)
        if not problems:
            for name in names:
                target = self._copy.folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(self._copy.part(name), target)
            with suppress(OSError):  # where something else isn't whole yet, it stays
                self._copy.part("").rmdir()
        return list(dict.fromkeys(problems))

    def _opened(self) -> OpenedStore | Problem:
        """The source, in the state that the commit names."""
        store = self._stores(self.location, "")
        if store is None:
            return unclaimed(self.location)
        if isinstance(store, Problem):
            return store
        listing = checked(self.location, store)
        if isinstance(listing, Problem):
            return listing
        if listing.commit != self.commit:
            return changed(self.location, self.commit, listing.commit)
        return self._copy.begin(listing, store.plugin) or store

    def _bring(self, store: OpenedStore, name: str, about: SourceFile) -> Problem | None:
        part = self._copy.part(name)
        pauses = iter(PAUSES)
        for _ in range(ATTEMPTS):
            if self._failed:
                return self._failed
            before = _size(part, about.size)
            try:
                problem = self._append(store, name, part, before, about.size)
            except OSError as error:
                problem = unwritable(self.location, error)
            if problem is not None and problem.code != "source-failed":
                self._failed = problem
                return problem
            have = _size(part, about.size)
            if have == about.size:
                return self._whole(name, part, about)
            if have == before:
                pause = next(pauses, None)
                if pause is None:
                    return problem or cut_short(self.location, name, have, about.size)
                time.sleep(pause)
        return cut_short(self.location, name, _size(part, about.size), about.size)

    def _append(self, store: OpenedStore, name: str, part: Path, have: int, size: int) -> Problem | None:
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("r+b" if part.is_file() else "wb") as file:
            file.truncate(have)
            file.seek(have)
            if have == size:
                return None
            for piece in store.stream(name, have):
                if isinstance(piece, Problem) or self._failed:
                    return piece if isinstance(piece, Problem) else self._failed
                have += len(piece)
                if have > size:
                    return bad_source(
                        self.location, store.plugin, f"it gives more than {size:,} bytes of {name!r}"
                    )
                file.write(piece)
        return None

    def _whole(self, name: str, part: Path, about: SourceFile) -> Problem | None:
        """Hold a file against its checksum, and have the disk take it."""
        kind, _, expected = about.checksum.partition(":")
        if kind:
            digest = hashlib.new(kind, usedforsecurity=False)
            with part.open("rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
            if (found := digest.hexdigest()) != expected:
                part.unlink(missing_ok=True)
                fault = f"expected {kind} {expected[:12]}…, got {found[:12]}…"
                return damaged(self.location, name, fault)
        sync(part)
        return None


def _size(part: Path, most: int) -> int:
    """Bytes of a part that is begun; one that is longer than the file is begun anew."""
    try:
        found = part.stat().st_size
    except OSError:
        return 0
    return found if found <= most else 0

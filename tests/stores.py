"""Stores for tests: folders that are served as `store://NAME`, with a record of what was read of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from loadkit import hookimpl
from loadkit.hooks.manager import PluginManager
from loadkit.plugins import Source, SourceError, SourceFile

__all__ = ["FolderSource", "Store", "manager_with"]


class FolderSource(Source):
    """A folder's files, as a source; what was read of them is noted."""

    def __init__(self, folder: Path, store: Store) -> None:
        self._folder, self._store = folder, store
        self.files = {
            path.relative_to(folder).as_posix(): SourceFile(
                size=path.stat().st_size,
                checksum=f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" if store.checksums else "",
                tag="" if store.checksums else str(path.stat().st_mtime_ns),
            )
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        self.version = store.version

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        if fault := self._store.before(name, start):
            raise fault
        with (self._folder / name).open("rb") as file:
            file.seek(start)
            found = file.read(stop - start)
        self._store.read[name] = self._store.read.get(name, 0) + len(found)
        return found


class Store:
    """A plugin that serves folders: `store.folders["tiny"] = folder` is `store://tiny`."""

    def __init__(self, **folders: Path) -> None:
        self.folders: dict[str, Path] = dict(folders)
        self.checksums = True
        self.version = "1"
        self.opened: list[str] = []
        self.read: dict[str, int] = {}
        self.before: Callable[[str, int], Exception | None] = lambda name, start: None
        self.made: Callable[[FolderSource], object] = lambda source: source

    @hookimpl
    def loadkit_open_source(self, reference: str) -> object:
        if not reference.startswith("store://"):
            return None
        self.opened.append(reference)
        folder = self.folders.get(reference.removeprefix("store://"))
        if folder is None:
            raise SourceError(f"there is no {reference!r}", "name one that there is", code="no-such-source")
        return self.made(FolderSource(folder, self))


def manager_with(plugin: object, name: str = "a-store") -> PluginManager:
    """loadkit's own plugins, and this one."""
    manager = PluginManager()
    manager.register(plugin, name)
    return manager

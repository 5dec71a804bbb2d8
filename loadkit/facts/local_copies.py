"""Where a place's files lie on this machine, and how those that don't yet are brought: one shape for a
folder, a repository and a source."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from loadkit.errors import Problem
from loadkit.facts.checkpoint.references import is_reference
from loadkit.facts.checkpoint.source import OpenStore, no_stores
from loadkit.schema.request import Token

__all__ = ["Copy", "copy_of", "folder_of", "handed_over"]


class Copy(Protocol):
    """The files that this machine has of a place at a commit."""

    @property
    def folder(self) -> Path:
        """Where they lie, once they are there."""

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of the files that aren't here."""

    def listed(self) -> Sequence[str] | Problem:
        """Every file that there is at the commit."""

    def fetch(self, names: Iterable[str]) -> list[Problem]:
        """Bring the files that aren't here; what went wrong, each cause once."""


class _OwnFolder:
    """A folder on this machine, which has what it has."""

    def __init__(self, location: str) -> None:
        self.folder = Path(location)

    def missing(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if not (self.folder / name).is_file()]

    def listed(self) -> Sequence[str]:
        return [path.name for path in self.folder.iterdir() if path.is_file()]

    def fetch(self, names: Iterable[str]) -> list[Problem]:
        return []


def copy_of(
    location: str,
    commit: str,
    *,
    token: Token = None,
    cache_dir: str | os.PathLike[str] | None = None,
    stores: OpenStore = no_stores,
) -> Copy:
    """The copy of a place.

    Parameters:
        location: a folder's path, a repository's id or an address.
        commit: its commit; "" for a folder.
        token, cache_dir: as huggingface_hub takes them, for a repository.
        stores: asks the plugins, for an address.
    """
    if not commit:
        return _OwnFolder(location)
    if is_reference(location):
        from loadkit.facts.stores.fetch import StoreFetch

        return StoreFetch(location, commit, stores)
    from loadkit.facts.hub.download import SnapshotDownload

    return SnapshotDownload(location, commit, token=token, cache_dir=cache_dir)


def handed_over(location: str, commit: str) -> str:
    """What `from_pretrained` is given for a place: an address is nothing to it, the folder of its copy is."""
    return str(copy_of(location, commit).folder) if commit and is_reference(location) else location


def folder_of(location: str, commit: str, cache_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """The folder on this machine with the files of a place, as far as they are here; None where none are.

    Parameters:
        location: a folder's path, a repository's id or an address.
        commit: its commit; "" for a folder.
        cache_dir: the Hub cache; huggingface_hub's own by default.
    """
    found = copy_of(location, commit, cache_dir=cache_dir).folder
    return found if found.is_dir() else None

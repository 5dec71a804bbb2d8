"""What is kept of checkpoints from elsewhere, all of it: to be listed, and removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec

from loadkit.cache.cache_folder import cache_folder
from loadkit.cache.ownership import is_key, is_marked
from loadkit.facts.stores.copies import copy_folder, record_in

__all__ = ["KeptCopy", "drop_copy", "kept_copies"]


class KeptCopy(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of one address.

    Parameters:
        reference: the address; "" where nothing trustworthy says it.
        plugin: who brought it.
        commits: its states of which something is here.
        bytes: what all of it takes on the disk, unfinished files too.
        folder: where it lies.
    """

    reference: str
    plugin: str
    commits: tuple[str, ...]
    bytes: int
    folder: str


def kept_copies() -> list[KeptCopy]:
    """Everything that is kept, the largest first; folders that loadkit didn't make aren't among it."""
    try:
        folders = [path for path in (cache_folder() / "stores").iterdir() if _own(path)]
    except OSError:
        return []
    return sorted(map(_kept, folders), key=lambda copy: (-copy.bytes, copy.reference, copy.folder))


def drop_copy(copy: KeptCopy) -> bool:
    """Remove what is kept of an address.

    Returns:
        Whether it is gone: not while another process fetches it.

    Raises:
        OSError: a part of it can't be removed.
    """
    from filelock import FileLock, Timeout

    folder = Path(copy.folder)
    with ExitStack() as held:
        try:
            for lock in folder.glob(".*.lock"):
                held.enter_context(FileLock(lock, timeout=0, thread_local=False))
        except Timeout:
            return False
        if _own(folder):
            shutil.rmtree(folder)
    return True


def _own(folder: Path) -> bool:
    return is_key(folder.name) and is_marked(folder)


def _kept(folder: Path) -> KeptCopy:
    records = {path.stem: record for path in folder.glob("*.json") if (record := record_in(path))}
    named = next((r for r in records.values() if copy_folder(r.reference) == folder), None)
    return KeptCopy(
        reference=named.reference if named else "",
        plugin=named.plugin if named else "",
        commits=tuple(sorted(records)),
        bytes=sum(_sizes(folder)),
        folder=str(folder),
    )


def _sizes(folder: Path) -> Iterator[int]:
    for root, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):  # moved into place meanwhile
                yield os.lstat(os.path.join(root, name)).st_size

"""Where a file of an existing adapter lies on this machine."""

from __future__ import annotations

from loadkit import Adapter
from loadkit.plugins import folder_of

__all__ = ["file_of"]


def file_of(adapter: Adapter, name: str, cache_dir: str | None) -> str | None:
    """The path of one of its files; None where it has none of that name.

    Parameters:
        adapter: an existing adapter.
        name: the file's.
        cache_dir: where Hub files are; None for the Hub's own cache.
    """
    folder = folder_of(adapter.source, adapter.revision, cache_dir)
    path = None if folder is None else folder / name
    return str(path) if path is not None and path.is_file() else None

"""Where a file of an existing adapter lies on this machine."""

from __future__ import annotations

import os

from loadkit import Adapter

__all__ = ["file_of"]


def file_of(adapter: Adapter, name: str, cache_dir: str | None) -> str | None:
    """The path of one of its files; None where it has none of that name.

    Parameters:
        adapter: an existing adapter.
        name: the file's.
        cache_dir: where Hub files are; None for the Hub's own cache.
    """
    from huggingface_hub import try_to_load_from_cache

    if not adapter.revision:
        path = os.path.join(adapter.source, name)
        return path if os.path.isfile(path) else None
    found = try_to_load_from_cache(adapter.source, name, cache_dir=cache_dir, revision=adapter.revision)
    return found if isinstance(found, str) else None

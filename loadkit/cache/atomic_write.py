"""Files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["sync", "write_whole"]


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write beside a file and move into its place, so that nobody ever sees half of it.

    Raises:
        OSError: it can't be written; what was there before is there still.
    """
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with open(handle, "wb") as stream:
            stream.write(content)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def sync(path: Path) -> None:
    """Have the disk hold what was written to a file or a folder; not everywhere can a folder be synced.

    Raises:
        OSError: it can't be opened, or the disk failed.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():
            return  # Windows opens no folders
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    """The process's mask: a file made by `mkstemp` is the owner's alone, and one that was asked for isn't."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask

"""Whose a folder is: loadkit removes only what it made, and uses only what nobody else could have written."""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from pathlib import Path

__all__ = ["MARK", "is_key", "is_marked", "mark", "open_to_all", "other_owner"]

MARK = "made-by-loadkit"
"""A file in every folder that loadkit makes under the cache, from the first moment on."""

KEY = re.compile(r"[0-9a-f]{1,64}")


def is_key(name: str) -> bool:
    """Whether a name is one that loadkit gives to an entry: hexadecimal, so never a path."""
    return KEY.fullmatch(name) is not None


def mark(folder: Path) -> None:
    """Note that loadkit made a folder.

    Raises:
        OSError: it can't be written.
    """
    (folder / MARK).write_text("loadkit made this folder, and may remove it.\n", encoding="utf-8")


def is_marked(folder: Path) -> bool:
    """Whether loadkit made a folder; a link to one isn't one."""
    return not folder.is_symlink() and (folder / MARK).is_file()


def open_to_all(folder: Path) -> str:
    """Why what is in a folder may be anybody's; "" where only its owner and group write there, or it isn't
    there."""
    with suppress(OSError):
        if os.name == "posix" and folder.stat().st_mode & stat.S_IWOTH:
            return f"everybody can write to {folder} (`chmod o-w {folder}` ends that)"
    return ""


def other_owner(folder: Path) -> str:
    """The user whose folder it is, where that is neither this one nor root; "" where it is."""
    if not hasattr(os, "geteuid"):  # Windows
        return ""
    owner = folder.stat().st_uid
    if owner in (0, os.geteuid()):
        return ""
    import pwd

    try:
        return pwd.getpwuid(owner).pw_name
    except KeyError:
        return f"with the number {owner}"

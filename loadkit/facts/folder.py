"""A checkpoint in a folder of this machine."""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path

from loadkit.errors import Problem
from loadkit.facts.contents import problem

__all__ = ["FolderFiles", "looks_like_a_path", "no_such_folder"]

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
"""A Hub id: a name, or an owner and a name."""


class FolderFiles:
    """The files of a folder, two levels deep.

    Parameters:
        folder: the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.where = str(folder)

    @functools.cached_property
    def sizes(self) -> Mapping[str, int]:
        """Path in the folder to bytes."""
        found: dict[str, int] = {}
        for entry in os.scandir(self.folder):
            if entry.is_file():
                found[entry.name] = entry.stat().st_size
            elif entry.is_dir() and not entry.name.startswith("."):
                found |= {
                    f"{entry.name}/{e.name}": e.stat().st_size for e in os.scandir(entry) if e.is_file()
                }
        return found

    def content(self, name: str) -> bytes:
        """All of a file."""
        return (self.folder / name).read_bytes()

    def span(self, name: str, start: int, stop: int) -> bytes:
        """Some bytes of a file."""
        with (self.folder / name).open("rb") as file:
            file.seek(start)
            return file.read(stop - start)


def looks_like_a_path(source: str) -> bool:
    """Whether a source that isn't a folder was meant as one."""
    return source.startswith((".", "~", "/", os.sep)) or "\\" in source or not REPOSITORY.fullmatch(source)


def no_such_folder(source: str) -> Problem:
    """What to say of a path that isn't a folder: the nearest name beside it, where there is one."""
    path = Path(source).expanduser()
    if path.is_file():
        found = "is a file"
    elif path.parent.is_dir():
        siblings = [p.name for p in path.parent.iterdir() if p.is_dir()]
        near = difflib.get_close_matches(path.name, siblings, n=1)
        found = f"doesn't exist (did you mean {str(path.parent / near[0])!r}?)" if near else "doesn't exist"
    else:
        found = f"doesn't exist, nor does {path.parent}"
    return problem(
        "no-such-folder",
        f"you asked for the folder {source!r}, which {found}",
        "name the folder that holds config.json; a Hub id looks like owner/name",
    )

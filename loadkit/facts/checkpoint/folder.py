"""A checkpoint in a folder of this machine."""

from __future__ import annotations

import os
import re
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from typing import Literal

from loadkit.errors import Problem
from loadkit.facts.checkpoint.folder_entries import link_outside, refuse_entries
from loadkit.facts.checkpoint.source import checkpoint_problem
from loadkit.text.suggest import nearest_name

__all__ = [
    "Folder",
    "is_repository_id",
    "looks_like_path",
    "missing_folder",
    "open_folder",
    "read_part",
    "similar_path",
]

FILES = (".gguf", ".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth")
"""Ends of names of files with weights."""

_MAX_DEPTH = 4
_MAX_FILES = 20_000
_REPOSITORY_ID = re.compile(r"(?:\w(?:[\w.-]{0,94}\w)?/)?\w(?:[\w.-]{0,94}\w)?", re.ASCII)


class Folder:
    """A folder, by its absolute path, and its files, listed when first asked for.

    Four levels deep and up to 20 000 files are listed, hidden folders left out, so that a folder given by
    mistake (a home, a disk) takes no long walk. Files are read by their path, listed or not.
    """

    kind: Literal["folder", "hub", "store"] = "folder"
    revision = ""
    commit = ""
    workers = 1
    first_bytes = 8

    def __init__(self, path: str) -> None:
        self.location = path

    def __str__(self) -> str:
        return f"folder {self.location!r}"

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Every file's path inside the folder to its bytes; links count as what they point to."""
        return dict(sorted(_walk(self.location)))

    def size(self, name: str) -> int | None:
        """Bytes of a regular file; None where there is none of that path."""
        try:
            found = os.stat(os.path.join(self.location, name))
        except (OSError, ValueError):
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def read(self, name: str) -> bytes | Problem:
        """A whole file."""
        return link_outside(self.location, name) or read_part(os.path.join(self.location, name))

    def read_range(self, name: str, start: int, stop: int) -> bytes | Problem:
        """Bytes `start` to `stop` (exclusive) of a file; fewer where the file ends before."""
        return link_outside(self.location, name) or read_part(os.path.join(self.location, name), start, stop)

    def refusals(self) -> list[Problem]:
        """Links out of the folder, and what is no file, among what loaders read of it."""
        return list(refuse_entries(self.location))

    def absent(self, names: Iterable[str], otherwise: Problem) -> Problem:
        """A folder is all there is: what isn't in it doesn't exist."""
        return otherwise


def open_folder(source: str | os.PathLike[str]) -> Folder | None:
    """The folder that a source names; None where there is no folder of that path. "~" is the home."""
    path = os.path.expanduser(os.fspath(source))
    try:
        return Folder(os.path.abspath(path)) if path and os.path.isdir(path) else None
    except ValueError:  # half a character, which no path can have
        return None


def is_repository_id(source: str) -> bool:
    """Whether it has the form of a Hub id: "name" or "owner/name", as huggingface_hub accepts them."""
    odd = "--" in source or ".." in source or source.endswith(".git")
    return _REPOSITORY_ID.fullmatch(source) is not None and not odd


def looks_like_path(source: str | os.PathLike[str]) -> bool:
    """Whether a source that is no existing folder was meant as a path, not as a Hub id."""
    return not isinstance(source, str) or not is_repository_id(source) or names_weights(source)


def names_weights(source: str) -> bool:
    """Whether it is called as files of weights are: nobody calls a repository so."""
    return source.lower().endswith(FILES)


def missing_folder(source: str | os.PathLike[str]) -> Problem:
    """The problem of a path where no folder is, with the folder that may have been meant."""
    problem = partial(checkpoint_problem, "no-such-folder")
    asked = os.fspath(source)
    if not asked:
        return problem("the source is empty", "give a folder's path, or a Hub id such as 'owner/name'")
    if (url := re.match(r"(?:hf://|https?://[^/]+/)(?:models/)?([^/@?#]+/[^/@?#]+)", asked)) is not None:
        return problem(f"{asked!r} is an address, not a folder or a Hub id", f"give {url[1]!r}")
    if lost := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/([^/].*)", asked):
        return problem(
            f"{asked!r} is an address that became a path, which takes one of its slashes away",
            f"give it as text: '{lost[1]}://{lost[2]}'",
        )
    path = os.path.abspath(os.path.expanduser(asked))
    if os.path.isfile(path):
        return problem(
            f"{asked!r} is a file; a checkpoint is a folder with a config.json and weights",
            f"give the folder it lies in: {os.path.dirname(path)!r}",
        )
    kind, hint = "file" if names_weights(asked) else "folder", similar_path(path)
    meant = hint and (f"did you mean {hint!r}? ")
    return problem(
        f"{asked!r} {f'names a {kind}' if kind == 'file' else 'looks like a path'}, but there is no {kind} {path!r}",
        f"{meant}check the path; a Hub id looks like 'owner/name'"
        + (", and gguf_file names a file in its repository" if asked.lower().endswith(".gguf") else ""),
    )


def similar_path(path: str, *, above: bool = True) -> str:
    """What may have been meant by the path of nothing: the folder or file of weights whose name is most like
    it; the folder of a checkpoint for a file that isn't in it; "" where nothing is near.

    Parameters:
        path: an absolute path.
        above: whether folders above it may be misspelt too; not in what may as well be a Hub id.
    """
    parent, name = os.path.split(path)
    if parent == path or not name:
        return ""
    if not os.path.isdir(parent):
        parent = similar_path(parent) if above else ""
        if not os.path.isdir(parent):
            return ""
        if os.path.exists(os.path.join(parent, name)):
            return os.path.join(parent, name)
    try:
        with os.scandir(parent) as entries:
            found = nearest_name(
                name, (each.name for each in entries if each.is_dir() or names_weights(each.name))
            )
    except (OSError, ValueError):
        return ""
    checkpoint = os.path.isfile(os.path.join(parent, "config.json"))
    if found and not (
        checkpoint and names_weights(found)
    ):  # files in a checkpoint's folder are loaded as one
        return os.path.join(parent, found)
    return parent if checkpoint and (found or names_weights(name)) else ""


def read_part(path: str, start: int = 0, stop: int | None = None) -> bytes | Problem:
    """Bytes `start` to `stop` (exclusive; None for the end) of a file on this machine."""
    try:
        # Unbuffered: a header is read in one or two reads, and read-ahead would fetch tensors.
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            if stop is None:
                return file.read()
            parts: list[bytes] = []
            while stop > start and (part := file.read(stop - start)):  # a raw read may return less than asked
                parts.append(part)
                start += len(part)
            return b"".join(parts)
    except OSError as error:
        message = f"{path!r} can't be read: {error.strerror or type(error).__name__}"
        remedy = "check the file's permissions and the disk it lies on"
        return checkpoint_problem("unreadable-file", message, remedy)


def _walk(root: str) -> Iterator[tuple[str, int]]:
    folders = deque([("", 1)])
    listed = 0
    while folders:
        inside, depth = folders.popleft()
        try:
            with os.scandir(os.path.join(root, inside)) as found:
                entries = list(found)
        except OSError:
            continue  # a folder that may not be listed; files of it that are needed are reported when read
        for entry in entries:
            if not _named_in_utf8(entry.name):
                continue  # no config can name it, and no plan hold it
            if entry.is_dir(follow_symlinks=False):
                if depth < _MAX_DEPTH and not entry.name.startswith("."):
                    folders.append((f"{inside}{entry.name}/", depth + 1))
            elif (size := _regular_size(entry)) is not None:
                yield f"{inside}{entry.name}", size
                listed += 1
                if listed == _MAX_FILES:
                    return


def _named_in_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _regular_size(entry: os.DirEntry[str]) -> int | None:
    try:
        return entry.stat().st_size if entry.is_file() else None
    except OSError:
        return None

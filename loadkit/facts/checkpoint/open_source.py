"""Find the files that a source names: a folder's, what a plugin brings, or a repository's on the Hub."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import msgspec

from loadkit.errors import Problem
from loadkit.facts.checkpoint.folder import looks_like_path, missing_folder, open_folder, similar_path
from loadkit.facts.checkpoint.references import is_reference
from loadkit.facts.checkpoint.source import Access, CheckpointFiles, checkpoint_problem

__all__ = ["open_source"]


Opened = tuple[CheckpointFiles | None, list[Problem]]
Way = Callable[[str | os.PathLike[str], str, Access], Opened | None]


def open_source(source: str | os.PathLike[str], revision: str, access: Access) -> Opened:
    """The files of what a source names, and problems: the first of `WAYS` that takes it opens it."""
    return next(found for way in WAYS if (found := way(source, revision, access)) is not None)


def _in_folder(source: str | os.PathLike[str], revision: str, access: Access) -> Opened | None:
    """An existing folder; it has no revisions."""
    folder = open_folder(source)
    location = folder.location if folder else os.fspath(source)
    if not _in_utf8(location):
        return None, [_not_utf8(location)]
    return (folder, []) if folder else None


def _in_store(source: str | os.PathLike[str], revision: str, access: Access) -> Opened | None:
    """What has a scheme, and so is a plugin's to open."""
    if not is_reference(source):
        return None
    from loadkit.facts.stores.open_store import open_store  # not needed for folders and the Hub

    return open_store(os.fspath(source), revision, access)


def _no_folder(source: str | os.PathLike[str], revision: str, access: Access) -> Opened | None:
    """A path that leads nowhere."""
    return (None, [missing_folder(source)]) if looks_like_path(source) else None


def _on_the_hub(source: str | os.PathLike[str], revision: str, access: Access) -> Opened:
    """A repository on the Hub: whatever else has the form of an id."""
    from loadkit.facts.hub.repository import open_repository  # not needed for folders

    name = os.fspath(source)
    files, problems = open_repository(name, revision, access)
    return files, problems if files is not None else [_with_folder(p, name) for p in problems]


WAYS: Sequence[Way] = (_in_folder, _in_store, _no_folder, _on_the_hub)
"""How a source becomes files, in the order in which they are tried."""


def _in_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _not_utf8(path: str) -> Problem:
    message = f"the path {path!r} isn't UTF-8, which plans, manifests and transformers write names in"
    return checkpoint_problem(
        "not-utf8-name", message, "rename the folder, or make a link to it with another name"
    )


def _with_folder(problem: Problem, source: str) -> Problem:
    """Add that there is no such folder either: a relative path looks just like a Hub id.

    Where the Hub knows the repository, or can't be asked, only where a folder has a name that is like it.
    """
    hint = similar_path(os.path.abspath(source), above=False)
    if not hint and problem.code != "no-such-repository":
        return problem
    return msgspec.structs.replace(
        problem,
        message=f"{problem.message}; there is no folder {source!r} here either",
        remedy=(f"did you mean {hint!r}? " if hint else "") + problem.remedy,
    )

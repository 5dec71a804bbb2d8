"""Find the files that a source names: those of an existing folder, else of a repository on the Hub."""

from __future__ import annotations

import os

import msgspec

from loadkit.errors import Problem
from loadkit.facts.checkpoint.folder import looks_like_path, missing_folder, open_folder, similar_path
from loadkit.facts.checkpoint.source import Access, CheckpointFiles, checkpoint_problem

__all__ = ["open_source"]


def open_source(
    source: str | os.PathLike[str], revision: str, access: Access
) -> tuple[CheckpointFiles | None, list[Problem]]:
    """The files of the folder or repository that a source names, and problems; folders have no revisions."""
    folder = open_folder(source)
    if not _in_utf8(folder.location if folder else os.fspath(source)):
        return None, [_not_utf8(folder.location if folder else os.fspath(source))]
    if folder is not None:
        return folder, []
    if looks_like_path(source):
        return None, [missing_folder(source)]
    from loadkit.facts.hub.repository import open_repository  # not needed for folders

    name = os.fspath(source)
    files, problems = open_repository(name, revision, access)
    return files, problems if files is not None else [_with_folder(p, name) for p in problems]


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

"""Find the files that a source names: an existing folder is a folder, anything else is asked for on the Hub."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import msgspec

from loadkit.errors import Problem
from loadkit.facts.checkpoint.folder import looks_like_path, missing_folder, open_folder, similar_folder
from loadkit.facts.checkpoint.source import CheckpointFiles
from loadkit.schema.request import Progress, Token

__all__ = ["Access", "open_source"]


class Access(NamedTuple):
    """How the Hub may be asked.

    Parameters:
        token: as huggingface_hub takes it.
        cache_dir: the Hub cache; huggingface_hub's own by default.
        local_files_only: use what is cached, don't ask the Hub.
        progress: called with a short sentence before something that takes long.
    """

    token: Token = None
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    progress: Progress | None = None


def open_source(
    source: str | os.PathLike[str], revision: str, access: Access
) -> tuple[CheckpointFiles | None, list[Problem]]:
    """Find the folder or repository that a source names; folders ignore the revision.

    Returns:
        Its files, None where there are none; and what is wrong.
    """
    folder = open_folder(source)
    if folder is not None:
        return folder, []
    if looks_like_path(source):
        return None, [missing_folder(source)]
    from loadkit.facts.hub.repository import open_repository  # not needed for folders

    name = os.fspath(source)
    about: dict[str, Any] = access._asdict()
    files, problems = open_repository(name, revision=revision, **about)
    return files, [_with_folder(p, name) if p.code == "no-such-repository" else p for p in problems]


def _with_folder(problem: Problem, source: str) -> Problem:
    """Add that there is no such folder either: a relative path looks just like a Hub id."""
    hint = similar_folder(os.path.abspath(source))
    return msgspec.structs.replace(
        problem,
        message=f"{problem.message}; there is no folder {source!r} here either",
        remedy=(f"did you mean the folder {hint!r}? " if hint else "") + problem.remedy,
    )

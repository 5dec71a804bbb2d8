"""What huggingface_hub's cache holds of a repository (its guide "Understand caching" explains the layout)."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from loadkit.cache.atomic_write import write_whole
from loadkit.errors import Problem
from loadkit.facts.checkpoint.folder import Folder
from loadkit.facts.checkpoint.source import checkpoint_problem
from loadkit.facts.hub.pinned_commits import note_commit
from loadkit.facts.hub.problems import hub_host
from loadkit.text.suggest import some_of

__all__ = ["CachedSnapshot", "find_snapshot", "not_cached", "remember", "repository_cache", "snapshot_folder"]

_COMMIT = re.compile(r"[0-9a-f]{40}")


def repository_cache(repository: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where everything cached of a repository lies; `cache_dir` is huggingface_hub's own by default."""
    from huggingface_hub import constants

    cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser().absolute()
    return cache / f"models--{repository.replace('/', '--')}"


def snapshot_folder(cache: Path, commit: str) -> Folder:
    """The files cached of one commit; the folder may not exist yet."""
    return Folder(str(cache / "snapshots" / commit))


class CachedSnapshot:
    """What the cache holds of a repository at one commit; `why` says why the Hub isn't asked."""

    kind: Literal["folder", "hub", "store"] = "hub"
    workers = 1

    def __init__(self, location: str, revision: str, commit: str, folder: Folder, why: str) -> None:
        self.location = location
        self.revision = revision
        self.commit = commit
        self.sizes = folder.sizes
        self.size = folder.size
        self.read = folder.read
        self.read_range = folder.read_range
        self.first_bytes = folder.first_bytes
        self.refusals = folder.refusals
        self._why = why

    def __str__(self) -> str:
        return f"cached repository {self.location!r} at commit {self.commit[:12]}"

    def absent(self, names: Iterable[str], otherwise: Problem) -> Problem:
        """Files that aren't cached may well exist on the Hub."""
        message = f"{self}: {some_of(names)} isn't cached, and the Hub can't be asked: {self._why}"
        remedy = f"fetch it while online: `hf download {self.location} --revision {self.commit}`"
        return checkpoint_problem("offline-not-cached", message, remedy)


def find_snapshot(
    cache: Path, repository: str, revision: str, wanted: str, why: str
) -> CachedSnapshot | None:
    """The snapshot that a wanted branch, tag or commit is cached as, noted as what the revision is."""
    commit = wanted
    if not _COMMIT.fullmatch(wanted):
        try:
            commit = _reference(cache, wanted or "main").read_text().strip()
        except (OSError, ValueError):
            return None
    folder = snapshot_folder(cache, commit)
    if not _COMMIT.fullmatch(commit) or not os.path.isdir(folder.location):
        return None
    note_commit(repository, revision, commit)
    return CachedSnapshot(repository, revision, commit, folder, why)


def remember(cache: Path, revision: str, commit: str) -> None:
    """Note in the cache what a revision stands for, so that the same request works offline later.

    huggingface_hub notes it when it downloads by the revision's name; loadkit downloads by the commit.
    """
    if _COMMIT.fullmatch(revision):
        return
    with contextlib.suppress(OSError, ValueError):
        reference = _reference(cache, revision)
        if not reference.is_file() or reference.read_text() != commit:
            reference.parent.mkdir(parents=True, exist_ok=True)
            write_whole(reference, commit.encode())


def _reference(cache: Path, revision: str) -> Path:
    folder = cache / "refs"
    path = Path(os.path.normpath(folder / revision))
    if folder not in path.parents:
        raise ValueError(revision)
    return path


def not_cached(cache: Path, repository: str, revision: str, why: str) -> Problem:
    """The problem of a repository that isn't cached at a revision, with the revisions that are."""
    references = cache / "refs"
    known = sorted(p.relative_to(references).as_posix() for p in references.rglob("[!.]*") if p.is_file())
    found = f"cached of it: {some_of(known)}" if known else "nothing of it is cached"
    return checkpoint_problem(
        "offline-not-cached",
        f"{repository!r} at {revision or 'its default branch'} isn't in the cache {str(cache.parent)!r} ({found}), "
        f"and the Hub wasn't asked: {why}",
        f"fetch it while online: `hf download {repository}{f' --revision {revision}' if revision else ''}`; if it is gated, "
        f"accept its licence on {hub_host()}/{repository} before, and log in with `hf auth login`",
    )

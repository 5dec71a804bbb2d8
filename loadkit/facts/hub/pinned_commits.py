"""Which commit a branch stood at when it was first asked for: every process of a launch loads that one.

A branch may move between two processes' questions. The first process notes the commits that it gets; the
others have its notes before they plan. The notes lie around the planning rather than in its arguments: they
are no wish of the user's, and the plan must record the revision that was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["agreed_commit", "note_commit", "noting_commits"]

_notes: ContextVar[dict[str, str] | None] = ContextVar("loadkit_commits", default=None)


@contextmanager
def noting_commits(known: Mapping[str, str] | None = None) -> Iterator[dict[str, str]]:
    """Note every commit resolved inside, "repository@revision" to commit; those known already count."""
    notes = dict(known or {})
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def agreed_commit(repository: str, revision: str) -> str:
    """The commit that a revision was noted to stand for; "" where none was."""
    return (_notes.get() or {}).get(f"{repository}@{revision}", "")


def note_commit(repository: str, revision: str, commit: str) -> None:
    """Note what a revision stands for, where notes are taken."""
    notes = _notes.get()
    if notes is not None:
        notes[f"{repository}@{revision}"] = commit

"""Open the checkpoint that an address names, by the plugin that takes it, or by the copy kept of it."""

from __future__ import annotations

import msgspec

from loadkit.errors import Problem
from loadkit.facts.checkpoint.references import COMMIT, normal, reference_fault, unclaimed
from loadkit.facts.checkpoint.source import Access, CheckpointFiles, checkpoint_problem
from loadkit.facts.hub.pinned_commits import agreed_commit, note_commit
from loadkit.facts.stores.copies import StoreCopy, find_copy, revisions_of
from loadkit.facts.stores.listing import checked
from loadkit.facts.stores.store_files import CopiedFiles, StoreFiles
from loadkit.text.suggest import some_of

__all__ = ["UNREACHABLE", "changed", "open_store"]

UNREACHABLE = "source-unreachable"
"""The code of a problem that has the copy used instead."""


def open_store(source: str, revision: str, access: Access) -> tuple[CheckpointFiles | None, list[Problem]]:
    """Find out which state a source is in, and which files it has; None where there are none to read.

    A copy that stands in for a source that can't be reached comes with a warning.
    """
    if fault := reference_fault(source):
        return None, [fault]
    reference = normal(source)
    pinned = agreed_commit(reference, revision) or (revision if COMMIT.fullmatch(revision) else "")
    if why := access.offline():
        copy = find_copy(reference, pinned or revision)
        return (
            _copied(reference, revision, copy, why)
            if copy
            else (None, [_not_cached(reference, revision, why)])
        )
    if access.progress:
        access.progress(f"asking about {reference}")
    store = access.stores(reference, "" if COMMIT.fullmatch(revision) else revision)
    if store is None:
        return None, [unclaimed(reference)]
    if isinstance(store, Problem):
        copy = find_copy(reference, pinned or revision) if store.code == UNREACHABLE else None
        if copy is None:
            return None, [store]
        files, _ = _copied(reference, revision, copy, store.message)
        used = f"the copy at {copy.commit[:12]} is used, though there may be a newer one"
        return files, [
            msgspec.structs.replace(
                store, code="source-unreachable", severity="warning", message=f"{store.message}; {used}"
            )
        ]
    listing = checked(reference, store)
    if isinstance(listing, Problem):
        return None, [listing]
    if revision not in ("", "main", pinned, listing.revision, listing.version, listing.commit):
        return None, [_no_revision(reference, revision)]
    if pinned not in ("", listing.commit):
        copy = find_copy(reference, pinned)
        if copy is None:
            return None, [changed(reference, pinned, listing.commit)]
        return _copied(reference, revision, copy, "it has changed since")
    copy = StoreCopy(reference, listing.commit)
    if fault := copy.begin(listing, store.plugin):
        return None, [fault]
    copy.remember(revision)
    note_commit(reference, revision, listing.commit)
    return StoreFiles(reference, revision, listing, store, copy), []


def changed(reference: str, planned: str, now: str) -> Problem:
    """The problem of a source that isn't in the state that was planned with."""
    return checkpoint_problem(
        "source-changed",
        f"{reference!r} isn't what it was: {planned[:12]} was planned or asked for, and it is at {now[:12]} now",
        "plan again, for what it is now; a copy of the earlier state isn't on this machine",
    )


def _copied(
    reference: str, revision: str, copy: StoreCopy, why: str
) -> tuple[CheckpointFiles, list[Problem]]:
    note_commit(reference, revision, copy.commit)
    return CopiedFiles(revision, copy, why), []


def _not_cached(reference: str, revision: str, why: str) -> Problem:
    known = revisions_of(reference)
    found = f"there are copies of {some_of(c[:12] for c in known)}" if known else "there is no copy of it"
    return checkpoint_problem(
        "offline-not-cached",
        f"{reference!r}{f' at {revision}' if revision else ''} isn't on this machine ({found}), and its source wasn't asked: {why}",
        "load it once while online, which keeps a copy",
    )


def _no_revision(reference: str, revision: str) -> Problem:
    return checkpoint_problem(
        "no-such-revision",
        f"revision {revision!r} was asked for, and {reference!r} isn't at it, or has none",
        "leave the revision out, or give the commit that a plan of it shows",
    )

"""loadkit's own copies of what sources hold: a folder a state, with only whole files in it.

Under "stores" in loadkit's cache, a folder a reference. In it: a folder named by each commit, with a record
of what the source said beside it; the parts of files that aren't whole yet; what revisions stood for.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import msgspec

from loadkit.cache.atomic_write import write_whole
from loadkit.cache.cache_folder import cache_folder
from loadkit.cache.ownership import mark, open_to_all
from loadkit.cache.seals import is_sealed, seal
from loadkit.errors import Problem
from loadkit.facts.checkpoint.folder import Folder
from loadkit.facts.checkpoint.references import COMMIT
from loadkit.facts.checkpoint.source import checkpoint_problem
from loadkit.facts.stores.listing import Listing
from loadkit.schema.sources import SourceFile

__all__ = ["StoreCopy", "copy_folder", "find_copy", "record_in", "revisions_of", "unwritable"]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What a source said of itself when it was at a commit."""

    reference: str
    version: str
    plugin: str
    files: dict[str, SourceFile]


def copy_folder(reference: str) -> Path:
    """Where everything kept of a reference lies."""
    return cache_folder() / "stores" / hashlib.blake2b(reference.encode(), digest_size=16).hexdigest()


class StoreCopy:
    """What this machine has of a reference at a commit.

    Parameters:
        reference: in its one spelling.
        commit: which of its states.
    """

    def __init__(self, reference: str, commit: str) -> None:
        self.reference = reference
        self.commit = commit
        self.root = copy_folder(reference)
        self.folder = self.root / commit
        self._record = self.root / f"{commit}.json"

    def files(self) -> dict[str, SourceFile] | None:
        """What the source said of its files; None where nothing trustworthy is noted."""
        if open_to_all(self.root) or open_to_all(self.root.parent):
            return None
        record = record_in(self._record)
        return record.files if record and record.reference == self.reference else None

    def begin(self, listing: Listing, plugin: str) -> Problem | None:
        """Note what the source says, and make the folder; a problem where that can't be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            mark(self.root)
            fault = open_to_all(self.root.parent) or open_to_all(self.root)
            if self.files() is None and not fault:
                record = Record(
                    reference=self.reference, version=listing.version, plugin=plugin, files=dict(listing.files)
                )  # fmt: skip
                write_whole(self._record, seal(record))
        except OSError as error:
            return unwritable(self.reference, error)
        return unwritable(self.reference, fault) if fault else None

    def opened(self) -> Folder:
        """The whole files that are here, as a folder."""
        return Folder(str(self.folder))

    def has(self, name: str, about: SourceFile) -> bool:
        """Whether a file is here; one of another length than the source said isn't."""
        return self.opened().size(name) == about.size

    def missing(self, names: list[str]) -> list[str]:
        """Those of the files that aren't here."""
        known = self.files() or {}
        return [name for name in names if name not in known or not self.has(name, known[name])]

    def put(self, name: str, content: bytes) -> None:
        """Keep a small file.

        Raises:
            OSError: it can't be written.
        """
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)

    def part(self, name: str) -> Path:
        """Where a file lies until it is whole."""
        return self.root / f"{self.commit}.parts" / name

    def remember(self, revision: str) -> None:
        """Note what a revision stands for, so that the same request works offline later."""
        if not COMMIT.fullmatch(revision):
            with suppress(OSError):
                write_whole(_reference(self.root, revision), self.commit.encode())


def record_in(path: Path) -> Record | None:
    """The record that a file holds; None for another file, or one that was changed."""
    try:
        content = path.read_bytes()
        return msgspec.json.decode(content, type=Record) if is_sealed(content) else None
    except (OSError, ValueError):
        return None


def find_copy(reference: str, revision: str) -> StoreCopy | None:
    """The copy of the commit that a revision is, or last stood for; None where there is none."""
    commit = revision
    if not COMMIT.fullmatch(revision):
        try:
            commit = _reference(copy_folder(reference), revision).read_text().strip()
        except (OSError, ValueError):
            return None
    if not COMMIT.fullmatch(commit):
        return None
    copy = StoreCopy(reference, commit)
    return copy if copy.files() is not None else None


def revisions_of(reference: str) -> list[str]:
    """The commits that something is kept of."""
    try:
        return sorted(path.stem for path in copy_folder(reference).glob("*.json"))
    except OSError:
        return []


def unwritable(reference: str, fault: OSError | str) -> Problem:
    """The problem of a copy that can't be kept."""
    said = (
        fault if isinstance(fault, str) else f"{fault.strerror or type(fault).__name__}: {fault.filename!r}"
    )
    return checkpoint_problem(
        "cache-unwritable",
        f"a file of {reference!r} can't be kept on this machine: {said}",
        "free some disk space, or point LOADKIT_CACHE to a folder that you alone may write to",
    )


def _reference(root: Path, revision: str) -> Path:
    named = (
        hashlib.blake2b(revision.encode(), digest_size=8).hexdigest()
        if revision not in ("", "main")
        else "main"
    )
    return root / f"{named}.ref"

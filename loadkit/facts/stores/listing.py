"""What a source says of its files, held against what can be true: nobody knows who wrote it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from loadkit.errors import Problem
from loadkit.facts.checkpoint.safetensors_header import safe_path
from loadkit.facts.checkpoint.source import OpenedStore, checkpoint_problem
from loadkit.schema.sources import SourceFile

__all__ = ["Listing", "bad_source", "checked"]

MOST_FILES = 20_000
MOST_BYTES = 1 << 50
"""Of all files together: a thousand terabytes, and no checkpoint has as much."""

LONGEST_NAME, LONGEST_TEXT = 1024, 4096

_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}|")


class Listing(NamedTuple):
    """What was told of a source, and found possible: its files, and the commit that names just these."""

    commit: str
    version: str
    revision: str
    files: Mapping[str, SourceFile]


def checked(reference: str, store: OpenedStore) -> Listing | Problem:
    """What a source says of its version and files, or the problem with that."""
    told = store.told()
    if isinstance(told, Problem):
        return told
    fault = _version_fault(told.version) or _files_fault(told.files)
    if fault:
        return bad_source(reference, store.plugin, fault)
    files: Mapping[str, SourceFile] = dict(sorted(told.files.items()))  # type: ignore[attr-defined]
    named = [reference, told.version, *((n, f.size, f.checksum, f.tag) for n, f in files.items())]
    commit = hashlib.sha256(msgspec.json.encode(named)).hexdigest()[:40]
    return Listing(commit, str(told.version), str(told.revision), files)


def bad_source(reference: str, plugin: str, fault: str) -> Problem:
    """The problem of a source that says or gives what can't be."""
    return checkpoint_problem(
        "bad-source",
        f"{reference!r}, as plugin {plugin!r} tells it: {fault}",
        f"don't load it unless you know who wrote it; if the files are sound, tell the author of {plugin!r}",
    )


def _version_fault(version: object) -> str:
    if not _is_text(version) or not version:
        return f"its version is {_shown(version)}, and text must identify it"
    return ""


def _files_fault(files: object) -> str:
    if not isinstance(files, Mapping):
        return f"its files are {_shown(files)}, not a mapping of names to SourceFile"
    if len(files) > MOST_FILES:
        return f"it lists {len(files):,} files, and no checkpoint has more than {MOST_FILES:,}"
    for name, file in files.items():
        if fault := _name_fault(name) or _file_fault(name, file):
            return fault
    folders = {
        "/".join(parts[:n]) for name in files if (parts := name.split("/")) for n in range(1, len(parts))
    }
    if both := sorted(folders & set(files)):
        return f"it lists {both[0]!r} as a file and as a folder"
    folded: dict[str, str] = {}
    for name in files:
        if (other := folded.setdefault(name.casefold(), name)) != name:
            return f"it lists {other!r} and {name!r}, which are one file on some disks"
    if (total := sum(file.size for file in files.values())) > MOST_BYTES:
        return f"its files have {total:,} bytes, and no checkpoint has more than {MOST_BYTES:,}"
    return ""


def _name_fault(name: object) -> str:
    if not _is_text(name) or not name or len(str(name)) > LONGEST_NAME:
        return f"it lists a file named {_shown(name)}"
    text = str(name)
    if isinstance(safe_path("it", text), Problem) or any(p in ("", ".", "..") for p in text.split("/")):
        return f"it lists the file {_shown(text)}, which isn't a path inside the checkpoint"
    if any(len(part.encode()) > 255 for part in text.split("/")):
        return f"it lists the file {_shown(text)}, whose name no disk takes"
    return ""


def _file_fault(name: str, file: object) -> str:
    if not isinstance(file, SourceFile):
        return f"it says of {name!r} {_shown(file)}, not a SourceFile"
    if type(file.size) is not int or not 0 <= file.size <= MOST_BYTES:
        return f"it says that {name!r} has {_shown(file.size)} bytes"
    if not _is_text(file.checksum) or not _CHECKSUM.fullmatch(file.checksum):
        return f"it says that {name!r} has the checksum {_shown(file.checksum)}, which is neither 'sha256:…' nor 'md5:…'"
    return "" if _is_text(file.tag) else f"it tags {name!r} with {_shown(file.tag)}"


def _is_text(value: object) -> bool:
    """Whether it is text of an ordinary length that can be written anywhere."""
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        return False
    return value.isprintable() and not any(0xD800 <= ord(c) <= 0xDFFF for c in value)


def _shown(value: object) -> str:
    """A value for a message, whatever it is."""
    if isinstance(value, str):
        return ascii(value if len(value) <= 80 else f"{value[:80]}…")
    if isinstance(value, int | float) and abs(value) < 10**30:
        return repr(value)
    return f"a {type(value).__name__}"

"""What is written beside an entry's files, and the entry that it makes of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec

from loadkit.cache.checksums import WORKERS, checksum, file_checksums
from loadkit.cache.ownership import other_owner
from loadkit.cache.seals import is_sealed, is_whole

__all__ = ["RECORD", "Entry", "Record", "is_of_another_version", "read_record"]

RECORD = "entry.json"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is written beside an entry's files, last of all.

    Parameters:
        key: the entry's name.
        created: seconds since 1970.
        files: file name to bytes.
        digests: file name to its checksum; for a safetensors file, those of its tensors and its header.
        about: what it was made from, for people.
        more: what whoever wrote it needs to know again.
    """

    key: str
    created: float
    files: dict[str, int]
    digests: dict[str, str] = {}
    about: dict[str, str] = {}
    more: dict[str, Any] = {}


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry that is whole, as far as names and sizes tell.

    Parameters:
        folder: where its files are.
        record: what was written beside them.
        used: when it was last loaded, in seconds since 1970; never later than now.
    """

    folder: str
    record: Record
    used: float

    @property
    def bytes(self) -> int:
        """Bytes of its files."""
        return sum(self.record.files.values())

    @property
    def owner(self) -> str:
        """The user who made it; "" where that was this one, or root."""
        return other_owner(Path(self.folder))

    @property
    def age(self) -> float:
        """Seconds since it was made; 0 where the clock was put back."""
        return max(0.0, time.time() - self.record.created)

    def damage(self, *, workers: int = WORKERS) -> str:
        """What isn't as it was written; "" for nothing. Every byte is read.

        Parameters:
            workers: how many tensors are read at a time, at most.
        """
        folder, digests = Path(self.folder), self.record.digests
        found: dict[str, str] = {}
        try:
            for name in self.record.files:
                if name.endswith(".safetensors"):
                    found |= file_checksums(folder / name, workers=workers)
                else:
                    found[name] = checksum((folder / name).read_bytes())
        except (OSError, ValueError) as error:
            return str(error)
        wrong = sorted(name for name in digests.keys() | found.keys() if digests.get(name) != found.get(name))
        return f"{wrong[0] or 'the header'} has another checksum" if wrong else ""


def read_record(folder: Path) -> Record | None:
    """What is written in a folder; None where that isn't whole, has another name, or a link leads there."""
    if folder.is_symlink():
        return None
    try:
        content = (folder / RECORD).read_bytes()
        found = msgspec.json.decode(content, type=Record)
        return found if found.key == folder.name and is_whole(content) else None
    except (OSError, ValueError, RecursionError, msgspec.MsgspecError):
        return None


def is_of_another_version(folder: Path) -> bool:
    """Whether a folder has a record that is as it was written, by a loadkit that writes other ones."""
    sealed = False
    try:
        content = (folder / RECORD).read_bytes()
        sealed = is_sealed(content)
        msgspec.json.decode(content, type=Record)
    except msgspec.ValidationError:
        return sealed
    except (OSError, ValueError, RecursionError, msgspec.MsgspecError):
        return False
    return False

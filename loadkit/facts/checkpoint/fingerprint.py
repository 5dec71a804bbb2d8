"""Which bytes a checkpoint's weights are, told without reading them all."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["CONFIGS", "PIECE", "PIECES", "Sample", "fingerprint", "sample"]

CONFIGS = ("config.json", "generation_config.json")
"""What else makes the model what it is; a folder may lack the second."""

PIECES, PIECE = 16, 4096
"""How many pieces of a file are looked at, and the bytes of each. Size and time alone don't tell two
checkpoints apart that were unpacked with one fixed time, as container images and some archives do."""


def fingerprint(location: str, commit: str, files: Sequence[str]) -> str:
    """What tells these weights from any others.

    A commit of the Hub names its files' bytes. A folder's files are told apart by path, size, times, header
    and a sample of their bytes.

    Parameters:
        location: the folder's path, or the repository's id.
        commit: the repository's commit; "" for a folder.
        files: the weight files inside it.

    Returns:
        A digest in hexadecimal; "" where a folder's file can't be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    if commit:
        digest.update("\0".join(("hub", location, commit, *files)).encode())
        return digest.hexdigest()
    try:
        for name in (*files, *CONFIGS):
            path = Path(location, name)
            if name in CONFIGS and not path.is_file():
                continue  # or no file: opening a pipe would wait for ever
            looked_at = sample(path)
            times = struct.pack(
                "<qqq", looked_at.stat.st_size, looked_at.stat.st_mtime_ns, looked_at.stat.st_ctime_ns
            )
            digest.update(f"\0{os.path.realpath(path)}\0".encode() + times + looked_at.digest)
    except OSError:
        return ""
    return digest.hexdigest() if files else ""


class Sample(NamedTuple):
    """A look at a file.

    Parameters:
        stat: what the system says of it.
        digest: of its header and pieces.
    """

    stat: os.stat_result
    digest: bytes


def sample(path: Path, pieces: int = PIECES) -> Sample:
    """Look at a file's safetensors header and at pieces spread evenly over it, the last one at its end; at
    all of a small one.

    Parameters:
        path: the file.
        pieces: how many, of `PIECE` bytes.

    Raises:
        OSError: it can't be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no file", str(path))  # a pipe would be waited at for ever
    with path.open("rb") as stream:
        found = os.fstat(stream.fileno())
        if found.st_size <= pieces * PIECE:
            digest.update(stream.read())
            return Sample(found, digest.digest())
        if path.suffix == ".safetensors":
            length = int.from_bytes(stream.read(8), "little")
            digest.update(stream.read(min(length, found.st_size)))
        for piece in range(pieces):
            stream.seek((found.st_size - PIECE) * (piece + 1) // pieces)
            digest.update(stream.read(PIECE))
    return Sample(found, digest.digest())

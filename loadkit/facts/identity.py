"""Which bytes a checkpoint's weights are, told without reading them all."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Sequence
from pathlib import Path

__all__ = ["CONFIGS", "SAMPLES", "SAMPLE_BYTES", "identify"]

CONFIGS = ("config.json", "generation_config.json")
"""What else makes the model what it is; a folder may lack the second."""

SAMPLES, SAMPLE_BYTES = 16, 4096
"""How many places of each file are looked at, and how much of each. Size and time alone don't tell two checkpoints apart that
were unpacked with one fixed time, as container images and some archives do."""


def identify(location: str, commit: str, files: Sequence[str]) -> str:
    """What tells these weights from any others.

    A commit of the Hub names its files' bytes. A folder's files are told by path, size, times, header and a sample of their bytes.

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
            if name in CONFIGS and not path.exists():
                continue
            digest.update(f"\0{os.path.realpath(path)}\0".encode())
            digest.update(_looked_at(path))
    except OSError:
        return ""
    return digest.hexdigest() if files else ""


def _looked_at(path: Path) -> bytes:
    """Size, times, header and sample of one file."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as stream:
        found = os.fstat(stream.fileno())
        digest.update(struct.pack("<qqq", found.st_size, found.st_mtime_ns, found.st_ctime_ns))
        if found.st_size <= SAMPLES * SAMPLE_BYTES:
            digest.update(stream.read())
            return digest.digest()
        if path.suffix == ".safetensors":
            length = int.from_bytes(stream.read(8), "little")
            digest.update(stream.read(min(length, found.st_size)))
        for place in range(SAMPLES):
            stream.seek((found.st_size - SAMPLE_BYTES) * (place + 1) // SAMPLES)
            digest.update(stream.read(SAMPLE_BYTES))
    return digest.digest()

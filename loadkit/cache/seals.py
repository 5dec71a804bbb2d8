"""Small JSON files that carry a checksum of their own content."""

from __future__ import annotations

from typing import Any

import msgspec

from loadkit.cache.checksums import checksum

__all__ = ["is_sealed", "is_whole", "seal"]

SEAL = "checksum"


def seal(value: msgspec.Struct) -> bytes:
    """A value as JSON, with the checksum of all its fields among them."""
    fields = msgspec.to_builtins(value)
    return msgspec.json.encode({**fields, SEAL: _checksum(fields)})


def is_sealed(content: bytes) -> bool:
    """Whether a file is as it was written, whatever version wrote it.

    Raises:
        ValueError: it isn't JSON.
    """
    fields = msgspec.json.decode(content)
    return isinstance(fields, dict) and fields.pop(SEAL, "") == _checksum(fields)


def is_whole(content: bytes) -> bool:
    """Whether a file is as it was written, or is older than the checksums.

    Raises:
        ValueError: it isn't JSON.
    """
    return SEAL not in msgspec.json.decode(content) or is_sealed(content)


def _checksum(fields: dict[str, Any]) -> str:
    return checksum(msgspec.json.encode(fields, order="sorted"))

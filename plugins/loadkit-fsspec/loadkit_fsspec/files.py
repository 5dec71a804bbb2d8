"""A folder of a filesystem that lists what it has: a bucket's, a disk's, or memory's."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from typing import Any

from loadkit.plugins import Source, SourceError, SourceFile
from loadkit_fsspec.errors import explained

__all__ = ["FilesystemSource", "described"]

TAGS = (
    "VersionId",
    "generation",
    "ETag",
    "etag",
    "LastModified",
    "Last-Modified",
    "mtime",
    "updated",
    "created",
    "ino",
)
"""What fsspec's filesystems say of a file that tells its bytes from earlier ones."""


class FilesystemSource(Source):
    """A folder of one of fsspec's filesystems, listed once.

    Parameters:
        reference: its address.
    """

    def __init__(self, reference: str) -> None:
        from fsspec.core import url_to_fs

        # An instance of its own, which keeps no listing: what has changed must be seen.
        self._fs, self._root = url_to_fs(reference, skip_instance_cache=True, use_listings_cache=False)
        if hasattr(
            self._fs, "retries"
        ):  # s3fs 2026.9 tries five times with growing pauses; loadkit asks again
            self._fs.retries = 1
        self._reference = reference
        root = self._root.rstrip("/")
        found: Mapping[str, Mapping[str, Any]] = self._fs.find(root, detail=True)
        if not found:
            raise FileNotFoundError(reference)
        if root in found:
            raise SourceError(
                f"{reference!r} is a file; a checkpoint is a folder with a config.json and weights",
                f"give the folder it lies in: {reference.rpartition('/')[0]!r}",
                "no-such-source",
            )
        self._paths = {path[len(root) :].lstrip("/"): path for path in found if not path.endswith("/")}
        for name, path in self._paths.items():
            _refuse_link(root, name, found[path])
        self.files = {name: described(found[path]) for name, path in sorted(self._paths.items())}
        self.version = type(self._fs).__name__

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Bytes of a file, by one ranged request."""
        with explained(self._reference, name):
            found: bytes = self._fs.cat_file(self._paths[name], start=start, end=stop)
        return found


def described(about: Mapping[str, Any]) -> SourceFile:
    """A file as a filesystem's listing tells of it."""
    tags = (f"{key}={about[key]}" for key in TAGS if about.get(key) not in (None, ""))
    return SourceFile(size=about["size"], checksum=_checksum(about), tag="; ".join(tags)[:2000])


def _checksum(about: Mapping[str, Any]) -> str:
    """The MD5 that Google's storage tells; an etag of S3 is one for some files only, and doesn't say for
    which."""
    given = about.get("md5Hash")
    return f"md5:{base64.b64decode(given).hex()}" if isinstance(given, str) and given else ""


def _refuse_link(root: str, name: str, about: Mapping[str, Any]) -> None:
    """A link on a disk may lead anywhere."""
    if not about.get("islink"):
        return
    real, real_root = os.path.realpath(os.path.join(root, name)), os.path.realpath(root)
    if not real.startswith(real_root.rstrip(os.sep) + os.sep):
        raise SourceError(
            f"{name!r} in {root!r} is a link that leads out of the folder, to {real!r}",
            f"copy the file into {root!r}, if you mean it to be read",
            "link-outside",
        )

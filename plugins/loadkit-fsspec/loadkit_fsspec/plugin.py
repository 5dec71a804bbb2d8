"""The hook: which addresses are this plugin's, and what opens them."""

from __future__ import annotations

from loadkit import Problem, hookimpl
from loadkit.plugins import Source, SourceError

LOADKIT_API = "1.2"

SCHEMES = ("s3", "s3a", "gs", "gcs", "http", "https", "file", "memory")

NEEDS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}
"""Schemes to the extra that brings the driver which fsspec needs for them."""


@hookimpl
def loadkit_open_source(reference: str) -> Source | Problem | None:
    scheme = reference.partition("://")[0]
    if scheme not in SCHEMES:
        return None
    from loadkit_fsspec.errors import explained
    from loadkit_fsspec.files import FilesystemSource
    from loadkit_fsspec.website import WebsiteSource

    try:
        with explained(reference):
            if scheme in ("http", "https"):
                return WebsiteSource(reference)
            return FilesystemSource(reference)
    except ImportError as error:
        raise SourceError(
            f"{reference!r} can't be opened: {error}",
            f"`pip install 'loadkit-fsspec[{NEEDS[scheme]}]'`"
            if scheme in NEEDS
            else "install what is missing",
            "driver-not-installed",
        ) from error

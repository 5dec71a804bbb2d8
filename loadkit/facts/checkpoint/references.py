"""How a checkpoint elsewhere is named: by a scheme and an address, as in "s3://bucket/models/tiny"."""

from __future__ import annotations

import re

from loadkit.errors import Problem
from loadkit.facts.checkpoint.source import checkpoint_problem

__all__ = [
    "COMMIT",
    "is_reference",
    "normal",
    "reference_fault",
    "same_store",
    "split_revision",
    "unclaimed",
    "without_secrets",
]

COMMIT = re.compile(r"[0-9a-f]{40}")
"""What loadkit names one state of a source by, as the Hub does."""

KNOWN = dict.fromkeys(("s3", "s3a", "gs", "gcs", "http", "https", "file", "memory"), "loadkit-fsspec")
"""Schemes to the distribution that opens them."""

LONGEST = 2048

_REFERENCE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_OF_THE_HUB = re.compile(r"(?:hf://|https?://(?:www\.)?(?:huggingface\.co|hf\.co)(?:/|$))", re.IGNORECASE)
_SECRET = re.compile(r"[?&;][^=&;]*(?:token|secret|signature|credential|passw|api.?key|accesskey|sig=)", re.IGNORECASE)  # fmt: skip


def is_reference(source: object) -> bool:
    """Whether a source has a scheme. Addresses of the Hub aren't counted: those are given by their id."""
    return isinstance(source, str) and bool(_REFERENCE.match(source)) and not _OF_THE_HUB.match(source)


def normal(reference: str) -> str:
    """A reference in the one spelling that plans and caches have for it: its scheme small, no "/" at its
    end."""
    scheme, _, rest = reference.partition("://")
    return f"{scheme.lower()}://{rest.rstrip('/')}"


def reference_fault(reference: str) -> Problem | None:
    """The problem of a reference that can't be one, or that holds what no plan may hold."""
    scheme, _, rest = reference.partition("://")
    authority = rest.partition("/")[0]
    if "@" in authority or _SECRET.search(rest):
        return checkpoint_problem(
            "secret-in-source",
            f"a source of {scheme}:// holds a user or a key, which plans, manifests and messages would repeat",
            "leave it out, and give it as the store's own tools take it: environment variables or their config files",
        )
    if (
        not rest.strip("/")
        or len(reference) > LONGEST
        or any(ord(c) < 32 or ord(c) == 127 for c in reference)
    ):
        shown = reference if len(reference) <= 80 else f"{reference[:80]}…"
        return checkpoint_problem(
            "bad-source",
            f"{shown!r} isn't an address: nothing follows its scheme, or it is too long, or holds characters that none has",
            "give one such as 's3://bucket/folder'",
        )
    if ".." in rest.split("/"):
        message = f"{reference!r} leads upwards (..), so it may not be where it says"
        return checkpoint_problem("bad-source", message, "give the address in its shortest form")
    return None


def without_secrets(source: str) -> str:
    """A source to be repeated: an address without a login and what follows a "?"."""
    return (
        re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/]*@", r"\1", source).partition("?")[0]
        if "://" in source
        else source
    )


def unclaimed(reference: str) -> Problem:
    """The problem of a scheme that no plugin opens."""
    scheme = reference.partition("://")[0]
    home = KNOWN.get(scheme)
    wanted = (
        f"{home!r}, which opens such addresses, isn't installed or is switched off"
        if home
        else "none is known to"
    )
    return checkpoint_problem(
        "no-plugin-for-scheme",
        f"{reference!r} was asked for, and no plugin here opens {scheme}:// ({wanted})",
        f"`pip install {home}`; `loadkit plugins` shows what there is" if home else
        "install a plugin whose loadkit_open_source takes it, or give a folder or a Hub id",
    )  # fmt: skip


def split_revision(named: str) -> tuple[str, str]:
    """The source and the revision of "owner/name@revision", or of an address whose last part has an "@"."""
    if not is_reference(named):
        name, _, revision = named.partition("@")
        return name, revision
    start, slash, last = named.rpartition("/")
    last, _, revision = last.partition("@")
    return f"{start}{slash}{last}", revision


def same_store(one: str, other: str) -> bool:
    """Whether two references are of one scheme and one authority, such as one bucket."""
    return normal(one).split("/")[:3] == normal(other).split("/")[:3]

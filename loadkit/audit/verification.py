"""How much of a model is held against the checkpoint's files."""

from __future__ import annotations

from collections.abc import Mapping

from loadkit.errors import LoadkitError
from loadkit.text.suggest import did_you_mean

__all__ = ["VARIABLE", "WAYS", "verifies_fully"]

WAYS = ("sample", "full")
"""One tensor of each kind, or every byte of every tensor."""

VARIABLE = "LOADKIT_VERIFY"


def verifies_fully(asked: str | None, environ: Mapping[str, str]) -> bool:
    """Whether every tensor is compared: what the request says, else what the environment says.

    Raises:
        LoadkitError: the environment says neither.
    """
    named = environ.get(VARIABLE, "").strip().lower()
    if named and named not in WAYS:
        raise LoadkitError(
            f"{VARIABLE} is {named!r}, and takes {' or '.join(WAYS)}{did_you_mean(named, WAYS)}; correct it, or unset it"
        )
    return (asked or named) == "full"

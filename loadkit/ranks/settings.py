"""How long processes wait for each other."""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from loadkit.errors import LoadkitError

__all__ = ["Settings", "read_settings"]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds to wait.

    Parameters:
        timeout: the longest wait for another process, such as for one that downloads (LOADKIT_RANKS_TIMEOUT).
        silence: without a heartbeat for so long, a process counts as gone (LOADKIT_RANKS_SILENCE).
        beat: between two heartbeats.
        parting: the longest that a process which fails stays, so that the others learn the cause before
            their launcher ends them.
    """

    timeout: float = 1800.0
    silence: float = 30.0
    beat: float = 1.0
    parting: float = 10.0


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the environment; `LoadkitError` where a variable isn't a positive number."""
    env = os.environ if environ is None else environ
    default = Settings()
    return Settings(
        timeout=_seconds(env, "LOADKIT_RANKS_TIMEOUT", default.timeout),
        silence=_seconds(env, "LOADKIT_RANKS_SILENCE", default.silence),
    )


def _seconds(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name, "").strip()
    if not text:
        return default
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise LoadkitError(
            f"{name}={text!r} isn't a number of seconds: give one above 0, or unset it for {default:g}"
        )
    return found

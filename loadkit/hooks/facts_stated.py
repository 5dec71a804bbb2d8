"""What a plugin states of itself beside its hooks: those that it was built for, and whom it can't be
beside."""

from __future__ import annotations

from collections.abc import Mapping

from loadkit.hooks import hookspecs

__all__ = ["conflicts_of", "refuse_newer"]


def refuse_newer(plugin: object) -> None:
    """A TypeError where a plugin was built for newer hooks than there are (LOADKIT_API)."""
    needs = str(getattr(plugin, "LOADKIT_API", hookspecs.API))
    if _version(needs) > _version(hookspecs.API):
        raise TypeError(
            f"it was built for loadkit's hooks {needs}, and this loadkit has {hookspecs.API}: update loadkit, or install an "
            "older version of the plugin"
        )


def conflicts_of(plugin: object) -> Mapping[str, str]:
    """The plugins that one says it can't be beside, to the reasons; a TypeError where it says it wrongly."""
    given = getattr(plugin, "LOADKIT_CONFLICTS", {})
    if not isinstance(given, Mapping) or not all(
        isinstance(n, str) and isinstance(r, str) and n and r.strip() for n, r in given.items()
    ):
        raise TypeError(
            f"LOADKIT_CONFLICTS is {given!r}; it maps the names of other plugins to the reason why they can't be together"
        )
    return given


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())

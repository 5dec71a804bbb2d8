"""What distributions register with transformers as they are imported, told by entry points: to plan, nothing
of them is imported."""

from __future__ import annotations

from importlib import metadata

import msgspec

__all__ = ["GROUP", "Registration", "read_registrations"]

GROUP = "loadkit.attention"


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """An attention implementation that a module registers as it is imported (`AttentionInterface.register`).

    Parameters:
        name: what it is called in `attn_implementation`.
        module: the module that registers it.
        distribution: who brings it, with its version.
    """

    name: str
    module: str
    distribution: str

    def __str__(self) -> str:
        return f"registered by {self.module} (of {self.distribution})"


def read_registrations() -> tuple[Registration, ...]:
    """Every registration that a distribution announces, by name; two of one name are both there."""
    try:
        entries = list(metadata.entry_points(group=GROUP))
    except Exception:  # a distribution's file that can't be read: the plugins' discovery tells of it
        return ()
    found = {
        (entry.name, entry.value, f"{entry.dist.name} {entry.dist.version}" if entry.dist else "")
        for entry in entries
    }
    return tuple(Registration(name=n, module=m, distribution=d) for n, m, d in sorted(found))

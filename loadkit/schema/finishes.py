"""What plugins do to a model that is loaded and prepared: what the plan says of it, and what came of it."""

from __future__ import annotations

import msgspec

__all__ = ["Finish", "Finished"]


class Finish(msgspec.Struct, frozen=True, kw_only=True):
    """What a plugin will do to the finished model, said while planning.

    Parameters:
        what: what will be otherwise, in a few words: "RMSNorm layers call torch's own function".
        because: why, in one line.
        tolerance: how far the model's outputs may be from those without it, as a share of the largest; 0 for
            the same to the bit.
        plugin: who does it; the core fills it in.
    """

    what: str
    because: str
    tolerance: float = 0.0
    plugin: str = ""


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """What a plugin did to the finished model, as found by comparing before and after.

    Parameters:
        plugin: who did it.
        what: what the plan says of it.
        modules: what became of modules ("MistralRMSNorm → RMSNorm", "MistralMLP.forward"), to how many.
    """

    plugin: str
    what: str
    modules: dict[str, int]

    def __str__(self) -> str:
        done = ", ".join(f"{count} {name}" for name, count in self.modules.items()) or "nothing changed"
        return f"{self.what}: {done} ({self.plugin})"

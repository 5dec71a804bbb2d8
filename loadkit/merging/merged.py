"""What a merge gives: where the model lies, and what was done to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import msgspec

from loadkit.manifest.manifest import Manifest
from loadkit.text.suggest import some_of
from loadkit.text.units import size

__all__ = ["MANIFEST", "Merged"]

MANIFEST = "loadkit-manifest.json"
"""The name of the manifest in a folder that loadkit wrote."""


class Merged(msgspec.Struct, frozen=True, kw_only=True):
    """A merged checkpoint on the disk, proved.

    Parameters:
        folder: where it lies.
        manifest: what it was made of: the plan, and the hashes of every file that was read and written.
        tensors: each tensor in its files to what became of it: "copied", "merged", "replaced" by the
            adapter's, or "untied": the base's own, which was one with another before.
        left_out: tensors of the base that the merged model's class has no place for, such as the head that a
            classifier's replaces.
        weight_bytes: bytes of all that there are.
        changed: fields of config.json that aren't the base's.
        seconds: phase to seconds.
    """

    folder: str
    manifest: Manifest
    tensors: dict[str, str]
    weight_bytes: int
    left_out: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    seconds: Mapping[str, float] = {}

    @property
    def path(self) -> Path:
        """The folder, as a path."""
        return Path(self.folder)

    def __str__(self) -> str:
        counts = Counter(self.tensors.values())
        parts = [f"{counts[how]} {how}" for how in ("merged", "replaced", "untied", "copied") if counts[how]]
        text = f"{self.folder}: {len(self.tensors)} tensors ({', '.join(parts)}), {size(self.weight_bytes)}, proved"
        if self.left_out:
            text += f"; left out, as the model has no place for it: {some_of(self.left_out)}"
        return f"{text}; config.json has another {', '.join(self.changed)}" if self.changed else text

"""profiles: loadkit's own sets of options, one TOML file each in this folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loadkit import Profile, hookimpl, read_profiles


@hookimpl
def loadkit_profiles() -> Sequence[Profile]:
    return read_profiles(Path(__file__).parent)

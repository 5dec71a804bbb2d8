"""Where loadkit keeps what it may lose: its index, prepared weights, the demo's checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder(environ: Mapping[str, str] | None = None) -> Path:
    """The folder that LOADKIT_CACHE names, a leading ~ the user's home, else the platform's cache folder."""
    named = (os.environ if environ is None else environ).get("LOADKIT_CACHE")
    if named:
        return Path(os.path.expanduser(named))
    import platformdirs

    return Path(platformdirs.user_cache_dir("loadkit"))

"""Compile the kernels once: numba's own cache keeps them, in a folder of loadkit's."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numba import config
from numba.core import event

__all__ = ["forget", "keep", "reports_compiling"]

_setting = threading.Lock()


def keep(function: Any, folder: Path | None) -> bool:
    """Let numba keep a function's machine code. Other sources, processors and numbas compile it again.

    Parameters:
        function: numba's dispatcher, not compiled yet.
        folder: where to. None, or one that can't be written, compiles in memory only.

    Returns:
        Whether code is kept.
    """
    place = None if folder is None else folder / _digest()
    if place is None or not _writable(place):
        return False
    with _setting:
        before = config.CACHE_DIR
        config.CACHE_DIR = str(place)  # numba reads it only when caching is turned on for a function
        try:
            function.enable_caching()
        finally:
            config.CACHE_DIR = before
    return True


def forget(function: Any) -> None:
    """Have a function compiled in memory, whatever is kept of it."""
    from numba.core.caching import NullCache

    function._cache = NullCache()


@contextmanager
def reports_compiling(progress: Callable[[str], None]) -> Iterator[None]:
    """Report once if something has to be compiled."""

    class Listener(event.Listener):  # type: ignore[misc]
        reported = False

        def on_start(self, event: Any) -> None:
            if not self.reported:
                progress("compiling kernels for this processor")
            self.reported = True

        def on_end(self, event: Any) -> None:
            pass

    with event.install_listener("numba:compile", Listener()):
        yield


def _digest() -> str:
    """Of all sources: numba looks at a function's own file, not at those of the functions that it calls."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False

"""The folder that this process works in, which somebody may have removed."""

from __future__ import annotations

import os

from loadkit.errors import LoadkitError

__all__ = ["refuse_lost_folder"]


def refuse_lost_folder() -> None:
    """Refuse to go on where the working folder is gone: no relative path means anything there.

    Raises:
        LoadkitError: it was removed, or may not be read.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise LoadkitError(
            f"the folder that this process works in is gone ({error.strerror}), and relative paths with it\n"
            "    fix: change to a folder that is there (`cd`, os.chdir) and load again"
        ) from error

"""The folder that a merge writes: whole under its name, or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from loadkit.cache.atomic_write import sync
from loadkit.cache.ownership import MARK, is_marked, mark
from loadkit.errors import LoadError, Problem
from loadkit.merging.problems import merge_problem
from loadkit.text.units import size

__all__ = ["check_destination", "made_whole", "room_for"]


def check_destination(out: Path, sources: Mapping[str, Path]) -> list[Problem]:
    """What is wrong with the folder that is to be made.

    Parameters:
        out: where to.
        sources: what is read, "the base" and "the adapter", to their folders.
    """
    problems = []
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        problems.append(
            merge_problem(
                "out-exists",
                f"{str(out)!r} is there already, and isn't an empty folder",
                "name another folder, or remove that one",
            )
        )
    real = Path(os.path.realpath(out))
    for what, folder in sources.items():
        source = Path(os.path.realpath(folder))
        if real == source or source in real.parents or real in source.parents:
            problems.append(
                merge_problem(
                    "out-inside",
                    f"{str(out)!r} and {what}, {str(folder)!r}, lie in each other: what is read mustn't change",
                    "name a folder elsewhere",
                )
            )
    above = _above(out)
    if not problems and not os.access(above, os.W_OK | os.X_OK):
        problems.append(
            merge_problem("out-unwritable", f"{str(above)!r} can't be written to", "name a folder elsewhere")
        )
    return problems


def room_for(out: Path, wanted: int) -> list[Problem]:
    """Whether the disk has room for so many bytes."""
    try:
        free = shutil.disk_usage(_above(out)).free
    except OSError:
        return []
    if free >= wanted:
        return []
    return [
        merge_problem(
            "no-room",
            f"the merged model takes {size(wanted)}, and the disk of {str(out)!r} has {size(free)} left",
            "make room there, name a folder on another disk, or write 16 bits: dtype='bfloat16'",
        )
    ]


@contextmanager
def made_whole(out: Path) -> Iterator[Path]:
    """Give a folder beside the one that is to be made, which takes its name when the block ends well.

    What a process left that was killed is removed by the next that writes the same folder.

    Raises:
        LoadError: another process is writing it.
        OSError: the disk won't have it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.loadkit-merge")
    lock = FileLock(f"{beside}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise LoadError(
            f"another process is writing {str(out)!r}\n    fix: wait for it, or name another folder"
        ) from None
    try:
        if beside.is_symlink() or (beside.exists() and not is_marked(beside)):
            raise LoadError(
                f"{str(beside)!r} is in the way, and loadkit didn't make it\n    fix: move it elsewhere"
            )
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        try:
            mark(beside)
            yield beside
            (beside / MARK).unlink()
            _settle(beside, out)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
    finally:
        lock.release()
        with suppress(OSError):
            os.unlink(f"{beside}.lock")


def _settle(beside: Path, out: Path) -> None:
    """Have the disk hold everything, and only then give it its name."""
    for path in sorted(beside.rglob("*"), reverse=True):
        sync(path)
    sync(beside)
    if out.is_dir() and not out.is_symlink():
        out.rmdir()  # an empty one; anything else was refused, or came in between and stops this
    if os.path.lexists(out):
        raise LoadError(f"{str(out)!r} is there now, and wasn't before\n    fix: name another folder")
    beside.rename(out)
    sync(out.parent)


def _above(out: Path) -> Path:
    """The nearest folder above that is there."""
    return next((path for path in out.absolute().parents if path.is_dir()), Path("/"))

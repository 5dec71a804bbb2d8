"""Where a checkpoint's files are read from: a folder, a repository on the Hub, or what is cached of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from os import PathLike
from typing import Literal, NamedTuple, Protocol

from loadkit.errors import Problem
from loadkit.schema.request import Progress, Token

__all__ = ["Access", "CheckpointFiles", "OpenStore", "OpenedStore", "Told", "checkpoint_problem", "no_stores"]

checkpoint_problem = partial(Problem, "checkpoint", "loadkit")
"""A problem of the checkpoint that the core noticed: code, message, remedy, severity."""


class Told(NamedTuple):
    """What a source says of itself, before it is found to be possible."""

    version: object
    files: object
    revision: object


class OpenedStore(Protocol):
    """A plugin's source whose every call comes back: with a value, or with a problem."""

    plugin: str
    workers: int

    def told(self) -> Told | Problem:
        """What it says of itself; nobody has looked at it."""

    def read(self, name: str, start: int, stop: int) -> bytes | Problem:
        """These bytes of a file, perhaps not all of them, never more."""

    def stream(self, name: str, start: int) -> Iterator[bytes | Problem]:
        """The bytes of a file from `start` on, in pieces; a problem ends them."""


OpenStore = Callable[[str, str], OpenedStore | Problem | None]
"""Asks the plugins for the source of a reference, at a revision or ""; None where none of them takes it."""


def no_stores(reference: str, revision: str) -> None:
    """Nothing is brought from elsewhere, as where no plugin is asked."""


class Access(NamedTuple):
    """How the Hub may be asked.

    Parameters:
        token: as huggingface_hub takes it.
        cache_dir: the Hub cache; huggingface_hub's own by default.
        local_files_only: use what is cached, don't ask the Hub.
        progress: called with a short sentence before something that takes long.
        stores: asks the plugins for what lies elsewhere.
    """

    token: Token = None
    cache_dir: str | PathLike[str] | None = None
    local_files_only: bool = False
    progress: Progress | None = None
    stores: OpenStore = no_stores

    def offline(self) -> str:
        """Why nobody may be asked; "" where it may."""
        from huggingface_hub import is_offline_mode

        if self.local_files_only:
            return "local_files_only is set"
        return "HF_HUB_OFFLINE is set" if is_offline_mode() else ""


class CheckpointFiles(Protocol):
    """The files of one checkpoint at one moment. What can't be read is a problem, and nothing is raised."""

    @property
    def kind(self) -> Literal["folder", "hub", "store"]:
        """Which of these the checkpoint counts as; a cached repository is still one of the Hub."""

    @property
    def location(self) -> str:
        """The folder's absolute path, the repository's id, or the address of what a plugin brings."""

    @property
    def revision(self) -> str:
        """The revision asked for; "" for the default branch or a folder."""

    @property
    def commit(self) -> str:
        """The commit that serves every file; "" for a folder."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Every file's path inside the checkpoint, "/" between its parts, to its bytes; -1 where unknown."""

    @property
    def workers(self) -> int:
        """How many files are worth reading at the same time."""

    @property
    def first_bytes(self) -> int:
        """How much of a weight file to read at first, in the hope that its header is no longer."""

    def size(self, name: str) -> int | None:
        """Bytes of one file, -1 where unknown, None where there is no such file."""

    def read(self, name: str) -> bytes | Problem:
        """A whole small file."""

    def read_range(self, name: str, start: int, stop: int) -> bytes | Problem:
        """Bytes `start` to `stop` (exclusive) of a file; fewer where the file ends before."""

    def refusals(self) -> list[Problem]:
        """The problem of everything in it that a loader would read, and mustn't."""

    def absent(self, names: Iterable[str], otherwise: Problem) -> Problem:
        """The problem to report where these files are needed and not there; most give `otherwise`."""

    def __str__(self) -> str:
        """What they are, for a sentence, such as "folder '/models/tiny'"."""

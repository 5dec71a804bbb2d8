"""Where a checkpoint's files are read from: a folder, a repository on the Hub, or what is cached of one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from os import PathLike
from typing import Literal, NamedTuple, Protocol

from loadkit.errors import Problem
from loadkit.schema.request import Progress, Token

__all__ = ["Access", "CheckpointFiles", "checkpoint_problem"]

checkpoint_problem = partial(Problem, "checkpoint", "loadkit")
"""A problem of the checkpoint that the core noticed: code, message, remedy, severity."""


class Access(NamedTuple):
    """How the Hub may be asked.

    Parameters:
        token: as huggingface_hub takes it.
        cache_dir: the Hub cache; huggingface_hub's own by default.
        local_files_only: use what is cached, don't ask the Hub.
        progress: called with a short sentence before something that takes long.
    """

    token: Token = None
    cache_dir: str | PathLike[str] | None = None
    local_files_only: bool = False
    progress: Progress | None = None


class CheckpointFiles(Protocol):
    """The files of one checkpoint at one moment. What can't be read is a problem, and nothing is raised."""

    @property
    def kind(self) -> Literal["folder", "hub"]:
        """Which of the two the checkpoint counts as; a cached repository is still one of the Hub."""

    @property
    def location(self) -> str:
        """The folder's absolute path, or the repository's id."""

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

"""The view of a checkpoint's files that reading works on, wherever the files are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, Protocol, TypeVar

from loadkit.errors import LoadkitError, Problem
from loadkit.facts.checkpoint import File

__all__ = ["Files", "UnreadableError"]

A = TypeVar("A")
B = TypeVar("B")


class UnreadableError(LoadkitError):
    """Files can't be had; `problem` says why. `read_checkpoint` turns it into that problem: no caller meets it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class Files(Protocol):
    """The files of one folder or of one commit of a repository."""

    @property
    def kind(self) -> Literal["folder", "hub"]:
        """Where they are."""

    @property
    def location(self) -> str:
        """What `from_pretrained` is given for them."""

    @property
    def commit(self) -> str:
        """The commit they belong to; "" for a folder."""

    @property
    def place(self) -> str:
        """What to call the whole in a message."""

    @property
    def partial(self) -> str:
        """Why files may be missing that the repository has, in words; "" where the list is complete."""

    @property
    def files(self) -> tuple[File, ...]:
        """Every file, sorted by name."""

    def label(self, name: str) -> str:
        """What to call a file in a message."""

    def size(self, name: str) -> int:
        """A file's size in bytes; -1 where unknown."""

    def read(self, name: str) -> bytes:
        """A whole file, for small ones. Raises `UnreadableError`."""

    def start(self, name: str, count: int) -> bytes:
        """The first `count` bytes of a file, fewer if it is shorter. Raises `UnreadableError`."""

    def each(self, ask: Callable[[A], B], items: Iterable[A]) -> list[B]:
        """`ask` for every item, in order of the items; at the same time where that is faster."""

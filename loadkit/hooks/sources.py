"""Checkpoints that plugins bring: every call to a source comes back, with a value or with a problem that
names its plugin."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from loadkit.errors import PluginError, Problem, SourceError
from loadkit.facts.checkpoint.source import OpenStore, Told, checkpoint_problem
from loadkit.hooks import hookspecs as hooks
from loadkit.hooks.contained import Left, contained, raised
from loadkit.hooks.manager import PluginManager
from loadkit.schema.sources import Source

__all__ = ["stores_of"]

_END = object()

MOST_WORKERS = 32

LONGEST = 500
"""Letters of what a plugin says that are repeated."""

_SECRETS = re.compile(r"(\?)[^\s'\"]+|(://)[^\s/@'\"]+@")
"""What follows a "?" in an address, and who asks: signed addresses and logins stand there."""

_CODE = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def stores_of(manager: PluginManager) -> OpenStore:
    """Ask the manager's plugins, by name, for the source of a reference; the first that takes it has it."""

    def opened(reference: str, revision: str) -> _Guarded | Problem | None:
        try:
            answers = manager.answers(hooks.loadkit_open_source, reference=reference, revision=revision)
            plugin, answer = next(cast("Iterator[tuple[str, object]]", answers), ("", None))
        except PluginError as error:
            if isinstance(error.__cause__, SourceError):
                return _told(error.plugin, error.__cause__)
            return checkpoint_problem(
                "source-failed", _cleaned(f"{reference!r} can't be opened: {error}"), _without(error.plugin)
            )
        if answer is None or isinstance(answer, Problem):
            return answer
        if not isinstance(answer, Source):
            fault = f"loadkit_open_source answered with a {type(answer).__name__}, and answers with a Source or a Problem"
            return checkpoint_problem(
                "source-failed",
                f"{reference!r} can't be opened: plugin {plugin!r}: {fault}",
                _without(plugin),
            )
        return _Guarded(plugin, reference, answer)

    return opened


class _Guarded:
    """A plugin's source, asked so that it comes back."""

    def __init__(self, plugin: str, reference: str, source: Source) -> None:
        self.plugin = plugin
        self._reference = reference
        self._source = source
        workers, _ = self._asked("workers", lambda: source.workers)
        self.workers = workers if type(workers) is int and 1 <= workers <= MOST_WORKERS else 1

    def told(self) -> Told | Problem:
        """What it says of itself."""

        def asked() -> Told:
            files: Any = self._source.files
            listed = dict(files) if isinstance(files, Mapping) else files
            return Told(getattr(self._source, "version", None), listed, self._source.revision)

        found, problem = self._asked("files", asked)
        return problem or found

    def read(self, name: str, start: int, stop: int) -> bytes | Problem:
        """These bytes of a file, perhaps not all of them, never more."""
        found, problem = self._asked("read_range", lambda: self._source.read_range(name, start, stop))
        return problem or self._bytes("read_range", name, found, stop - start)

    def stream(self, name: str, start: int) -> Iterator[bytes | Problem]:
        """The bytes of a file from `start` on, in pieces; a problem ends them."""
        pieces, problem = self._asked("stream", lambda: iter(self._source.stream(name, start)))
        while problem is None:
            piece, problem = self._asked("stream", lambda: next(pieces, _END))
            if piece is _END:
                return
            if problem is None:
                found = self._bytes("stream", name, piece)
                problem = found if isinstance(found, Problem) else None
                if isinstance(found, bytes):
                    yield found
        yield problem

    def _bytes(self, method: str, name: str, found: Any, most: int | None = None) -> bytes | Problem:
        if not isinstance(found, bytes | bytearray | memoryview):
            return self._lie(f"{method} gave a {type(found).__name__} of {name!r}, and gives bytes")
        if most is not None and len(found) > most:
            return self._lie(f"{method} gave {len(found):,} bytes of {name!r}, and was asked for {most:,}")
        return bytes(found)

    def _lie(self, fault: str) -> Problem:
        message = f"{self._reference!r}: plugin {self.plugin!r}: {fault}"
        return checkpoint_problem("bad-source", message, _without(self.plugin))

    def _asked(self, method: str, call: Callable[[], Any]) -> tuple[Any, Problem | None]:
        """What a method gives, whatever it is, or the problem that it raised."""
        try:
            with contained():
                return call(), None
        except SourceError as error:
            return None, _told(self.plugin, error)
        except Exception as error:
            said = str(error) if isinstance(error, Left) else raised(error)
            message = f"{self._reference!r}: plugin {self.plugin!r} failed in {method}: {said}"
            return None, checkpoint_problem("source-failed", _cleaned(message), _without(self.plugin))


def _told(plugin: str, error: SourceError) -> Problem:
    """What a plugin says can't be had, as a problem under its name."""
    code = error.code if _CODE.fullmatch(str(error.code)) else "source-failed"
    message, remedy = str(error.message) or "it can't be had", str(error.remedy)
    return Problem("checkpoint", plugin, code, _cleaned(message), _cleaned(remedy) or _without(plugin))


def _cleaned(text: str) -> str:
    """One line, without what follows a "?" in an address, and not for ever."""
    line = " ".join(_SECRETS.sub(lambda found: "?…" if found[1] else "://…@", text).split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def _without(plugin: str) -> str:
    return f"check the connection and the address; if they are right, tell the author of {plugin!r}"

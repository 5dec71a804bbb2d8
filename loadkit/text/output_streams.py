"""Output that can't be written costs no work: what a stream can't encode is spelt otherwise, what it can't
take is lost."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Forgiving", "drop_what_is_left", "forgiving_output"]

SPELT = str.maketrans({
    "…": "...", "→": "->", "←": "<-", "×": "x", "✓": "ok", "✗": "no", "·": "-", "•": "*", "–": "-", "—": "-",
    "█": "#", "▓": "=", "▒": "+", "░": ".", "▚": "%", "▞": ":", "▐": "|", "▌": "|", "▏": "|", "▄": "_", "▀": "^",
    "─": "-", "├": "|", "└": "`", "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "“": '"', "”": '"', "‘": "'", "’": "'", "−": "-", "±": "+-",
})  # fmt: skip
"""Symbols of ours to how they are spelt where they can't be written."""

_lock = threading.Lock()
_users = 0
_before: tuple[Any, Any] = (None, None)


class Forgiving:
    """A text stream that raises nothing when it is written to: for as long as a load or a command takes.

    Parameters:
        stream: the stream that is written to.
        as_text: whether it is only written to as text; others look for the bytes' stream underneath it.
    """

    def __init__(self, stream: Any, *, as_text: bool = False) -> None:
        self._stream = stream
        self._as_text = as_text
        self.lost = ""

    def write(self, text: str | bytes) -> int:
        """Write it, as well as can be; how much was given. Bytes are text where only text is written: click
        completes words with them. None at all still fail, by which click tells streams of text apart."""
        if isinstance(text, bytes) and text and self._as_text:
            text = text.decode(errors="replace")
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = getattr(self._stream, "encoding", None) or "ascii"
            plain = str(text).translate(SPELT).encode(encoding, "backslashreplace").decode(encoding)
            self._try(lambda: self._stream.write(plain))
        except (OSError, ValueError) as error:
            self._note(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each of them."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush it, where that is possible."""
        self._try(self._stream.flush)

    def _try(self, call: Any) -> None:
        try:
            call()
        except (OSError, ValueError) as error:
            self._note(error)

    def _note(self, error: Exception) -> None:
        self.lost = getattr(error, "strerror", None) or str(error)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer" and self.__dict__.get("_as_text"):
            raise AttributeError(name)
        return getattr(self.__dict__["_stream"], name)


@contextmanager
def forgiving_output(*, as_text: bool = False) -> Iterator[None]:
    """Let standard output and error be forgiving until the block ends, in every thread."""
    global _users, _before
    with _lock:
        if not _users:
            _before = sys.stdout, sys.stderr
            sys.stdout, sys.stderr = (_forgiving(each, as_text) for each in _before)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                for name, before in zip(("stdout", "stderr"), _before, strict=True):
                    now = getattr(sys, name)
                    if isinstance(now, Forgiving):  # nobody else has changed it meanwhile
                        now.flush()
                        setattr(sys, name, before)


def drop_what_is_left(stream: Any) -> None:
    """Have what a stream still holds and can't write go nowhere, or Python would fail over it at its end."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def _forgiving(stream: Any, as_text: bool) -> Any:
    return stream if stream is None or isinstance(stream, Forgiving) else Forgiving(stream, as_text=as_text)

"""`--json`: the flag, and what it prints."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from typing import Any, TextIO

import click
import msgspec

from loadkit.errors import LoadkitError
from loadkit.text.output_streams import Forgiving

__all__ = [
    "json_asked",
    "json_behind_command",
    "json_option",
    "json_output",
    "print_error",
    "print_json",
    "print_whole",
]

FLAGS = ("--json", "--kwargs")
"""With these a program reads what is printed, and nothing else may be among it."""

_results: list[TextIO] = []
"""Where the result goes while everything else that is printed goes where errors go."""


@contextmanager
def json_output(args: Sequence[str]) -> Iterator[None]:
    """Keep standard output for the result, where a program reads it: whatever else is printed, by a plugin,
    a library or a process that either starts, goes where errors go.

    Parameters:
        args: of the command line.
    """
    stated = args[: args.index("--")] if "--" in args else args
    out, err = sys.stdout, sys.stderr
    if not any(f in stated for f in FLAGS) or {"-h", "--help"} & {*stated} or out is None or err is None:
        yield
        return
    out.flush()
    kept = _kept_aside(out)
    # A stream of its own, which a plugin may close.
    sys.stdout = err if kept is None else _opened(os.dup(2), err, buffering=1)
    _results.append(out if kept is None else _opened(kept, out))
    try:
        yield
    finally:
        results = _results.pop()
        sys.stdout = out
        if kept is not None:
            with suppress(OSError, ValueError):
                out.flush()
            os.dup2(kept, 1)
            atexit.register(_to_errors)  # before what plugins have registered, which may print too
            try:
                results.close()
            except (
                OSError
            ):  # what it held couldn't be written, which was told; some Pythons close it all the same
                with suppress(OSError):
                    os.close(kept)


def _opened(descriptor: int, like: TextIO, buffering: int = -1) -> TextIO:
    return open(descriptor, "w", encoding=like.encoding, errors=like.errors, buffering=buffering)


def _to_errors() -> None:
    """Have what is printed from now on go where errors go."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        os.dup2(2, 1)


def _kept_aside(out: TextIO) -> int | None:
    """Another descriptor for what standard output is, whose own then leads where errors go."""
    try:
        if out.fileno() != 1:
            return None
        kept = os.dup(1)
    except (OSError, ValueError):  # a stream of a test or of a notebook
        return None
    try:
        os.dup2(2, 1)
    except OSError:  # there is no standard error
        os.close(kept)
        return None
    return kept


def json_option(about: str = "Print JSON.") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The flag `--json`, given to the command as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=about)


def json_asked(words: Iterable[str]) -> bool:
    """Whether a program reads what is printed, so that errors have to be JSON too."""
    return any(word.partition("=")[0] == "--json" for word in takewhile("--".__ne__, words))


def json_behind_command(group: click.Group, words: Sequence[str]) -> list[str]:
    """A command line with a `--json` before the command put behind it: `--json plan …` as `plan --json …`.

    Raises:
        UsageError: there is a `--json`, and no command that it could be meant for.
    """
    kept, found, behind = list(words), False, 0
    command: click.Command | None = group
    while isinstance(command, click.Group) and behind < len(kept):
        if kept[behind] == "--json":
            del kept[behind]
            found = True
            continue
        looking = click.Context(command, resilient_parsing=True)  # a plugin's broken command is told later
        command = command.get_command(looking, kept[behind])
        behind += 1
    if found and isinstance(command, click.Group):
        names = ", ".join(command.list_commands(click.Context(command)))
        raise click.UsageError(f"--json is an option of a command; the commands are {names}")
    no_command = command is None and kept[behind - 1].startswith("-")  # such as --version
    return [*kept[:behind], "--json", *kept[behind:]] if found and not no_command else kept


def print_error(error: Exception, exit_code: int, message: str) -> None:
    """Print an error as what it is made of: its type, its text, and its problems, findings or differences."""
    parts = {
        name: msgspec.to_builtins(list(found))
        for name in ("problems", "findings", "differences")
        if (found := getattr(error, name, ()))
    }
    about = {"type": type(error).__name__, "exit_code": exit_code, "message": message, **parts}
    print_json({"error": about})


def print_json(value: Any) -> None:
    """Print what msgspec can encode, indented."""
    print_whole(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_whole(text: str) -> None:
    """Print what a program reads: half of it would be worse than an error.

    Raises:
        LoadkitError: it couldn't be written.
    """
    stream: Any = Forgiving(_results[-1], as_text=True) if _results else sys.stdout
    click.echo(text, file=stream)
    stream.flush() if stream is not None else None
    if lost := getattr(stream, "lost", ""):
        raise LoadkitError(
            f"the JSON couldn't be written to standard output: {lost}\n    fix: make room there, or print elsewhere"
        )

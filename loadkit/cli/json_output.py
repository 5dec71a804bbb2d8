"""`--json`: the flag, and what it prints."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click
import msgspec

from loadkit.errors import LoadkitError

__all__ = ["json_option", "print_error", "print_json", "print_whole"]


def json_option(about: str = "Print JSON.") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The flag `--json`, given to the command as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=about)


def print_error(error: Exception, exit_code: int, message: str) -> None:
    """Print an error as what it is made of: its type, its text, and its problems, findings or differences."""
    parts = {
        name: msgspec.to_builtins(list(found))
        for name in ("problems", "findings", "differences")
        if (found := getattr(error, name, ()))
    }
    about = {"type": type(error).__name__, "exit_code": exit_code, "message": message, **parts}
    click.echo(msgspec.json.format(msgspec.json.encode({"error": about}), indent=2).decode())


def print_json(value: Any) -> None:
    """Print what msgspec can encode, indented."""
    print_whole(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_whole(text: str) -> None:
    """Print what a program reads: half of it would be worse than an error.

    Raises:
        LoadkitError: it couldn't be written.
    """
    click.echo(text)
    sys.stdout.flush() if sys.stdout is not None else None
    if lost := getattr(sys.stdout, "lost", ""):
        raise LoadkitError(
            f"the JSON couldn't be written to standard output: {lost}\n    fix: make room there, or print elsewhere"
        )

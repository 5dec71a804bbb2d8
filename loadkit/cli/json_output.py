"""`--json`: the flag, and what it prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import msgspec

__all__ = ["json_option", "print_json"]


def json_option(about: str = "Print JSON.") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The flag `--json`, given to the command as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=about)


def print_json(value: Any) -> None:
    """Print what msgspec can encode, indented."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())

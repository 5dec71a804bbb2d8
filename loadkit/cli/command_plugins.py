"""Subcommands that distributions bring: click commands, by entry points of the group "loadkit.commands".

The help names them without importing any, nor importlib.metadata where nobody brings one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from loadkit.errors import LoadkitError, PluginError

if TYPE_CHECKING:
    from importlib import metadata

__all__ = ["GROUP", "Brought", "brought_commands", "plugin_command"]

GROUP = "loadkit.commands"


class Brought(NamedTuple):
    """A command that a distribution brings.

    name: what is typed.
    distribution: whose it is.
    entry: its entry point.
    fault: why it can't be called; "" where nothing is known.
    """

    name: str
    distribution: str
    entry: metadata.EntryPoint
    fault: str = ""


def brought_commands(taken: Collection[str]) -> list[Brought]:
    """Every command of another distribution, by name, those that can't be called too.

    Parameters:
        taken: names of loadkit's own commands, which stay so.
    """
    if not _announced():
        return []

    from loadkit.hooks.discovery import entries_of, names_of

    disabled = _names(os.environ.get("LOADKIT_DISABLE", ""))
    allowed = _names(os.environ.get("LOADKIT_PLUGINS", ""))
    by_name: dict[str, dict[str, metadata.EntryPoint]] = {}
    for entry in entries_of(GROUP):
        by_name.setdefault(entry.name, {}).setdefault(entry.dist.name if entry.dist else "", entry)
    found = []
    for name, entries in sorted(by_name.items()):
        for distribution, entry in sorted(entries.items()):
            fault, called = "", names_of(name, distribution)
            if called & disabled:
                fault = "LOADKIT_DISABLE names it"
            elif allowed and not called & allowed:
                fault = "LOADKIT_PLUGINS doesn't name it"
            elif name in taken:
                fault = f"{name!r} is a command of loadkit's own: have this one renamed in its distribution"
            elif len(entries) > 1:
                both = " and ".join(sorted(entries))
                fault = f"{both} both bring a command {name!r}: uninstall one, or have one renamed"
            found.append(Brought(name, distribution, entry, fault))
    return found


def plugin_command(brought: Brought) -> click.Command:
    """Import a command; what goes wrong in it carries the distribution's name.

    Raises:
        PluginError: it can't be called, can't be imported, or isn't a click command.
    """
    from loadkit.hooks.contained import Left, contained, raised

    def fails(said: str) -> PluginError:
        return PluginError(brought.distribution, f"its command {brought.name!r} can't be called: {said}")

    if brought.fault:
        raise fails(brought.fault)
    try:
        with contained():
            command = brought.entry.load()
    except Left as error:
        raise fails(f"importing {brought.entry.value!r}, {error}") from error
    except Exception as error:
        raise fails(f"importing {brought.entry.value!r} raises {raised(error)}") from error
    if not isinstance(command, click.Command):
        raise fails(f"{brought.entry.value!r} isn't a click command, but {type(command).__name__}")
    return _attributed(command, brought)


def _attributed(command: click.Command, brought: Brought) -> click.Command:
    """Have what the command raises carry its distribution's name."""
    running = command.invoke

    def invoke(ctx: click.Context) -> Any:
        from loadkit.hooks.contained import raised

        try:
            return running(ctx)
        except (LoadkitError, click.ClickException, click.exceptions.Exit, click.Abort, OSError):
            raise
        except Exception as error:
            said = f"its command {brought.name!r} raised {raised(error)}; tell its author"
            raise PluginError(brought.distribution, said) from error

    command.invoke = invoke  # type: ignore[method-assign]
    return command


def _announced() -> bool:
    """Whether any distribution on the path has commands: a glance, which costs the help no import."""
    return any(f"[{GROUP}]" in text for text in _texts())


def _texts() -> Iterator[str]:
    """The entry points of every distribution on the path, as they stand in the files."""
    for folder in dict.fromkeys(sys.path):
        with suppress(OSError):
            for each in os.scandir(folder or "."):
                if each.name.endswith((".dist-info", ".egg-info")):
                    with (
                        suppress(OSError),
                        open(
                            os.path.join(each.path, "entry_points.txt"), encoding="utf-8", errors="replace"
                        ) as file,
                    ):
                        yield file.read()


def _names(text: str) -> frozenset[str]:
    return frozenset(part.strip() for part in text.split(",") if part.strip())

"""`loadkit doctor`."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator

import click

from loadkit.cli.doctor_report import Examination, examine
from loadkit.cli.grouped_help import GroupedCommand
from loadkit.cli.json_output import json_option, print_json
from loadkit.hooks.manager import PluginInfo, PluginManager
from loadkit.text.units import size

__all__ = ["command"]

MISSING = re.compile(r"No module named '([\w.]+)'")


EXAMPLES = (
    ("loadkit doctor", "what to paste into a bug report"),
    ("loadkit doctor --json", "the same for a program"),
)
"""Commands, and what each is for."""


@click.command("doctor", cls=GroupedCommand, examples=EXAMPLES)
@json_option()
def command(as_json: bool) -> None:
    """Tell what is here: machine, versions, known trouble, plugins, caches, and what each profile would do.

    Made to be pasted into a bug report: it holds no token and no password, and the home folder is ~."""
    found = examine(PluginManager())
    if as_json:
        print_json(found)
        return
    width = shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else 0
    for line in lines(found):
        click.echo(click.wrap_text(line, width, subsequent_indent="    ") if width else line)


def lines(found: Examination) -> Iterator[str]:
    """The examination as plain text."""
    yield f"loadkit {found.loadkit}, Python {found.python}"
    yield from (f"machine: {line}" for line in found.machine)
    if found.topology:
        yield f"launch: {found.topology}"
    yield "libraries: " + ", ".join(
        f"{name} {version or 'missing'}" for name, version in found.libraries.items()
    )
    yield from (f"old: {line}" for line in found.old)
    for issue in found.issues:
        yield f"known trouble: {issue.reason} ({issue.source})  [{issue.code}]"
        yield f"    fix: {issue.remedy}"
    for name, value in found.environment.items():
        yield f"environment: {name}={value}"
    for plugin in found.plugins:
        if plugin.state == "active":
            continue
        reason = " ".join(plugin.reason.split())
        yield f"plugin {plugin.name} ({plugin.distribution or 'by hand'} {plugin.version}) is {plugin.state}: {reason}"
        if plugin.state == "broken":
            yield f"    fix: {_fix(plugin)}"
    active: dict[str, list[str]] = {}
    for plugin in found.plugins:
        if plugin.state == "active":
            active.setdefault(f"{plugin.distribution or 'by hand'} {plugin.version}".rstrip(), []).append(
                plugin.name
            )
    for distribution, names in active.items():
        yield f"plugins of {distribution}: {', '.join(names)}"
    if not active:
        yield "plugins: none"
    yield from (f"cache: {c.name}, {size(c.size)} in {c.path}" for c in found.caches)
    for outlook in found.profiles:
        said = outlook.refused or "; ".join(f"{stage} {value}" for stage, value in outlook.decisions.items())
        yield f"profile {outlook.profile}: {said}"


def _fix(plugin: PluginInfo) -> str:
    """What to do about a broken plugin, by what broke it."""
    if "both call a plugin" in plugin.reason:  # neither can be left out by its name, which they share
        return f"uninstall one of the two distributions: pip uninstall {plugin.distribution}"
    missing = MISSING.search(plugin.reason)
    first = f"install what it misses, {missing[1]}; " if missing else ""
    return f"{first}update or uninstall {plugin.distribution or 'it'}, or leave it out: LOADKIT_DISABLE={plugin.name}"

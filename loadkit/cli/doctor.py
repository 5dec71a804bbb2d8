"""`loadkit doctor`."""

from __future__ import annotations

from collections.abc import Iterator

import click
import msgspec

from loadkit.doctor import Examination, examine
from loadkit.manager import PluginManager
from loadkit.units import size

__all__ = ["command"]


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Tell what is here: machine, versions, known trouble, plugins, caches, and what each profile would do.

    Made to be pasted into a bug report: it holds no token and no password."""
    found = examine(PluginManager())
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
        return
    for line in lines(found):
        click.echo(line)


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
    yield from (f"known trouble: {line}" for line in found.trouble)
    for name, value in found.environment.items():
        yield f"environment: {name}={value}"
    for plugin in found.plugins:
        if plugin.state == "active":
            continue
        fix = "uninstall or update it, or leave it out: LOADKIT_DISABLE=" + plugin.name
        yield f"plugin {plugin.name} ({plugin.distribution or 'by hand'} {plugin.version}) is {plugin.state}: {plugin.reason}"
        if plugin.state == "broken":
            yield f"    fix: {fix}"
    active = [f"{p.name} ({p.distribution} {p.version})" for p in found.plugins if p.state == "active"]
    yield f"plugins: {', '.join(active) or 'none'}"
    yield from (f"cache: {c.name}, {size(c.size)} in {c.path}" for c in found.caches)
    for outlook in found.profiles:
        said = outlook.refused or "; ".join(f"{stage} {value}" for stage, value in outlook.decisions.items())
        yield f"profile {outlook.profile}: {said}"

"""`loadkit profiles`."""

from __future__ import annotations

import click
import msgspec

from loadkit.hooks.manager import default_manager
from loadkit.request.profiles import find_profile

__all__ = ["command"]


@click.command("profiles")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with each profile's options in full.")
def command(as_json: bool) -> None:
    """List the profiles, each with a sentence and the options it sets."""
    known = default_manager().profiles.found
    found = [
        {
            "name": name,
            "description": profile.description,
            "extends": profile.extends,
            "plugin": plugin,
            "options": find_profile(name, known)[0],
        }
        for name, (plugin, profile) in sorted(known.items())
    ]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
        return
    from rich.table import Table

    from loadkit.cli.terminal import console

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("profile", no_wrap=True)
    table.add_column("what it is for", ratio=3)
    table.add_column("options", ratio=4, style="dim")
    for item in found:
        options = item["options"]
        assert isinstance(options, dict)
        table.add_row(
            str(item["name"]), str(item["description"]), ", ".join(f"{k}={v}" for k, v in options.items())
        )
    console.print(table)

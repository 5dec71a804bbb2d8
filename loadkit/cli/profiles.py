"""`loadkit profiles`."""

from __future__ import annotations

from typing import Any

import click

from loadkit.cli.grouped_help import GroupedCommand
from loadkit.cli.json_output import json_option, print_json
from loadkit.hooks.manager import default_manager
from loadkit.request.profiles import find_profile

__all__ = ["command"]


EXAMPLES = (
    ("loadkit profiles", "each with what it is for"),
    ("loadkit profiles --json", "with every option in full"),
)
"""Commands, and what each is for."""


@click.command("profiles", cls=GroupedCommand, examples=EXAMPLES)
@json_option("Print JSON, with each profile's options in full.")
def command(as_json: bool) -> None:
    """List the profiles, each with a sentence and the options it sets."""
    known = default_manager().profiles.found
    found: list[dict[str, Any]] = [
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
        print_json(found)
        return
    from loadkit.cli.terminal import plain_table, show

    table = plain_table()
    table.add_column("profile", no_wrap=True)
    table.add_column("what it is for", ratio=3)
    table.add_column("options", ratio=4, style="dim")
    for item in found:
        options = ", ".join(f"{name}={value}" for name, value in item["options"].items())
        table.add_row(item["name"], item["description"], options)
    show(table)

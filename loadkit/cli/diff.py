"""`loadkit diff`."""

from __future__ import annotations

from pathlib import Path

import click

from loadkit.cli.colours import colour_wanted
from loadkit.cli.grouped_help import GroupedCommand
from loadkit.cli.json_output import json_option, print_json
from loadkit.manifest.manifest import differences, read_saved

__all__ = ["command"]


EXAMPLES = (
    ("loadkit plan ./my-mistral qlora --output today.json", "write a plan down"),
    ("loadkit diff yesterday.json today.json", "what has changed since"),
)
"""Commands, and what each is for."""


@click.command("diff", cls=GroupedCommand, examples=EXAMPLES)
@json_option("Print the differences as JSON.")
@click.argument("first", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("second", type=click.Path(dir_okay=False, path_type=Path))
@click.pass_context
def command(context: click.Context, first: Path, second: Path, as_json: bool) -> None:
    """Compare two plans (`loadkit plan --output`) or manifests (`loadkit load --manifest`).

    Exits with 0 where nothing differs, with 1 where something does."""
    found = differences(read_saved(first), read_saved(second))
    if as_json:
        print_json(found)
    elif not found:
        click.echo("nothing differs")
    for difference in [] if as_json else found:
        click.secho(difference.what, bold=True, color=colour_wanted())
        click.echo(f"  - {difference.first or 'nothing'}\n  + {difference.second or 'nothing'}")
    context.exit(1 if found else 0)

"""`loadkit diff`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from loadkit.manifest.manifest import differences, read_saved

__all__ = ["command"]


@click.command("diff")
@click.option("--json", "as_json", is_flag=True, help="Print the differences as JSON.")
@click.argument("first", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("second", type=click.Path(dir_okay=False, path_type=Path))
@click.pass_context
def command(context: click.Context, first: Path, second: Path, as_json: bool) -> None:
    """Compare two plans (`loadkit plan --output`) or manifests (`loadkit load --manifest`).

    Exits with 0 where nothing differs, with 1 where something does."""
    found = differences(read_saved(first), read_saved(second))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    elif not found:
        click.echo("nothing differs")
    for difference in [] if as_json else found:
        click.secho(difference.what, bold=True)
        click.echo(f"  - {difference.first or 'nothing'}\n  + {difference.second or 'nothing'}")
    context.exit(1 if found else 0)

"""`loadkit check`."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from loadkit.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from loadkit.testing import Result

__all__ = ["command"]

FAILED = 7
"""Exit code where a check fails."""

COLOURS = {"passed": "green", "failed": "bold red", "skipped": "dim", "newer": "yellow"}


@click.command("check")
@click.argument("name")
@click.option("--level", help="The level that the plugin keeps to; the newest by default.")
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    help="A checkpoint to load with it: a folder, or one of the tiny ones (mistral, llama, gemma3, …). Can be given several times.",
)
@click.option("--profile", default="", help="The profile to load those with.")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option to load those with, in JSON or as it is. Can be given several times.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds that a check may take in one scenario; what takes longer fails it, and the run goes on. 120 by default.",
)
@json_option()
def command(
    name: str,
    level: str | None,
    checkpoints: tuple[str, ...],
    profile: str,
    options: tuple[str, ...],
    timeout: float | None,
    as_json: bool,
) -> None:
    """Run the conformance checks on NAME: an installed plugin, its distribution, or its package.

    They run in a process of their own: a plugin that hangs or crashes fails the check, and the others go on.

    Exits with 7 where a check fails."""
    from loadkit.cli.terminal import working
    from loadkit.testing import LEVEL, TIME_LIMIT, Scenario, entries, run_apart

    given = dict(map(_option, options))
    asked = ", ".join([profile or "no profile", *options])
    scenarios = [
        Scenario(name=f"{Path(c).name} with {asked}", checkpoint=c, profile=profile, options=given)
        for c in checkpoints
    ]
    results: list[Result] = []
    for entry in entries(name):
        with working(f"checking {entry.name}"):
            results += run_apart(
                entry, level=level or LEVEL, scenarios=scenarios, timeout=timeout or TIME_LIMIT
            )
    if as_json:
        print_json(results)
    else:
        _print(results)
    if any(r.verdict in ("failed", "unexpected") for r in results):
        sys.exit(FAILED)


def _option(text: str) -> tuple[str, object]:
    """Name and value of what was given as NAME=VALUE."""
    dashed, separator, value = text.partition("=")
    if not separator or not dashed:
        raise click.BadParameter(f"{text!r} isn't NAME=VALUE", param_hint="--option")
    name = dashed.replace("-", "_")
    try:
        return name, msgspec.json.decode(value)
    except msgspec.DecodeError:
        return name, value


def _print(results: list[Result]) -> None:
    from rich.text import Text

    from loadkit.cli.terminal import plain_table, show

    table = plain_table(header=False)
    for wraps in (False, False, False, True):
        table.add_column(no_wrap=not wraps, overflow="fold")
    for result in results:
        said = Text(result.title)
        if result.said:
            where = f" ({result.scenario})" if result.scenario else ""
            said.append(f"\n{result.said}{where}", style="dim")
        if result.remedy:
            said.append(f"\nfix: {result.remedy}")
        table.add_row(
            result.plugin, result.code, Text(result.verdict, COLOURS.get(result.verdict, "yellow")), said
        )
    show(table)
    counts = Counter(r.verdict for r in results)
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    click.echo(f"\n{len(results)} checks: {summary}")

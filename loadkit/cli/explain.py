"""`loadkit explain`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import resources

import click
import msgspec

from loadkit.cli.codes_of_plugins import who_says
from loadkit.cli.colours import colour_wanted
from loadkit.cli.grouped_help import GroupedCommand
from loadkit.cli.json_output import json_option, print_json
from loadkit.text.suggest import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Explanation", "command", "explanations"]

EXAMPLES = (
    ("loadkit explain does-not-fit", "what an error's code means, and the ways out"),
    ("loadkit explain --list", "every code, a line each"),
)
"""Commands, and what each is for."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What a code of a problem or finding means.

    Parameters:
        code: the code, as it stands in brackets behind an error.
        what: what it says.
        why: why that matters, or how it comes about.
        ways_out: what can be done, a sentence each.
        about: what the codes around it are about.
    """

    code: str
    what: str
    why: str
    ways_out: tuple[str, ...]
    about: str


def explanations() -> Mapping[str, Explanation]:
    """Every code of loadkit's own, sorted, to its explanation."""
    found = {}
    for file in resources.files("loadkit.cli.explanations").iterdir():
        if file.name.endswith(".toml"):
            text = file.read_text(encoding="utf-8")
            about = text.partition("\n")[0].lstrip("# ").partition(". Each code")[0]
            for code, (what, why, *ways) in tomllib.loads(text).items():
                found[code] = Explanation(code=code, what=what, why=why, ways_out=tuple(ways), about=about)
    return dict(sorted(found.items()))


@click.command("explain", cls=GroupedCommand, examples=EXAMPLES)
@click.argument("word", required=False, metavar="CODE", shell_complete=lambda *given: _beginning(given[2]))
@click.option("--list", "listed", is_flag=True, help="List every code with what it means.")
@json_option()
def command(word: str | None, listed: bool, as_json: bool) -> None:
    """Explain CODE, which stands in brackets behind an error or finding: what it means, why, the ways out."""
    known = explanations()
    if listed:
        _list(known, as_json)
        return
    if word is None:
        raise click.UsageError("CODE is missing: it stands in brackets behind an error; --list lists all")
    found = known.get(word.strip("[]"))
    if found is None:
        _of_somebody_else(word.strip("[]"), known, as_json)
        return
    if as_json:
        print_json(found)
        return
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from loadkit.cli.terminal import show

    ways = Table.grid(padding=(0, 1, 0, 0))
    for way in found.ways_out:
        ways.add_row("-", way)
    about = Text.assemble((found.code, "bold"), f"\n{found.what}\n{found.why}\n")
    show(Group(about, ways))


def _of_somebody_else(word: str, known: Mapping[str, Explanation], as_json: bool) -> None:
    """Name the plugin whose code it is; where no plugin has it, it is a slip."""
    theirs = who_says(word)
    if not theirs:
        raise click.UsageError(
            f"{word!r} is no code of loadkit's own{did_you_mean(word, known)}, and no plugin that is installed has it; "
            "--list lists all of loadkit's own"
        )
    if as_json:
        print_json(theirs)
        return
    click.secho(word, bold=True, color=colour_wanted())
    for each in theirs:
        where = f": {', '.join(each.pages)}" if each.pages else ""
        click.echo(f"A code of the plugin {each.plugin!r}, from {each.distribution} {each.version}{where}")
    click.echo(
        "loadkit has no explanation of it. What it means here stands in the error itself, and behind 'fix:' what to do; "
        "the plugin's documentation has the rest."
    )


def _list(known: Mapping[str, Explanation], as_json: bool) -> None:
    if as_json:
        print_json(list(known.values()))
        return
    from loadkit.cli.terminal import plain_table, show

    table = plain_table(header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for each in known.values():
        table.add_row(each.code, each.what)
    show(table)


def _beginning(incomplete: str) -> list[str]:
    return [code for code in explanations() if code.startswith(incomplete)]

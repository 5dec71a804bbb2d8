"""`loadkit check`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from loadkit.cli import completion
from loadkit.cli.grouped_help import GroupedCommand
from loadkit.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from loadkit.testing import Result, Scenario

__all__ = ["command"]

FAILED = 7
"""Exit code where a check fails."""

COLOURS = {"passed": "green", "failed": "bold red", "skipped": "dim", "newer": "yellow"}


EXAMPLES = (
    ("loadkit check mine", "every rule that needs no checkpoint"),
    ("loadkit check mine --checkpoint mistral --profile qlora", "and one loaded for real"),
)
"""Commands, and what each is for."""


@click.command("check", cls=GroupedCommand, examples=EXAMPLES)
@click.argument("name", shell_complete=completion.plugins)
@click.option("--level", help="The level that the plugin keeps to; the newest by default.")
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    help="A checkpoint to load with it: a folder, or one of the tiny ones (mistral, llama, gemma3, …). Can be given several times.",
)
@click.option(
    "--config",
    "configs",
    multiple=True,
    metavar="FILE|JSON",
    help="A config.json to plan for, as a file or as JSON: that of the model type that it is for. Can be given several times.",
)
@click.option(
    "--profile",
    default="",
    shell_complete=completion.profiles,
    help="The profile to plan and load those with.",
)
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option to plan and load those with, in JSON or as it is. Can be given several times.",
)
@click.option(
    "--expect-fail",
    "expected",
    multiple=True,
    metavar="CODE=REASON",
    help="A check that fails for now, and why; it is an error where it passes. Can be given several times.",
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
    configs: tuple[str, ...],
    profile: str,
    options: tuple[str, ...],
    expected: tuple[str, ...],
    timeout: float | None,
    as_json: bool,
) -> None:
    """Run the conformance checks on NAME: an installed plugin, its distribution, or its package.

    They run in a process of their own: a plugin that hangs or crashes fails the check, and the others go on.
    What is asked for with --config, --profile and --option is planned; with --checkpoint it is loaded too.

    Exits with 7 where a check fails."""
    from loadkit.cli.terminal import working
    from loadkit.testing import LEVEL, TIME_LIMIT, entries, run_apart

    reasons = dict(_pair(text, "--expect-fail", "CODE=REASON") for text in expected)
    scenarios = _scenarios(checkpoints, configs, profile, options)
    results: list[Result] = []
    for entry in entries(name):
        with working(f"checking {entry.name}"):
            results += run_apart(
                entry,
                level=level or LEVEL,
                scenarios=scenarios,
                expect_fail=reasons,
                timeout=timeout or TIME_LIMIT,
            )
    if as_json:
        print_json(results)
    else:
        _print(results)
    if any(r.verdict in ("failed", "unexpected") for r in results):
        sys.exit(FAILED)


def _scenarios(
    checkpoints: Sequence[str], configs: Sequence[str], profile: str, options: Sequence[str]
) -> list[Scenario]:
    """What is asked for, on each checkpoint and each config; on a Mistral where neither is given."""
    from loadkit.testing import Scenario

    given = dict(map(_option, options))
    asked = ", ".join([profile or "no profile", *options])
    about: dict[str, Any] = {"profile": profile, "options": given}
    found = [Scenario(name=f"{Path(c).name} with {asked}", checkpoint=c, **about) for c in checkpoints]
    for text in configs:
        config = _config(text)
        kind = config.get("model_type", "config")
        found.append(Scenario(name=f"a {kind} with {asked}", config=config, **about))
    if not found and (profile or options):
        found.append(Scenario(name=f"a Mistral with {asked}", **about))
    return found


def _config(text: str) -> dict[str, Any]:
    """A config that was given as a file or as JSON."""
    try:
        written = text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8")
        return msgspec.json.decode(written, type=dict[str, Any])
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError) as error:
        raise click.BadParameter(
            f"{text!r} is neither JSON nor a file of it: {error}", param_hint="--config"
        ) from None


def _pair(text: str, flag: str, form: str) -> tuple[str, str]:
    """The two halves of what was given as A=B."""
    first, separator, second = text.partition("=")
    if not separator or not first:
        raise click.BadParameter(f"{text!r} isn't {form}", param_hint=flag)
    return first, second


def _option(text: str) -> tuple[str, object]:
    """Name and value of what was given as NAME=VALUE."""
    dashed, value = _pair(text, "--option", "NAME=VALUE")
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

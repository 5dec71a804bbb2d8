"""Help in groups: a command's own options first, then those of each stage, and examples at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from loadkit.text.suggest import did_you_mean

__all__ = ["GroupedCommand", "StageOption", "suggested", "write_examples"]


class StageOption(click.Option):
    """A flag made from a declared option; `stage` is where the help shows it."""

    def __init__(self, *args: Any, stage: str, **more: Any) -> None:
        super().__init__(*args, **more)
        self.stage = stage


class GroupedCommand(click.Command):
    """A command whose help has a section for each stage, and examples.

    Parameters:
        examples: commands, and what each is for.
    """

    def __init__(self, *args: Any, examples: Sequence[tuple[str, str]] = (), **more: Any) -> None:
        super().__init__(*args, **more)
        self.examples = examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and not isinstance(parameter, click.Argument):
                stage = getattr(parameter, "stage", "")
                groups.setdefault(f"Options: {stage}" if stage else "Options", []).append(record)
        for title in sorted(groups, key=lambda title: title != "Options"):
            with formatter.section(title):
                formatter.write_dl(groups[title])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, self.examples)
        super().format_epilog(ctx, formatter)


def write_examples(formatter: click.HelpFormatter, examples: Sequence[tuple[str, str]]) -> None:
    """Each command below what it is for."""
    if examples:
        with formatter.section("Examples"):
            for command, about in examples:
                formatter.write(f"{'':{formatter.current_indent}}# {about}\n")
                formatter.write(f"{'':{formatter.current_indent}}{command}\n")


def suggested(error: click.UsageError) -> click.UsageError:
    """An error about a choice or a flag, with what is like what was given; any other as it is."""
    if isinstance(error, click.NoSuchOption):
        meant = " or ".join(map(repr, _flags_like(error)))
        message = f"{error.message} Did you mean {meant}?" if meant else error.format_message()
        return click.NoSuchOption(error.option_name, message, ctx=error.ctx)
    kind = error.param.type if isinstance(error, click.BadParameter) and error.param is not None else None
    if not isinstance(kind, click.Choice) or not isinstance(error, click.BadParameter):
        return error
    given = error.message.partition("'")[2].partition("'")[0]
    hint = did_you_mean(given, map(str, kind.choices))
    return click.BadParameter(f"{error.message}{hint}", error.ctx, error.param, error.param_hint)


def _flags_like(error: click.NoSuchOption) -> list[str]:
    """The flags that one was short for, as in Python: `--r` for `--lora-r`, `--attn` for
    `--attn-implementation`; and its spelling with underscores."""
    if error.ctx is None:
        return []
    flags = [
        flag for param in error.ctx.command.get_params(error.ctx) for flag in param.opts if flag[:2] == "--"
    ]
    word = error.option_name.lstrip("-").replace("_", "-")
    exact = [flag for flag in flags if flag == f"--{word}"]
    longer = [flag for flag in flags if flag.endswith(f"-{word}") and not flag.startswith("--no-")]
    begun = [flag for flag in flags if len(word) > 2 and flag.startswith(f"--{word}")]
    return (exact or begun or longer)[:3]

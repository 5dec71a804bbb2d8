"""The command group. A command's module is imported when the command is called, so that `--help` is quick."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import click

from loadkit.cli.colours import colour_wanted
from loadkit.cli.command_plugins import Brought, brought_commands, plugin_command
from loadkit.cli.grouped_help import suggested, write_examples
from loadkit.cli.json_output import json_asked, json_behind_command, json_output, print_error
from loadkit.errors import AuditError, LoadkitError, PlanError, PluginError
from loadkit.text.output_streams import drop_what_is_left, forgiving_output
from loadkit.text.suggest import did_you_mean

__all__ = ["EXIT_CODES", "main"]

EXIT_CODES: Mapping[type[BaseException], int] = {PlanError: 3, AuditError: 5, PluginError: 6, LoadkitError: 4}
"""Error to exit code, the first that fits; the epilog of the help has all codes."""

COMMANDS: Mapping[str, str] = {
    "demo": "Make a small real checkpoint, load it, report, and train a few steps.",
    "plan": "Print what would be loaded: whether it fits, in which form, who decided it and why.",
    "load": "Load a model, audit it and report; save it or generate from it.",
    "save": "Load a model, audit it, and save it with a manifest; or an adapter merged into its base.",
    "merge": "Work an adapter into its base on the disk, shard by shard, and prove it.",
    "explain": "Explain a code of an error or finding: what it means, why, and the ways out.",
    "profiles": "List the profiles and their options.",
    "doctor": "Tell what is here: machine, versions, plugins, caches, and what profiles would do.",
    "diff": "Compare two plans or manifests.",
    "cache": "Look after what is kept on the disk: list, verify, prune, copies, path.",
    "plugins": "List the plugins: active, blocked and broken ones.",
    "new-plugin": "Write a distribution with a plugin of your own.",
    "check": "Run the conformance checks on a plugin.",
}
"""Command, whose module has its name, to its line in the help."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Start here": ("demo", "plan", "load", "save"),
    "Understand": ("explain", "profiles", "doctor", "diff"),
    "Look after": ("merge", "cache"),
    "Write plugins": ("plugins", "new-plugin", "check"),
}
"""The commands as the help groups them."""

EXAMPLES = (
    ("loadkit demo --keep ./my-mistral", "a small real checkpoint to try things on"),
    ("loadkit plan ./my-mistral qlora", "whether it fits, and in which form"),
    ("loadkit plan ./my-mistral qlora --why dtype", "who decided the dtype, and why"),
    ("loadkit load ./my-mistral inference --generate 'The oven'", "load, prove, and try it"),
    ("loadkit explain does-not-fit", "what an error's code means"),
)
"""Commands to begin with, and what each is for."""

CODES = (
    "Exit codes: 0 done, 1 unexpected failure, 2 wrong command line, 3 the request can't be met, 4 loading failed, "
    "5 the loaded model isn't what was planned, 6 a plugin failed, 7 a conformance check failed, 8 something in the "
    "cache was damaged, 130 interrupted. With --json, errors are JSON too, on standard output, beside the text on standard error."
)

COMPLETION = (
    'Completion: eval "$(_LOADKIT_COMPLETE=bash_source loadkit)" in ~/.bashrc; zsh_source and fish_source serve '
    "the other shells."
)


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *(brought.name for brought in brought_commands(COMMANDS) if not brought.fault)]

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """As click does, with `--json` before the command taken for the command's own."""
        asked = list(args)
        if extra.get("resilient_parsing"):  # a shell completes
            return super().make_context(
                info_name, [word for word in asked if word != "--json"], parent, **extra
            )
        try:
            return super().make_context(info_name, json_behind_command(self, asked), parent, **extra)
        except click.UsageError as error:
            if json_asked(asked):
                print_error(error, error.exit_code, error.format_message())
            raise

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does; where there is no such command, with the one that is like it."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            known = dict.fromkeys((*COMMANDS, *(brought.name for brought in brought_commands(COMMANDS))))
            if args[0] not in known:
                ctx.fail(
                    f"there is no command {args[0]!r}{did_you_mean(args[0], known)}; the commands are {', '.join(known)}"
                )
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return _brought(cmd_name, completing=ctx.resilient_parsing)
        module = importlib.import_module(f"loadkit.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        longest = max(map(len, COMMANDS))
        for title, names in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(longest), COMMANDS[name]) for name in names])
        if brought := brought_commands(COMMANDS):
            with formatter.section("From plugins"):
                formatter.write_dl([(b.name.ljust(longest), _about(b)) for b in brought])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, EXAMPLES)
        for text in (CODES, COMPLETION):
            formatter.write_paragraph()
            formatter.write_text(text)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """As click does, whatever becomes of the output: a command's work doesn't depend on who reads it."""
        streams = [stream for stream in (sys.stdout, sys.stderr) if stream is not None]
        try:
            given = kwargs.get("args") or (args[0] if args else None)
            with json_output(sys.argv[1:] if given is None else list(given)), forgiving_output(as_text=True):
                return super().main(*args, **kwargs)
        finally:
            for stream in streams:
                drop_what_is_left(stream)

    def invoke(self, ctx: click.Context) -> Any:
        as_json = json_asked(ctx.args)
        try:
            return super().invoke(ctx)
        except LoadkitError as error:
            code = next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
            click.secho("error: ", fg="red", bold=True, nl=False, err=True, color=colour_wanted())
            click.echo(str(error), err=True)
            if as_json:
                with suppress(LoadkitError):  # it may be that nothing can be written, which was told just now
                    print_error(error, code, str(error))
            sys.exit(code)
        except click.UsageError as error:
            told = suggested(error)
            if as_json:
                print_error(told, told.exit_code, told.format_message())
            raise told from None


def _brought(name: str, *, completing: bool) -> click.Command | None:
    """The command that a distribution brings under a name; while a word is completed, one in its place where
    it can't be had."""
    found = next((each for each in brought_commands(COMMANDS) if each.name == name), None)
    if found is None:
        return None
    try:
        return plugin_command(found)
    except LoadkitError:
        if completing:
            return click.Command(name)
        raise


def _about(brought: Brought) -> str:
    return f"From {brought.distribution}." if not brought.fault else f"Takes no part: {brought.fault}."


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="loadkit", message="loadkit %(version)s", help="Print the version.")
def main() -> None:
    """Ask for a model; get exactly what you asked for, see who decided what, and have it proved."""

"""The command group. A command's module is imported when the command is called, so that `--help` is quick."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

import click

from loadkit.cli.json_output import json_output
from loadkit.errors import AuditError, LoadkitError, PlanError, PluginError
from loadkit.text.output_streams import drop_what_is_left, forgiving_output

__all__ = ["EXIT_CODES", "main"]

EXIT_CODES: Mapping[type[BaseException], int] = {PlanError: 3, AuditError: 5, PluginError: 6, LoadkitError: 4}
"""Error to exit code, the first that fits; the epilog of the help has all codes."""

COMMANDS: Mapping[str, str] = {
    "demo": "Make a small real checkpoint, load it, report, and train a few steps.",
    "plan": "Print what would be loaded, who decided it, and why.",
    "load": "Load a model, audit it and report; save it or generate from it.",
    "save": "Load a model, audit it, and save it with a manifest; or an adapter merged into its base.",
    "merge": "Work an adapter into its base on the disk, shard by shard, and prove it.",
    "diff": "Compare two plans or manifests.",
    "plugins": "List the plugins: active, blocked and broken ones.",
    "new-plugin": "Write a distribution with a plugin of your own.",
    "doctor": "Tell what is here: machine, versions, plugins, caches, and what profiles would do.",
    "cache": "Look after what is kept quantized: list, verify, prune, path.",
    "check": "Run the conformance checks on a plugin.",
    "profiles": "List the profiles and their options.",
}
"""Command, whose module has its name, to its line in the help."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"loadkit.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

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
        try:
            return super().invoke(ctx)
        except LoadkitError as error:
            click.secho("error: ", fg="red", bold=True, nl=False, err=True)
            click.echo(str(error), err=True)
            sys.exit(next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind)))


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 done, 1 unexpected failure, 2 wrong command line, 3 the request can't be met, 4 loading failed, "
    "5 the loaded model isn't what was planned, 6 a plugin failed, 7 a conformance check failed, 8 something in the cache was damaged, 130 interrupted.",
)
@click.version_option(package_name="loadkit", message="loadkit %(version)s", help="Print the version.")
def main() -> None:
    """Ask for a model; get exactly what you asked for, see who decided what, and have it proved."""

"""`loadkit plugins`."""

from __future__ import annotations

import click

from loadkit.cli.grouped_help import GroupedCommand
from loadkit.cli.json_output import json_option, print_json
from loadkit.errors import LoadkitError
from loadkit.hooks import hookspecs
from loadkit.hooks.manager import PluginInfo, default_manager
from loadkit.text.suggest import did_you_mean

__all__ = ["command"]

COLOURS = {"active": "green", "blocked": "yellow", "broken": "red"}


EXAMPLES = (
    ("loadkit plugins", "who takes part"),
    ("loadkit plugins --hook loadkit_choose_dtype", "who has a say about the dtype"),
)
"""Commands, and what each is for."""


@click.command("plugins", cls=GroupedCommand, examples=EXAMPLES)
@click.option("--hook", help="Only those that implement this hook.")
@json_option()
def command(hook: str | None, as_json: bool) -> None:
    """List the plugins: name, version, distribution, hooks, and why a blocked or broken one takes no part."""
    known = [name for name in vars(hookspecs) if name.startswith("loadkit_")]
    if hook is not None and hook not in known:
        raise LoadkitError(
            f"{hook!r} isn't a hook{did_you_mean(hook, known)}; the hooks are {', '.join(known)}"
        )
    found = [p for p in default_manager().plugins if hook is None or hook in p.hooks]
    if as_json:
        print_json(found)
    else:
        _print(found)


def _print(found: list[PluginInfo]) -> None:
    from loadkit.cli.terminal import plain_table, show

    table = plain_table()
    for column in ("plugin", "state", "distribution", "hooks"):
        table.add_column(column, no_wrap=column != "hooks")
    for plugin in found:
        about = ", ".join(h.removeprefix("loadkit_") for h in plugin.hooks) or plugin.reason
        state = f"[{COLOURS[plugin.state]}]{plugin.state}[/]"
        table.add_row(plugin.name, state, f"{plugin.distribution} {plugin.version}", about)
    show(table)

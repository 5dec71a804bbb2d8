"""`loadkit merge`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from loadkit.cli import completion
from loadkit.cli.grouped_help import GroupedCommand
from loadkit.cli.json_output import json_option, print_json
from loadkit.cli.options import chosen, options_named

__all__ = ["command", "merge_options", "run_merge"]

EXAMPLES = (
    ("loadkit merge ./my-adapter ./my-model", "the base that the adapter names, with the adapter worked in"),
    ("loadkit merge ./my-adapter ./my-model --base ./my-mistral", "into another copy of the base"),
)
"""Commands, and what each is for."""

SAYING_MORE = (
    *("revision", "adapter_revision", "cache_dir", "local_files_only", "trust_remote_code", "allow_pickle"),
    *("check_adapter_base", "task", "num_labels", "model_class", "dtype"),
)
"""The options of `loadkit load` that say more of an adapter and its base."""


def merge_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ADAPTER, OUT and the flags of a merge to a command."""
    command = options_named(SAYING_MORE)(command)
    command = json_option("Print what was done as JSON.")(command)
    command = click.option(
        "--sha256", is_flag=True, help="Hash the weight files too, for the manifest: a second a gigabyte."
    )(command)
    command = click.option(
        "--base",
        shell_complete=completion.models,
        help="The model to merge into, where it isn't the one that the adapter names.",
    )(command)
    command = click.argument("out", metavar="OUT", type=click.Path(path_type=Path))(command)
    return click.argument("adapter", metavar="ADAPTER", shell_complete=completion.models)(command)


@click.command("merge", cls=GroupedCommand, examples=EXAMPLES)
@merge_options
def command(adapter: str, out: Path, base: str | None, sha256: bool, as_json: bool, **options: Any) -> None:
    """Work ADAPTER (a folder or Hub id) into its base, and write the whole model into the folder OUT.

    It goes shard by shard, in the dtype that each tensor is stored in (or --dtype), and the model is never in
    memory. Everything is read back and proved; what can't be merged so is refused before anything is written.
    OUT has the tokenizer or processor too, and a manifest of what it was made of."""
    run_merge(adapter, out, base, sha256, as_json, options)


def run_merge(
    adapter: str, out: Path, base: str | None, sha256: bool, as_json: bool, options: dict[str, Any]
) -> None:
    """Merge, showing the bytes in a terminal and the steps elsewhere, and print what was done."""
    from loadkit.cli.terminal import writing
    from loadkit.merging.merge import merge

    with writing(f"planning to merge {adapter}") as (progress, wrote):
        done = merge(
            adapter, out, base=base, sha256=sha256, progress=progress, wrote=wrote, **chosen(options)
        )
    if as_json:
        print_json(done)
    else:
        click.echo(str(done))

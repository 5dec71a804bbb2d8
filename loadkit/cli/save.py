"""`loadkit save`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loadkit.cli.grouped_help import GroupedCommand
from loadkit.cli.json_output import json_option, print_json
from loadkit.cli.merge import run_merge
from loadkit.cli.options import chosen, model_options
from loadkit.errors import LoadkitError
from loadkit.facts.machine.topology import read_topology

__all__ = ["command"]

MANIFEST = "loadkit-manifest.json"


EXAMPLES = (
    ("loadkit save ./my-mistral ./copy", "audited, with its tokenizer and a manifest"),
    ("loadkit save ./my-mistral ./in-4-bits --profile inference-4bit", "quantized on the disk"),
    ("loadkit save --merged ./my-adapter ./my-model", "an adapter worked into its base"),
)
"""Commands, and what each is for."""


@click.command("save", cls=GroupedCommand, examples=EXAMPLES)
@click.option(
    "--merged",
    is_flag=True,
    help="With the adapter worked into the weights: as `loadkit merge` does it, shard by shard.",
)
@json_option("Print what was done as JSON.")
@model_options
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
def command(
    model: str | None,
    profile: str | None,
    recipe: str | None,
    out: Path,
    merged: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Load MODEL, audit it, and save it in the folder OUT, with its tokenizer and a manifest.

    With --merged, MODEL is an adapter, and OUT gets the whole model; nothing of it is loaded then."""
    if merged:
        if model is None or profile or recipe:
            raise LoadkitError(
                "--merged takes an adapter, and neither a profile nor a recipe: what is stored is merged as it is\n"
                "    fix: `loadkit save --merged ADAPTER OUT`"
            )
        run_merge(model, out, None, False, as_json, options)
        return
    from loadkit.cli.terminal import working
    from loadkit.loading.load import load

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LoadkitError(
            f"{str(out)!r} is there already, and isn't an empty folder\n    fix: name another folder"
        )
    with working(f"planning {model or recipe}") as progress:
        loaded = load(model, profile, recipe=recipe, progress=progress, **chosen(options))
        if read_topology().rank:
            return  # rank 0 saves
        progress("saving")
        loaded.save_pretrained(out)
        progress("hashing the files")
        manifest = loaded.manifest()
        manifest.save(out / MANIFEST)
    if as_json:
        print_json({"folder": str(out), "plan": loaded.plan, "report": loaded.report})
    else:
        click.echo(f"saved in {out}, with {MANIFEST}")

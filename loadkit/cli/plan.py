"""`loadkit plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loadkit.cache.atomic_write import write_whole
from loadkit.cli.json_output import json_option, print_json, print_whole
from loadkit.cli.options import FILE, chosen, engine_option, model_options
from loadkit.errors import LoadkitError
from loadkit.planning.pipeline import make_plan

__all__ = ["command"]


@click.command("plan")
@json_option("Print the plan as JSON, which `loadkit.Plan.from_json` reads.")
@click.option(
    "--kwargs", "kwargs_only", is_flag=True, help="Print only what from_pretrained would get, as JSON."
)
@click.option("--asked", is_flag=True, help="List everything that was asked, and what became of each.")
@click.option("-o", "--output", type=FILE, help="Write the JSON to a file too.")
@click.option(
    "--machine",
    help="Plan for such machines instead of this one: 8xH100-80GB, cpu-64GB, 8x80GB-sm90; +512GB after it tells the host's memory.",
)
@click.option(
    "--nodes", type=click.IntRange(min=1), help="How many such machines; each accelerator is one process."
)
@engine_option
@model_options
def command(
    model: str | None,
    profile: str | None,
    recipe: str | None,
    machine: str | None,
    nodes: int | None,
    engine: str | None,
    as_json: bool,
    kwargs_only: bool,
    asked: bool,
    output: Path | None,
    **options: Any,
) -> None:
    """Print what would be loaded from MODEL (a folder, a Hub id, an adapter), who decided it, and why.

    Without MODEL, the one that --recipe names."""
    from loadkit.cli.terminal import errors

    made = make_plan(
        model,
        profile,
        recipe=recipe,
        machine=machine,
        nodes=nodes,
        engine=engine,
        progress=lambda step: errors.print(f"{step} …", style="dim"),
        **chosen(options),
    )
    if output is not None:
        try:
            write_whole(output, f"{made.to_json()}\n".encode())
        except OSError as error:
            raise LoadkitError(f"the plan can't be written to {str(output)!r}: {error.strerror}") from error
    if as_json:
        print_whole(made.to_json())
    elif kwargs_only:
        print_json(made.kwargs)
    else:
        from loadkit.cli.terminal import console
        from loadkit.schema.plan_text import asked_table, plan_table

        console.print(asked_table(made) if asked else plan_table(made))

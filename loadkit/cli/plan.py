"""`loadkit plan`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from loadkit.cache.atomic_write import write_whole
from loadkit.cli import completion
from loadkit.cli.grouped_help import GroupedCommand
from loadkit.cli.json_output import json_option, print_json, print_whole
from loadkit.cli.options import FILE, chosen, engine_option, model_options, profile_word, refuse_nothing
from loadkit.errors import LoadkitError
from loadkit.planning.pipeline import make_plan
from loadkit.schema.plans import Plan

__all__ = ["command"]

EXAMPLES = (
    ("loadkit plan ./my-mistral qlora", "whether it fits, and in which form"),
    ("loadkit plan ./my-mistral qlora --why", "who decided what, why, and instead of what"),
    ("loadkit plan ./my-mistral qlora --why memory", "the parts of the memory that it takes"),
    (
        "loadkit plan ./my-mistral qlora --machine 8xH100-80GB --engine fsdp2",
        "the same on machines that aren't here",
    ),
)
"""Commands, and what each is for."""

EVERY = ""
"""What `--why` is given where no stage is named."""


@click.command("plan", cls=GroupedCommand, examples=EXAMPLES)
@click.option(
    "--why",
    is_flag=False,
    flag_value=EVERY,
    metavar="[STAGE]",
    shell_complete=completion.stages,
    help="Tell who decided each stage, why, and instead of what; with a stage (or memory, shortcuts), that one alone.",
)
@click.option("-v", "--verbose", is_flag=True, help="The same as --why.")
@json_option("Print the plan as JSON, which `loadkit.Plan.from_json` reads.")
@click.option(
    "--kwargs", "kwargs_only", is_flag=True, help="Print only what from_pretrained would get, as JSON."
)
@click.option("--asked", is_flag=True, help="List everything that was asked, and what became of each.")
@click.option("-o", "--output", type=FILE, help="Write the JSON to a file too.")
@click.option(
    "--machine",
    shell_complete=completion.machines,
    help="Plan for such machines instead of this one: 8xH100-80GB, cpu-64GB, 8x80GB-sm90; +512GB after it tells the host's memory.",
)
@click.option(
    "--nodes", type=click.IntRange(min=1), help="How many such machines; each accelerator is one process."
)
@engine_option
@model_options
@profile_word
def command(
    model: str | None,
    profile: str | None,
    recipe: str | None,
    machine: str | None,
    nodes: int | None,
    engine: str | None,
    why: str | None,
    verbose: bool,
    as_json: bool,
    kwargs_only: bool,
    asked: bool,
    output: Path | None,
    **options: Any,
) -> None:
    """Print what would be loaded from MODEL (a folder, a Hub id, an adapter) with PROFILE: whether it fits,
    in which form, and what will be quick or slow; with --why, who decided it.

    Without MODEL, the one that --recipe names."""
    from loadkit.cli.terminal import errors

    model, profile, why = _sorted_out(model, profile, why)
    refuse_nothing(model, recipe)
    made = make_plan(
        model,
        profile,
        recipe=recipe,
        machine=machine,
        nodes=nodes,
        engine=engine,
        progress=lambda step: errors.print(f"{step} …", style="dim", soft_wrap=True),
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
        _print(made, asked, EVERY if verbose and why is None else why)


def _print(plan: Plan, asked: bool, why: str | None) -> None:
    from loadkit.cli.terminal import show
    from loadkit.schema.plan_text import asked_table, plan_table, why_row
    from loadkit.schema.rendering import rows_table

    if asked:
        show(asked_table(plan))
    elif why:
        show(rows_table([why_row(plan, why)]))
    else:
        show(plan_table(plan, why=why is not None))


def _sorted_out(
    model: str | None, profile: str | None, why: str | None
) -> tuple[str | None, str | None, str | None]:
    """`--why` takes the word behind it, which may be the model that was meant: a path, or the only word."""
    if why and (os.path.exists(why) or not why.replace("_", "").replace(".", "").isalnum() or model is None):
        return why, model if profile is None else profile, EVERY
    return model, profile, why

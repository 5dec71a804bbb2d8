"""`loadkit load`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loadkit.cli.grouped_help import GroupedCommand
from loadkit.cli.json_output import json_option, print_json
from loadkit.cli.options import FILE, chosen, engine_option, model_options, profile_word, refuse_nothing
from loadkit.errors import LoadkitError
from loadkit.facts.machine.topology import read_topology

__all__ = ["command"]

EXAMPLES = (
    ("loadkit load ./my-mistral qlora", "load, prove, report"),
    ("loadkit load ./my-mistral inference --generate 'The oven'", "try it"),
    ("loadkit load ./my-mistral qlora --manifest run.json", "write down what it takes to repeat it"),
    ("loadkit load --replay run.json", "the same again, or what differs"),
)
"""Commands, and what each is for."""


@click.command("load", cls=GroupedCommand, examples=EXAMPLES)
@click.option(
    "--save",
    type=click.Path(file_okay=False, path_type=Path),
    help="Save the model and its tokenizer in a folder.",
)
@click.option("--generate", metavar="TEXT", help="Continue TEXT and print the result.")
@click.option("--max-new-tokens", default=40, show_default=True, help="With --generate: how far.")
@click.option(
    "--strict/--no-strict",
    default=True,
    show_default=True,
    help="Whether a finding of the audit fails the load.",
)
@click.option("--manifest", type=FILE, help="Write down what was loaded, to repeat it.")
@click.option(
    "--replay",
    type=click.Path(dir_okay=False),
    help="Load what a manifest says again, or say what differs. Without MODEL and other options.",
)
@click.option(
    "--asked",
    is_flag=True,
    help="List everything that was asked, what was planned of it, and what the loaded model has.",
)
@click.option(
    "-v",
    "--why",
    "why",
    is_flag=True,
    help="With who decided each stage of the plan, why, and instead of what.",
)
@json_option("Print plan and report as JSON.")
@engine_option
@model_options
@profile_word
def command(
    model: str | None,
    profile: str | None,
    recipe: str | None,
    save: Path | None,
    generate: str | None,
    max_new_tokens: int,
    strict: bool,
    manifest: Path | None,
    replay: str | None,
    asked: bool,
    why: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Load MODEL (a folder, a Hub id, an adapter) with PROFILE, audit it against the plan, and report.

    Without MODEL, the one that --recipe names."""
    from loadkit.cli.terminal import show, working
    from loadkit.loading.load import load
    from loadkit.schema.plan_text import asked_table, plan_table
    from loadkit.schema.report_text import report_table

    refuse_nothing(model, recipe, replay)
    with working(f"planning {model or recipe or replay}") as progress:
        loaded = load(
            model, profile, recipe=recipe, replay=replay, strict=strict, progress=progress, **chosen(options)
        )
    if read_topology().rank:
        return  # rank 0 prints, and saves
    if as_json:
        print_json({"plan": loaded.plan, "report": loaded.report})
    else:
        readings = loaded.report.readings
        planned = asked_table(loaded.plan, readings) if asked else plan_table(loaded.plan, why=why)
        show(planned, report_table(loaded.report))
    if generate is not None:
        click.echo(err=as_json)
        click.echo(_continued(loaded, generate, max_new_tokens), err=as_json)
    if manifest is not None:
        with working("hashing the files") as progress:
            loaded.manifest(progress).save(manifest)
        click.echo(f"wrote {manifest}", err=as_json)
    if save is not None:
        loaded.save_pretrained(save)
        click.echo(f"saved in {save}", err=as_json)


def _continued(loaded: Any, text: str, max_new_tokens: int) -> str:
    if loaded.tokenizer is None or not loaded.model.can_generate():
        raise LoadkitError(
            f"--generate needs a tokenizer and a model that generates; {loaded.plan.model_class.model_class} was loaded "
            f"with {loaded.plan.processing.kind if loaded.tokenizer is None else 'no way to generate'}"
        )
    import torch

    loaded.model.eval()
    inputs = loaded.tokenizer(text, return_tensors="pt", return_token_type_ids=False).to(loaded.model.device)
    with torch.inference_mode():
        output = loaded.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return str(loaded.tokenizer.decode(output[0], skip_special_tokens=True))

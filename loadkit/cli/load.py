"""`loadkit load`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loadkit.cli.json_output import json_option, print_json
from loadkit.cli.options import FILE, chosen, engine_option, model_options
from loadkit.errors import LoadkitError
from loadkit.facts.machine.topology import read_topology

__all__ = ["command"]


@click.command("load")
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
@json_option("Print plan and report as JSON.")
@engine_option
@model_options
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
    as_json: bool,
    **options: Any,
) -> None:
    """Load MODEL (a folder, a Hub id, an adapter), audit it against the plan, and report.

    Without MODEL, the one that --recipe names."""
    from loadkit.cli.terminal import console, working
    from loadkit.loading.load import load
    from loadkit.schema.plan_text import asked_table, plan_table
    from loadkit.schema.report_text import report_table

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
        console.print(asked_table(loaded.plan, readings) if asked else plan_table(loaded.plan))
        console.print()
        console.print(report_table(loaded.report))
    if generate is not None:
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

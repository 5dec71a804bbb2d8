"""`loadkit demo`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from loadkit.cli import completion
from loadkit.cli.demo_run import DEMO_ARCHITECTURES
from loadkit.cli.grouped_help import GroupedCommand

__all__ = ["command"]


EXAMPLES = (
    ("loadkit demo", "a few training steps of a small Mistral, from nothing"),
    ("loadkit demo --keep ./my-mistral", "and its checkpoint in a folder of yours"),
    ("loadkit demo --arch gemma3 --keep ./my-gemma3", "one that takes images"),
)
"""Commands, and what each is for."""


@click.command("demo", cls=GroupedCommand, examples=EXAMPLES)
@click.option(
    "-p",
    "--profile",
    default="qlora",
    shell_complete=completion.profiles,
    show_default=True,
    help="The profile to load it with.",
)
@click.option(
    "--arch",
    type=click.Choice(sorted(DEMO_ARCHITECTURES)),
    default="mistral",
    show_default=True,
    help="What to make.",
)
@click.option("--steps", default=8, show_default=True, help="How many training steps.")
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Put the checkpoint in this folder too, and load it from there: something to try all else on.",
)
def command(profile: str, arch: str, steps: int, keep: Path | None) -> None:
    """Make a small real checkpoint (once, in the cache folder), load it with a profile, report, and train a
    few steps."""
    # Read when torch is imported: idle OpenMP threads spin by default, which slows a shared machine down.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from loadkit.cache.cache_folder import cache_folder
    from loadkit.cli.demo_run import demo_checkpoint, kept, train_a_few_steps
    from loadkit.cli.terminal import show, working
    from loadkit.loading.known_noise import without_known_noise
    from loadkit.loading.load import load
    from loadkit.schema.plan_text import plan_table
    from loadkit.schema.report_text import report_table

    with without_known_noise():  # making the checkpoint imports the same libraries
        with working("looking for the demo's checkpoint") as progress:
            folder = demo_checkpoint(arch, cache_dir=cache_folder(), progress=progress)
        if keep is not None:
            folder = kept(folder, keep)
        with working("planning") as progress:
            loaded = load(folder, profile, progress=progress)
    show(plan_table(loaded.plan), report_table(loaded.report))
    if not loaded.report.measurements.trainable or not loaded.plan.preparation.training:
        click.echo("\nThis profile is for inference, so nothing is trained.")
        _what_next(folder, profile)
        return
    click.echo(f"\nTraining {steps} steps on the demo's chats:")
    losses = train_a_few_steps(
        *loaded, steps=steps, on_step=lambda step, loss: click.echo(f"  step {step}  loss {loss:.3f}")
    )
    if losses:
        click.echo(f"The loss went from {losses[0]:.3f} to {losses[-1]:.3f}.")
    _what_next(folder, profile)


def _what_next(folder: Path, profile: str) -> None:
    click.echo("\nThe same in Python, with this checkpoint or one of yours:\n")
    click.echo(f'    model, tokenizer = loadkit.load("{folder}", profile="{profile}")')
    click.echo("\nand on the command line; who decided what, and why:\n")
    click.echo(f"    loadkit plan {folder} {profile} --why")

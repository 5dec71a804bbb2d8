"""`loadkit demo`."""

from __future__ import annotations

import os

import click

from loadkit.cli.demo_run import DEMO_ARCHITECTURES

__all__ = ["command"]


@click.command("demo")
@click.option("-p", "--profile", default="qlora", show_default=True, help="The profile to load it with.")
@click.option(
    "--arch",
    type=click.Choice(sorted(DEMO_ARCHITECTURES)),
    default="mistral",
    show_default=True,
    help="What to make.",
)
@click.option("--steps", default=8, show_default=True, help="How many training steps.")
def command(profile: str, arch: str, steps: int) -> None:
    """Make a small real checkpoint (once, in the cache folder), load it with a profile, report, and train a
    few steps."""
    # Read when torch is imported: idle OpenMP threads spin by default, which slows a shared machine down.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from loadkit.cache.cache_folder import cache_folder
    from loadkit.cli.demo_run import demo_checkpoint, train_a_few_steps
    from loadkit.cli.terminal import console, working
    from loadkit.loading.load import load
    from loadkit.schema.plan_text import plan_table
    from loadkit.schema.report_text import report_table

    with working("looking for the demo's checkpoint") as progress:
        folder = demo_checkpoint(arch, cache_dir=cache_folder(), progress=progress)
    with working("planning") as progress:
        loaded = load(folder, profile, progress=progress)
    console.print(plan_table(loaded.plan))
    console.print()
    console.print(report_table(loaded.report))
    if not loaded.report.measurements.trainable or not loaded.plan.preparation.training:
        console.print("\nThis profile is for inference, so nothing is trained.")
        return
    console.print(f"\nTraining {steps} steps on the demo's chats:")
    losses = train_a_few_steps(
        *loaded, steps=steps, on_step=lambda step, loss: console.print(f"  step {step}  loss {loss:.3f}")
    )
    if losses:
        console.print(f"The loss went from {losses[0]:.3f} to {losses[-1]:.3f}.")
    console.print("\nThe same with a checkpoint of yours, in Python:\n")
    console.print(f'    model, tokenizer = loadkit.load("{folder}", profile="{profile}")', soft_wrap=True)
    console.print("\nand on the command line:\n")
    console.print(f"    loadkit load {folder} --profile {profile}", soft_wrap=True)

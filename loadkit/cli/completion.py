"""What a shell completes: folders and weight files, profiles, stages, machines, plugins."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from loadkit.facts.machine.named_machines import KNOWN
from loadkit.hooks.manager import default_manager
from loadkit.schema.stages import STAGES

__all__ = ["machines", "models", "plugins", "profiles", "stages"]

WEIGHTS = (".gguf", ".safetensors")
"""Files that can be named in a checkpoint's place."""

MORE_TO_WHY = ("memory", "shortcuts")
"""What --why takes beside the stages."""


def models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Folders, as the shell lists them, and files that a checkpoint can be."""
    return [CompletionItem(incomplete, type="dir"), *_files(incomplete, WEIGHTS)]


def profiles(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The profiles that are known, with what each is for, and profile files."""
    known = default_manager().profiles.found
    named = [
        CompletionItem(name, help=profile.description)
        for name, (_, profile) in sorted(known.items())
        if name.startswith(incomplete)
    ]
    return [*named, *_files(incomplete, (".toml",))]


def stages(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The stages of a plan, and what else --why tells of."""
    return _named([*(stage.name for stage in STAGES), *MORE_TO_WHY], incomplete)


def machines(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Accelerators by name, behind the count where one was typed."""
    count, times, _ = incomplete.partition("x")
    before = f"{count}x" if times and count.isdigit() else ""
    return _named([f"{before}{name}" for name in KNOWN], incomplete)


def plugins(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The plugins that are installed."""
    return _named([plugin.name for plugin in default_manager().plugins], incomplete)


def _named(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _files(incomplete: str, endings: tuple[str, ...]) -> list[CompletionItem]:
    """Files with one of these endings whose path begins so, written as it was begun."""
    folder, slash, beginning = incomplete.rpartition("/")
    try:
        found = sorted(Path(folder + slash or ".").expanduser().iterdir())
    except OSError:
        return []
    return [
        CompletionItem(f"{folder}{slash}{file.name}")
        for file in found
        if file.name.startswith(beginning) and file.name.endswith(endings)
    ]

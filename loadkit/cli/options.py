"""Command-line flags made from the declared options, so that a plugin's option is a flag without more ado."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from loadkit.cli import completion
from loadkit.cli.grouped_help import StageOption
from loadkit.facts.machine.engines import ENGINES
from loadkit.hooks.manager import default_manager
from loadkit.request.options import TYPES, Option
from loadkit.text.kinds import kinds_text

__all__ = [
    "FILE",
    "chosen",
    "engine_option",
    "model_options",
    "options_named",
    "profile_word",
    "refuse_nothing",
]

FILE = click.Path(dir_okay=False, path_type=Path)
"""The type of an option that names a file."""

engine_option = click.option(
    "--engine",
    type=click.Choice(ENGINES),
    help="What spreads the model over the processes, where the launcher doesn't say.",
)


if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # generic from click 8.2 on


class Plain(ParamType):
    """A value of one of the plain types: as it is written, or as JSON where it is a list or a mapping."""

    def __init__(self, type_name: str) -> None:
        self.name = type_name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Turn the text into the option's type, or fail with what it takes."""
        if not isinstance(value, str):
            return value
        read: Any = value
        if self.name.startswith("bool or") and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if value[:1] in ("[", "{"):
            try:
                read = msgspec.json.decode(value)
            except msgspec.DecodeError as error:
                self.fail(f"{value!r} isn't JSON: {error}", param, ctx)
        elif self.name == "list":
            read = [part.strip() for part in value.split(",") if part.strip()]
        try:
            return msgspec.convert(read, TYPES[self.name], strict=False)
        except msgspec.ValidationError:
            self.fail(f"{value!r} isn't {kinds_text(self.name)}", param, ctx)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add MODEL, --profile, --recipe and a flag for every declared option to a command."""
    command = _flags(lambda name: True)(command)
    command = click.option(
        "-r",
        "--recipe",
        type=click.Path(dir_okay=False),
        help="A training recipe (YAML) of TRL, the alignment-handbook, open-r1, axolotl or LLaMA-Factory.",
    )(command)
    command = click.option(
        "-p",
        "--profile",
        "profile",
        shell_complete=completion.profiles,
        help="A profile's name, or a profile file (.toml).",
    )(command)
    return click.argument("model", metavar="[MODEL]", required=False, shell_complete=completion.models)(
        command
    )


def profile_word(command: Callable[..., Any]) -> Callable[..., Any]:
    """Take the profile from the second word too, as in Python; the two mustn't contradict each other."""

    @wraps(command)
    def either(*args: Any, profile: str | None, word: str | None, **more: Any) -> Any:
        if word is not None and profile not in (None, word):
            raise click.UsageError(
                f"two profiles were given, {word!r} and --profile {profile!r}: leave one of them out"
            )
        return command(*args, profile=word if profile is None else profile, **more)

    return click.argument("word", metavar="[PROFILE]", required=False, shell_complete=completion.profiles)(
        either
    )


def refuse_nothing(model: str | None, *others: str | None) -> None:
    """Refuse a command line that names nothing to load.

    Raises:
        UsageError: neither a model nor anything else that names one was given.
    """
    if model is None and not any(others):
        raise click.UsageError(
            "MODEL is missing: a folder, a Hub id, or an adapter. `loadkit demo --keep ./my-mistral` makes a folder "
            "to try things on."
        )


def options_named(names: Collection[str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What adds a flag for each of these declared options to a command."""
    return _flags(lambda name: name in names)


def _flags(wanted: Callable[[str], bool]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        seen: set[str] = set()
        for plugin, option in sorted(
            default_manager().options.found.values(), key=lambda f: (f[1].stage, f[1].name), reverse=True
        ):
            if option.name not in seen and wanted(option.name):
                seen.add(option.name)
                command = _flag(option, plugin)(command)
        return command

    return add


def chosen(options: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given."""
    return {name: value for name, value in options.items() if value is not None}


_option = partial(click.option, cls=StageOption)


def _flag(option: Option, plugin: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    dashed = option.name.replace("_", "-")
    spellings = [f"--{alias.replace('_', '-')}" for alias in option.aliases]
    text = f"{option.help}  [{plugin}]"
    if option.type == "bool":
        return _option(f"--{dashed}/--no-{dashed}", option.name, stage=option.stage, default=None, help=text)
    if option.type.startswith("bool or"):
        return _switch_or_value(option, text)
    kind: Any = click.Choice(option.choices) if option.choices else Plain(option.type)
    return _option(
        f"--{dashed}",
        *spellings,
        option.name,
        stage=option.stage,
        type=kind,
        default=None,
        metavar=None if option.choices else option.type.split()[0].upper(),
        help=text,
    )


def _switch_or_value(option: Option, text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--name` for true, `--no-name` for false, `--name VALUE` for more."""
    dashed = option.name.replace("_", "-")
    flag = partial(_option, stage=option.stage, default=None, type=Plain(option.type))
    off = flag(f"--no-{dashed}", option.name, flag_value="false", help="turns it off")
    on = flag(f"--{dashed}", option.name, is_flag=False, flag_value="true", metavar="[VALUE]", help=text)
    return lambda command: on(off(command))

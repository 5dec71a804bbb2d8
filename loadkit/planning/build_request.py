"""From options, profile and recipe to one request that keeps who asked for what."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import msgspec

from loadkit.errors import Problem
from loadkit.hooks.manager import PluginManager, default_manager
from loadkit.request.options import ask
from loadkit.request.profiles import find_profile
from loadkit.request.recipes import Recipe, options_for, read_recipe
from loadkit.schema.claims import Strength
from loadkit.schema.request import Asked, Request
from loadkit.text.kinds import kind_of

__all__ = [
    "NOT_UTF8",
    "fit_to_checkpoint",
    "make_request",
    "no_source",
    "read_once",
    "read_recipe_file",
    "several_plugins",
]

_problem = partial(Problem, "request", "loadkit")

NOT_UTF8 = "not-utf8-name"
"""The code of what can't be written down: nothing is planned with it."""


def make_request(
    source: str | os.PathLike[str] | None,
    profile: str | None,
    options: Mapping[str, Any],
    manager: PluginManager,
    recipe: str | os.PathLike[str] | Recipe | None = None,
) -> tuple[Request, list[Problem]]:
    """Check the options and merge them over the recipe's and the profile's, keeping who asked for what."""
    yours, problems = _asked(options, manager, "you")
    layers = [yours]
    read: Recipe | None = None
    if recipe is not None:
        read, found = read_once(recipe, manager)
        problems += found
    if read is not None:
        named = _named(read)
        theirs, unfit = _asked(read.options, manager, named)
        layers.append(theirs)
        problems += [*unfit, *(_note(named, note) for note in read.notes)]
    if not (source is None or _is_name(source)):
        problems.append(_not_a_source(source))
        source = None
    if not (profile is None or _is_name(profile)):
        problems.append(_not_a_profile(profile))
        profile = None
    profile = os.fspath(profile) if profile is not None else None
    if profile:
        wanted, found = _profile(profile, manager)
        layers.append(wanted)
        problems += found
    request = Request(
        source=os.fspath(source) if source is not None else read.source if read else "",
        profile=profile or "",
        options={name: asked for layer in reversed(layers) for name, asked in layer.items()},
        hidden=tuple(
            asked
            for i, layer in enumerate(layers)
            for name, asked in layer.items()
            if any(name in stronger for stronger in layers[:i])
        ),
        recipe=read.path if read else "",
        trainer_keys=tuple(sorted(read.trainer)) if read else (),
    )
    return request, [*problems, *_unwritable(request)]


def _unwritable(request: Request) -> Iterator[Problem]:
    """What no plan could be written with: texts with half a character in them, as paths have that aren't
    UTF-8."""
    given = {"the source": request.source, "the recipe": request.recipe, "the profile": request.profile}
    given |= {name: asked.value for name, asked in request.options.items()}
    for name, value in given.items():
        if not _writable(value):
            yield _problem(
                NOT_UTF8,
                f"{name} is {value!r}, which isn't UTF-8: no plan or manifest could hold it",
                "rename the file or folder that it names, or correct it",
            )


def _writable(value: object) -> bool:
    try:
        msgspec.json.encode(value, enc_hook=str)
    except UnicodeEncodeError:
        return False
    return True


def read_once(
    recipe: str | os.PathLike[str] | Recipe | None, manager: PluginManager
) -> tuple[Recipe | None, list[Problem]]:
    """A recipe from its file, or as it is; and what is wrong with it."""
    if recipe is None or isinstance(recipe, Recipe):
        return recipe, []
    return read_recipe(recipe, manager.dialects)


def read_recipe_file(
    path: str | os.PathLike[str], *, plugin_manager: PluginManager | None = None
) -> tuple[Recipe | None, list[Problem]]:
    """Read a recipe and translate its loading keys. Public as `loadkit.read_recipe`.

    Parameters:
        path: a YAML file.
        plugin_manager: the plugins whose dialects are known beside loadkit's own; all installed ones by
            default.

    Returns:
        The recipe, None where it can't be read; and what is wrong with it.
    """
    return read_once(path, plugin_manager or default_manager())


def fit_to_checkpoint(
    request: Request,
    recipe: Recipe | None,
    model_type: str,
    config: Mapping[str, Any],
    manager: PluginManager,
) -> tuple[Request, list[Problem]]:
    """Add what the recipe's stack does for this model: your options still come first, the profile's last."""
    if recipe is None or not recipe.by_model:
        return request, []
    named = _named(recipe)
    wanted, notes = options_for(recipe.by_model, recipe.options, model_type, config)
    theirs, problems = _asked(wanted, manager, named)
    options, hidden = dict(request.options), list(request.hidden)
    for name, asked in theirs.items():
        present = options.get(name)
        if present is not None and present.demanded:
            hidden = [each for each in hidden if (each.name, each.by) != (name, named)] + [asked]
            continue
        if present is not None and present.by != named:
            hidden.append(present)
        options[name] = asked
    fitted = msgspec.structs.replace(request, options=options, hidden=tuple(hidden))
    return fitted, [*problems, *(_note(named, note) for note in notes)]


def _named(recipe: Recipe) -> str:
    return f"recipe {os.path.basename(recipe.path)!r}"


def _asked(
    options: Mapping[str, Any], manager: PluginManager, by: str
) -> tuple[dict[str, Asked], list[Problem]]:
    """The options of the caller ("you"), a recipe or a profile, checked."""
    strength = Strength.YOU if by == "you" else Strength.PROFILE
    return ask(options, manager.options.found, manager.options.conflicts, by=by, strength=strength)


def _is_name(given: object) -> bool:
    return isinstance(given, str | os.PathLike)


def _not_a_source(given: object) -> Problem:
    """A source that is neither a name nor a path: a model that is loaded already, several at once."""
    return _problem(
        "no-source",
        f"you gave {kind_of(given)} as the source; a source is a folder, a Hub id or an adapter, as a text or a path",
        "give one name; several adapters over a base go into adapter={name: source}",
    )


def _not_a_profile(given: object) -> Problem:
    """A profile that is no name: options of a dict are given as such."""
    found = f"you gave {kind_of(given)} as the profile; a profile is a name, or the path of a .toml file"
    if isinstance(given, Mapping):
        some = ", ".join(f"{name}=…" for name in list(given)[:3])
        return _problem(
            "bad-profile", found, f"give its fields as options: {some or 'name=…'}, or plan(source, **fields)"
        )
    return _problem(
        "bad-profile", found, "`loadkit profiles` lists the names; options are given by their names"
    )


def _profile(name: str, manager: PluginManager) -> tuple[dict[str, Asked], list[Problem]]:
    """A profile's options, checked."""
    profiles = manager.profiles
    if name in profiles.conflicts:
        return {}, [several_plugins("request", "profile", name, profiles.conflicts)]
    wanted, found = find_profile(name, profiles.found)
    theirs, unfit = _asked(wanted, manager, f"profile {name!r}")
    return theirs, [*found, *unfit]


def _note(recipe: str, note: str) -> Problem:
    remedy = "nothing need be done; an option of your own decides otherwise"
    return _problem("recipe-note", f"{recipe}: {note}", remedy, severity="note")


def no_source(request: Request) -> Problem:
    asked = (
        f"recipe {request.recipe!r} names no model"
        if request.recipe
        else "neither a model nor a recipe was given"
    )
    return _problem(
        "no-source", asked, "give a folder or a Hub id as the source, or model_name_or_path in the recipe"
    )


def several_plugins(stage: str, what: str, name: str, conflicts: Mapping[str, tuple[str, ...]]) -> Problem:
    plugins = conflicts[name]
    return Problem(
        stage,
        "loadkit",
        "conflict",
        f"{what} {name!r} is provided by several plugins: {', '.join(plugins)}",
        f"leave all but one out, for example LOADKIT_DISABLE={','.join(plugins[1:])}",
    )

"""From a recipe's file to loadkit's options."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import msgspec

from loadkit.errors import Problem
from loadkit.request.recipes.by_model import ByModel
from loadkit.request.recipes.key_tables import Dialect, dialects_of
from loadkit.request.recipes.translate import translate
from loadkit.request.recipes.yaml_files import read_yaml

__all__ = ["Recipe", "read_recipe"]


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What a training recipe says of loading.

    Parameters:
        path: its file, or what it was made from.
        dialect: whose names it uses; the alignment-handbook's and open-r1's are TRL's.
        source: the model; "" where it names none.
        options: loadkit's options that it asks for, to their values.
        trainer: the keys that loadkit doesn't take, untouched, and those that the trainer reads too.
        shared: keys that became options and are in `trainer` nevertheless, such as gradient_checkpointing.
        notes: a line for everything that isn't translated one to one.
        by_model: options that depend on which model it is.
    """

    path: str
    dialect: str = "trl"
    source: str = ""
    options: dict[str, Any] = {}
    trainer: dict[str, Any] = {}
    shared: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    by_model: tuple[ByModel, ...] = ()


def read_recipe(
    path: str | os.PathLike[str], brought: Sequence[Dialect] = ()
) -> tuple[Recipe | None, list[Problem]]:
    """Read a recipe and translate its loading keys.

    Parameters:
        path: a YAML file.
        brought: dialects beside loadkit's own.

    Returns:
        The recipe, None where it can't be read; and what is wrong with it.
    """
    name = os.fspath(path)
    content, problems = read_yaml(name)
    recipe = None
    if content is not None:
        dialect, *others = dialects_of(content, brought)
        if others:
            names = " or ".join(sorted(repr(each.name) for each in (dialect, *others)))
            message = f"it could be of {names}, by the keys that mark them"
            remedy = "leave out all plugins but the one whose recipe it is: LOADKIT_DISABLE=NAME"
            problems.append(Problem("request", "loadkit", "conflict", message, remedy))
        found = translate(content, dialect)
        problems += found.problems
        recipe = Recipe(
            path=name,
            dialect=dialect.name,
            source=found.source,
            options=found.options,
            trainer=found.trainer,
            shared=tuple(sorted(found.shared)),
            notes=tuple(found.notes),
            by_model=tuple(found.by_model),
        )
    return recipe, [
        msgspec.structs.replace(problem, message=f"recipe {name!r}: {problem.message}")
        for problem in problems
    ]

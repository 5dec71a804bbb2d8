"""Apply a table to a recipe: a small interpreter, without a word about any one dialect."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

from loadkit.errors import Problem
from loadkit.recipes.reading import recipe_problem
from loadkit.recipes.tables import Dialect, Key

__all__ = ["Translation", "translate"]

NEAR = 0.8
"""How alike (by difflib's ratio) a key must be to a loading key to count as a misspelling of it."""

FREEZING = ("adapter", "load_in_4bit", "load_in_8bit")
"""Options under which the base's own weights don't train."""

NOTHING = (None, "", "null", "None", "none", "~")
"""Values that ask for nothing, in whatever way people write them."""


class Translation(NamedTuple):
    """What a table makes of a recipe; the fields are `Recipe`'s."""

    source: str
    options: dict[str, Any]
    trainer: dict[str, Any]
    shared: set[str]
    notes: list[str]
    problems: list[Problem]


def translate(path: str, content: Mapping[str, Any], dialect: Dialect) -> Translation:
    """Turn a recipe's loading keys into options.

    Parameters:
        path: the recipe's file, for messages.
        content: its keys and values.
        dialect: the table.
    """
    found = Translation(str(content.get(dialect.source) or ""), {}, {}, set(), [], [])
    given_by: dict[str, str] = {}
    for key, value in content.items():
        if key == dialect.source:
            continue
        meaning = dialect.keys.get(key)
        if meaning is None:
            _foreign(path, key, value, dialect, found)
            continue
        if meaning.shared:
            found.trainer[key] = value
        if value in NOTHING or _among(value, meaning.ignore):
            continue
        if meaning.needs and not any(_is_set(content.get(needed)) for needed in meaning.needs):
            found.notes.append(f"{key} has no effect without {' or '.join(meaning.needs)}, and is left out")
            continue
        for option, plain in _options(path, key, value, meaning, found).items():
            settled = _settled(found.options[option], plain) if option in given_by else plain
            if settled is None:
                found.problems.append(
                    _twice(path, option, given_by[option], key, found.options[option], plain)
                )
                continue
            found.options[option], given_by[option] = settled, key
            if meaning.shared:
                found.shared.add(key)
    _contradictions(path, content, dialect, found)
    _defaults(dialect, found)
    _frozen_dtype(content, dialect, found)
    return found


def _options(path: str, key: str, value: Any, meaning: Key, found: Translation) -> dict[str, Any]:
    """The options that one key sets."""
    if meaning.inert:
        found.notes.append(f"{key}: {value}: {meaning.inert}")
        return {}
    if meaning.note:
        found.notes.append(f"{key}: {value}: {meaning.note}")
    if meaning.fields:
        return _from_fields(path, key, value, meaning, found)
    text = _text(value)
    if text in meaning.sets:
        return dict(meaning.sets[text])
    if text in meaning.values:
        return {meaning.option: meaning.values[text]}
    if meaning.only or not meaning.option:
        known = [*meaning.sets, *meaning.values]
        found.problems.append(
            recipe_problem(
                "recipe-bad-value",
                path,
                f"{key}: {value} has no counterpart here",
                f"{key} can be {', '.join(known)}; leave it out to have it decided",
            )
        )
        return {}
    if meaning.number and isinstance(value, str):
        value = _number(value)
    if meaning.split and isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    return {meaning.option: (not value) if meaning.invert else value}


def _from_fields(path: str, key: str, value: Any, meaning: Key, found: Translation) -> dict[str, Any]:
    if not isinstance(value, dict):
        found.problems.append(
            recipe_problem(
                "recipe-bad-value",
                path,
                f"{key}: {value!r} isn't a mapping",
                f"give {key} fields such as {', '.join(meaning.fields)}",
            )
        )
        return {}
    options: dict[str, Any] = {}
    for field, item in value.items():
        if field in meaning.fields:
            options[meaning.fields[field]] = item
        elif "*" in meaning.fields:
            options[field] = item
        else:
            found.notes.append(f"{key}.{field} has no counterpart here, and is left to the trainer")
    return {option: item for option, item in options.items() if item not in NOTHING}


def _foreign(path: str, key: str, value: Any, dialect: Dialect, found: Translation) -> None:
    """A key that isn't one of loading: the trainer's, or a misspelling."""
    if key in dialect.untranslated and _is_set(value):
        found.problems.append(
            recipe_problem(
                "recipe-untranslated",
                path,
                f"{key} changes what is loaded, and isn't translated",
                dialect.untranslated[key],
                severity="warning",
            )
        )
    elif key not in dialect.trainer and key not in dialect.untranslated:
        near = difflib.get_close_matches(key, [dialect.source, *dialect.keys], n=1, cutoff=NEAR)
        if near:
            found.problems.append(
                recipe_problem(
                    "recipe-misspelt-key",
                    path,
                    f"{key!r} is no key of {dialect.name}'s recipes, and looks like {near[0]!r}",
                    f"write {near[0]}, or rename it if it is meant for something else",
                )
            )
            return
    found.trainer[key] = value


def _contradictions(path: str, content: Mapping[str, Any], dialect: Dialect, found: Translation) -> None:
    for wrong in dialect.contradictions:
        if all(_text(content.get(key)) == _text(value) for key, value in wrong.keys.items()):
            said = " and ".join(f"{key}: {_text(value)}" for key, value in wrong.keys.items())
            found.problems.append(
                recipe_problem("recipe-contradiction", path, f"{said} exclude each other", wrong.remedy)
            )


def _defaults(dialect: Dialect, found: Translation) -> None:
    for default in dialect.defaults:
        if default.when and not found.options.get(default.when):
            continue
        if any(option in found.options for option in default.unless):
            continue
        new = {k: v for k, v in default.options.items() if k not in found.options}
        for option, (other, factor) in default.multiples.items():
            if option not in found.options and isinstance(found.options.get(other), int | float):
                new[option] = found.options[other] * factor
        found.options.update(new)
        if new and default.note:
            found.notes.append(default.note)


def _frozen_dtype(content: Mapping[str, Any], dialect: Dialect, found: Translation) -> None:
    """A base that doesn't train is loaded in the dtype that the trainer computes in, unless the recipe names one.

    Where all weights train it isn't: mixed precision keeps them in the dtype that they were loaded in.
    """
    frozen = any(found.options.get(option) for option in FREEZING)
    for flag, dtype in dialect.frozen_dtypes.items():
        if content.get(flag) is True and frozen and "dtype" not in found.options:
            found.options["dtype"] = dtype
            found.shared.add(flag)
            found.notes.append(
                f"{flag}: true: the frozen base is loaded in {dtype} too, since no dtype is named"
            )


def _twice(path: str, option: str, first: str, second: str, one: Any, other: Any) -> Problem:
    return recipe_problem(
        "recipe-key-twice",
        path,
        f"{first} and {second} both settle {option}, as {one!r} and as {other!r}",
        f"keep {first} or {second}",
    )


def _is_set(value: Any) -> bool:
    return value not in NOTHING and value is not False and value != 0 and value != []


def _among(value: Any, values: tuple[Any, ...]) -> bool:
    return any(type(value) is type(other) and value == other for other in values)


def _settled(first: Any, second: Any) -> Any:
    """What two keys for one option come to; None where they disagree. "An adapter" and "this adapter" don't."""
    for one, other in ((first, second), (second, first)):
        if one == other or (other is True and isinstance(one, str)):
            return one
    return None


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _number(text: str) -> Any:
    """YAML 1.1 reads 5e-2 as text; what isn't a number is left for the option's own check."""
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() and "." not in text and "e" not in text.lower() else number

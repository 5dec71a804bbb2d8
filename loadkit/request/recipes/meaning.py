"""What one key with its value becomes: options, notes, or a problem."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

from loadkit.errors import Problem
from loadkit.request.recipes.key_tables import Key, entry

__all__ = ["NOTHING", "UNFILLED", "UNFILLED_IS", "Meant", "as_text", "meant"]

_bad_value = partial(Problem, "request", "loadkit", "recipe-bad-value")

NOTHING = (None, "", "null", "None", "none", "~")
"""Values that ask for nothing, in whatever way people write them."""

ROWS = re.compile(r"\[\d*(:\d*)?\]$")
"""How axolotl names some rows of a parameter."""

UNFILLED = re.compile(r"\$\{[^}]*\}")
"""An environment variable or a reference, which neither YAML nor the stacks fill in."""

UNFILLED_IS = "holds a place that nobody fills in: it is read as it stands"

Meant = tuple[dict[str, Any], list[str], list[Problem]]
"""Options, notes, problems."""


def as_text(value: Any) -> str:
    """A value as the tables write it: YAML's true is "true"."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def meant(key: str, value: Any, meaning: Key) -> Meant:
    """Apply a key's meaning to a value that asks for something."""
    if isinstance(value, str) and UNFILLED.search(value):
        return {}, [], [_bad(key, value, UNFILLED_IS, "write out what belongs there")]
    alone = value[0] if isinstance(value, list) and len(value) == 1 else value
    text = as_text(alone)
    if (missing := entry(meaning.without, text)) is not None:
        return {}, [f"{key}: {text}: {meaning.without[missing]}"], []
    if meaning.fields and (isinstance(value, dict) or not meaning.option):
        return _of_fields(key, value, meaning)
    notes = []
    if (noted := entry(meaning.notes, text)) is not None:
        notes.append(f"{key}: {text}: {meaning.notes[noted]}")
    if (found := entry(meaning.sets, text)) is not None:
        named = {
            k: v.replace("{}", text) if isinstance(v, str) else v for k, v in meaning.sets[found].items()
        }
        return named, notes, []
    if (found := entry(meaning.values, text)) is not None:
        return {meaning.option: meaning.values[found]}, notes, []
    if meaning.only or not meaning.option:
        known = ", ".join([*meaning.sets, *meaning.values])
        return {}, [], [_bad(key, value, "has no counterpart here", f"{key} can be {known}")]
    if meaning.number:
        number = _number(value)
        if number is None:
            return {}, [], [_bad(key, value, "isn't a number", f"give {key} a number")]
        value = number
    if meaning.split and isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if meaning.one and isinstance(value, list):
        if len(value) != 1:
            what = "names several, which has no counterpart here"
            return {}, [], [_bad(key, value, what, "name one")]
        value = value[0]
    if meaning.dots:
        value = value if isinstance(value, list) else [value]
        rows = [each for each in value if isinstance(each, str) and ROWS.search(each)]
        if rows:
            return {}, [], [_bad(key, rows[0], "names rows of a parameter", "name the whole parameter")]
        value = [re.sub(r"\.(?!\+)", r"\\.", each) if isinstance(each, str) else each for each in value]
    if meaning.format:
        value = meaning.format.replace("{}", text)
    if meaning.invert and isinstance(value, bool):
        value = not value
    return {meaning.option: {meaning.under: value} if meaning.under else value}, notes, []


def _of_fields(key: str, value: Any, meaning: Key) -> Meant:
    """The options that a mapping's fields set."""
    if not isinstance(value, dict):
        fields = ", ".join(field for field in meaning.fields if field != "*")
        return {}, [], [_bad(key, value, "isn't a mapping", f"give {key} fields such as {fields}")]
    options: dict[str, Any] = {}
    notes = []
    for field, item in value.items():
        if item in NOTHING:
            continue
        home = meaning.fields.get(field)
        if home is None and "*" not in meaning.fields:
            notes.append(f"{key}.{field} has no counterpart here, and is left to the trainer")
        elif home is None and meaning.fields["*"]:
            options.setdefault(meaning.fields["*"], {})[field] = item
        elif home is not None and home in meaning.adds.values() and isinstance(item, list):
            options[home] = [*options.get(home, ()), *item]
        else:
            options[home or str(field)] = item
        if (list_of := meaning.adds.get(field)) and isinstance(item, str):
            options[list_of] = [*options.get(list_of, ()), item]
    return options, notes, []


def _number(value: Any) -> int | float | None:
    """A finite number, None for anything else. YAML 1.1 reads 5e-2 as text."""
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            try:
                value = float(value)
            except ValueError:
                return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _bad(key: str, value: Any, what: str, remedy: str) -> Problem:
    return _bad_value(f"{key}: {as_text(value)} {what}", f"{remedy}; leave it out to have it decided")

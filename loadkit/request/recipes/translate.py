"""Apply a table to a recipe: a small interpreter, without a word about any one dialect."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple

from loadkit.errors import Problem
from loadkit.request.recipes.by_model import ByModel, joined
from loadkit.request.recipes.key_tables import Default, Dialect, Key, entry
from loadkit.request.recipes.meaning import NOTHING, UNFILLED, UNFILLED_IS, as_text, meant
from loadkit.text.suggest import nearest_name

__all__ = ["Translation", "translate"]

_problem = partial(Problem, "request", "loadkit")

NEAR = 0.8
"""How like a loading key another key must be to count as a misspelling of it (`nearest_name`'s cutoff)."""

FLAGS: Mapping[str, bool] = {
    **dict.fromkeys(("true", "t", "yes", "y", "on", "1"), True),
    **dict.fromkeys(("false", "f", "no", "n", "off", "0"), False),
}
"""What the stacks take for a flag that is on or off."""

FREEZING = ("adapter", "load_in_4bit", "load_in_8bit")
"""Options under which the base's own weights don't train."""

WITHOUT: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "adapter": ("a new adapter", (
        "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters",
        "lora_modules_to_save", "lora_exclude_modules", "lora_vision", "use_rslora", "use_dora", "init_lora_weights",
        "peft_config",
    )),
    "load_in_4bit": ("4-bit quantization", (
        "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage",
    )),
    "load_in_8bit": ("8-bit quantization", ("llm_int8_threshold", "llm_int8_has_fp16_weight")),
}  # fmt: skip
"""An option that must be true, in words, for others to matter; an existing adapter has its own settings."""


class Translation(NamedTuple):
    """What a table makes of a recipe; the fields are `Recipe`'s."""

    source: str
    options: dict[str, Any]
    trainer: dict[str, Any]
    shared: set[str]
    notes: list[str]
    problems: list[Problem]
    by_model: list[ByModel]


def translate(content: Mapping[str, Any], dialect: Dialect) -> Translation:
    """Turn a recipe's loading keys into options."""
    content = _flat(content, dialect)
    source, wrong = _source(content, dialect)
    found = Translation(source, {}, {}, set(), [], wrong, [])
    asked: list[tuple[str, Any, Key]] = []
    for key, value in content.items():
        if key == dialect.source:
            continue
        meaning = dialect.keys.get(key)
        if meaning is None:
            _foreign(key, value, dialect, found)
            continue
        if meaning.shared:
            found.trainer[key] = value
        if False in meaning.ignore or "true" in meaning.sets:
            value = FLAGS.get(str(value).lower(), value)
        if value in NOTHING or _among(value, meaning.ignore):
            continue
        if meaning.needs and not any(_there(content, needed) for needed in meaning.needs):
            found.notes.append(f"{key} has no effect without {' or '.join(meaning.needs)}, and is left out")
            continue
        if barred := [other for other in meaning.against if _there(content, other)]:
            found.notes.append(f"{key} has no effect beside {barred[0]}, and is left out")
            continue
        asked.append((key, value, meaning))
    given_by: dict[str, str] = {}
    for key, value, meaning in sorted(asked, key=lambda each: each[2].overrides):
        options, notes, problems = meant(key, value, meaning)
        found.notes.extend(notes)
        found.problems.extend(problems)
        for option, plain in options.items():
            _settle(option, plain, key, meaning, found, given_by)
    _contradictions(content, dialect, found)
    _defaults(content, dialect, found)
    _frozen_dtype(content, dialect, found)
    _without_effect(dialect, found, given_by)
    return found


def _flat(content: Mapping[str, Any], dialect: Dialect) -> dict[str, Any]:
    """The recipe with the fields of its nested mappings as keys of their own."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        nested = key in dialect.nested and isinstance(value, dict)
        found |= {f"{key}.{field}": item for field, item in value.items()} if nested else {key: value}
    return found


def _source(content: Mapping[str, Any], dialect: Dialect) -> tuple[str, list[Problem]]:
    value = content.get(dialect.source)
    if value in NOTHING:
        return "", []
    if isinstance(value, str) and not UNFILLED.search(value):
        return value, []
    wrong = UNFILLED_IS if isinstance(value, str) else "isn't a text"
    remedy = (
        "write out what belongs there"
        if isinstance(value, str)
        else "name a folder or a Hub id, in quotes if need be"
    )
    return "", [_problem("recipe-bad-value", f"{dialect.source}: {value} {wrong}", remedy)]


def _foreign(key: str, value: Any, dialect: Dialect, found: Translation) -> None:
    """A key that isn't translated: the trainer's, one without a counterpart, or a misspelling."""
    if key in dialect.untranslated:
        if _is_set(value):
            message = f"{key} changes what is loaded, and isn't translated"
            remedy = dialect.untranslated[key]
            found.problems.append(_problem("recipe-untranslated", message, remedy, severity="warning"))
    elif not any(fnmatchcase(key, known) for known in dialect.trainer):
        words = [dialect.source, *dialect.keys, *dialect.untranslated, *dialect.trainer]
        near = nearest_name(key, words, cutoff=NEAR)
        if near and near not in dialect.trainer:
            message = f"{key!r} is no key of {dialect.name}'s recipes, and looks like {near!r}"
            remedy = f"write {near}, or rename it if it is meant for something else"
            found.problems.append(_problem("recipe-misspelt-key", message, remedy))
            return
        if dialect.complete:
            hint = f" ({near} is one)" if near else ""
            found.notes.append(
                f"{key} is no known key of {dialect.name}'s recipes{hint}, and is left to the trainer"
            )
    found.trainer[key] = value


def _settle(
    option: str, plain: Any, key: str, meaning: Key, found: Translation, given_by: dict[str, str]
) -> None:
    """Set an option, unless another key has said something else of it."""
    label = f"{key}.{option}" if meaning.fields else key
    if option in given_by:
        first, earlier = given_by[option], found.options[option]
        settled = joined(earlier, plain) if meaning.joins else None
        settled = _agreed(earlier, plain) if settled is None else settled
        if settled is None and not meaning.overrides:
            message = f"{first} and {label} both settle {option}, as {earlier!r} and as {plain!r}"
            found.problems.append(_problem("recipe-key-twice", message, f"keep {first} or {label}"))
            return
        if settled is None:
            found.notes.append(f"{label} counts, not {first}: {option} is {plain!r}, not {earlier!r}")
            settled = plain
        plain = settled
    found.options[option] = plain
    given_by[option] = label
    if meaning.shared:
        found.shared.add(key)


def _contradictions(content: Mapping[str, Any], dialect: Dialect, found: Translation) -> None:
    for wrong in dialect.contradictions:
        if _has(content, wrong.keys) and all(_is_set(content.get(key)) for key in wrong.given):
            named = [*wrong.keys, *wrong.given]
            said = " and ".join(f"{key}: {as_text(content[key])}" for key in named)
            message = f"{said} exclude each other"
            found.problems.append(_problem("recipe-contradiction", message, wrong.remedy))


def _defaults(content: Mapping[str, Any], dialect: Dialect, found: Translation) -> None:
    for default in dialect.defaults:
        if not _holds(default, content, found.options):
            continue
        if default.model_types or default.has or default.below:
            found.by_model.extend(_by_model(default, content))
            continue
        new = {k: v for k, v in default.options.items() if default.over or k not in found.options}
        if default.adds:
            grown = {k: joined(found.options[k], v) for k, v in default.options.items() if k in found.options}
            new |= {k: v for k, v in grown.items() if v is not None}
        for option, (other, factor) in default.multiples.items():
            if option not in found.options and isinstance(found.options.get(other), int | float):
                new[option] = found.options[other] * factor
        for option, other in default.copies.items():
            if option not in found.options and other in found.options:
                new[option] = found.options[other]
        found.options.update(new)
        if default.note and (new or not default.options):
            found.notes.append(default.note)


def _by_model(default: Default, content: Mapping[str, Any]) -> list[ByModel]:
    """The default as a rule of the recipe; none where a number that it compares with isn't given."""
    below = {
        field: number
        for field, key in default.below.items()
        if isinstance(number := content.get(key), int | float) and not isinstance(number, bool)
    }
    if default.below and not below:
        return []
    rule = ByModel(
        model_types=default.model_types,
        has=default.has,
        below=below,
        options=default.options,
        over=default.over,
        note=default.note,
    )
    return [rule]


def _holds(default: Default, content: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    """Whether the conditions of a default are met."""
    barred = (
        entry(dict.fromkeys(map(as_text, values)), as_text(content.get(key))) is not None
        for key, values in default.barring.items()
    )
    return (
        (not default.when or options.get(default.when) is True)
        and (not default.named or any(option in options for option in default.named))
        and all(options.get(option) == value for option, value in default.where.items())
        and not any(options.get(option) == value for option, value in default.without.items())
        and not any(option in options for option in default.unless)
        and all(_is_set(content.get(key)) for key in default.given)
        and all(key in content and not _is_set(content[key]) for key in default.nothing)
        and not any(content.get(key) not in NOTHING for key in default.silent)
        and not content.keys() & set(default.absent)
        and _has(content, default.keys)
        and (not default.like or any(_like(content.get(k), form) for k, form in default.like.items()))
        and not any(barred)
    )


def _frozen_dtype(content: Mapping[str, Any], dialect: Dialect, found: Translation) -> None:
    """Load a base that doesn't train in the dtype that the trainer computes in, unless the recipe names one.

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


def _without_effect(dialect: Dialect, found: Translation, given_by: Mapping[str, str]) -> None:
    """Leave out the settings of what is off."""
    for switch, (words, options) in WITHOUT.items():
        if found.options.get(switch) is True or (switch == "adapter" and found.options.get("new_adapter")):
            continue
        for option in options:
            if option not in found.options:
                continue
            del found.options[option]
            if label := given_by.get(option):
                key = label if label in dialect.keys else label.partition(".")[0]
                found.shared.discard(key)
                if not dialect.keys[key].shared:
                    found.notes.append(f"{label} has no effect without {words}, and is left out")


def _there(content: Mapping[str, Any], needed: str) -> bool:
    key, given, value = needed.partition("=")
    return as_text(content.get(key)) == value if given else _is_set(content.get(key))


def _has(content: Mapping[str, Any], keys: Mapping[str, Any]) -> bool:
    return all(as_text(content.get(key)) == as_text(value) for key, value in keys.items())


def _like(value: Any, form: str) -> bool:
    return isinstance(value, str) and fnmatchcase(value.lower(), form)


def _is_set(value: Any) -> bool:
    return value not in NOTHING and bool(value)


def _among(value: Any, values: tuple[Any, ...]) -> bool:
    return any(type(value) is type(other) and value == other for other in values)


def _agreed(first: Any, second: Any) -> Any:
    """What two keys for one option come to: "an adapter" and "this adapter" agree; None where they don't."""
    for one, other in ((first, second), (second, first)):
        if one == other or (other is True and isinstance(one, str)):
            return one
    return None

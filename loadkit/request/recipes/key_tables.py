"""The translation tables: what each key of a recipe means to loadkit, as data."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from importlib import resources
from typing import Any

import msgspec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "Contradiction",
    "Default",
    "Dialect",
    "Key",
    "dialect_fault",
    "dialects",
    "dialects_of",
    "entry",
    "read_dialect",
]


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one key of a recipe means. Wherever values are named as text, `*` stands for anything.

    Parameters:
        option: the option it becomes.
        under: the field of that option (a mapping) which it becomes.
        fields: for a mapping: its fields to options; "*" stands for the others, which are options themselves,
            or fields of the option that it leads to.
        sets: value, as text, to the options that it sets; for keys that are more than one option. {} is
            the value.
        values: value, as text, to the option's value.
        format: a text with {} where the value goes.
        without: value that has no counterpart, as text, to what to say; nothing is set.
        ignore: values that ask for nothing.
        only: whether a value that is in none of these is an error.
        needs: the key is inert unless one of these is set, or has the value that follows a "=".
        against: the key is inert where one of these is set, or has the value that follows a "=".
        adds: fields whose values become items of an option too, to that option.
        number: a number, which YAML may have read as text ("5e-2").
        split: a text of several names with commas between them.
        one: of which there may be but one.
        invert: true means false.
        dots: patterns in which a dot stands for itself.
        joins: with what another key says of the same option, rather than against it.
        overrides: what another key says of the same option.
        shared: the trainer reads it too.
        notes: value, as text, to what to say when it is used; not for a mapping's fields.
    """

    option: str = ""
    under: str = ""
    fields: dict[str, str] = {}
    sets: dict[str, dict[str, Any]] = {}
    values: dict[str, Any] = {}
    format: str = ""
    without: dict[str, str] = {}
    ignore: tuple[Any, ...] = ()
    only: bool = False
    needs: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    adds: dict[str, str] = {}
    number: bool = False
    split: bool = False
    one: bool = False
    invert: bool = False
    dots: bool = False
    joins: bool = False
    overrides: bool = False
    shared: bool = False
    notes: dict[str, str] = {}


class Default(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options that hold where the recipe is silent.

    Parameters:
        when: an option that must be true for it; "" for always.
        named: options of which one must be there for it; () for none.
        where: options that must have these values for it.
        given: keys that must all be set for it.
        keys: keys that must have these values for it.
        barring: keys of which none may have one of these values, where `*` stands for anything.
        without: options of which none may have these values.
        nothing: keys that must be in the file and ask for nothing: false or null.
        like: keys of which one must be a text like this, in any case; `*` stands for anything.
        silent: keys of which none may be given.
        absent: keys of which none may be in the file, not even to say null.
        unless: options of which none may be set.
        options: option to value.
        over: whether these options hold over what the recipe says.
        adds: whether lists among them grow what is there already.
        multiples: option to (another option, factor).
        copies: option to another option, whose value it takes.
        model_types: only for models of these types, which the checkpoint tells.
        has: only where config.json, or the text model's part of it, has one of these fields above 0.
        below: only where one of these fields of config.json is less than a key's number.
        note: what to say then, where an option is set or none is named.
    """

    when: str = ""
    named: tuple[str, ...] = ()
    where: dict[str, Any] = {}
    given: tuple[str, ...] = ()
    keys: dict[str, Any] = {}
    barring: dict[str, tuple[Any, ...]] = {}
    without: dict[str, Any] = {}
    nothing: tuple[str, ...] = ()
    like: dict[str, str] = {}
    silent: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    options: dict[str, Any] = {}
    over: bool = False
    adds: bool = False
    multiples: dict[str, tuple[str, int | float]] = {}
    copies: dict[str, str] = {}
    model_types: tuple[str, ...] = ()
    has: tuple[str, ...] = ()
    below: dict[str, str] = {}
    note: str = ""


class Contradiction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys that exclude each other.

    Parameters:
        keys: an error where all have these values,
        given: and these have any.
        remedy: what to do.
    """

    keys: dict[str, Any] = {}
    given: tuple[str, ...] = ()
    remedy: str


class Dialect(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One dialect.

    Parameters:
        name: what it is called.
        markers: keys that only it has.
        source: the key that names the model.
        nested: keys that hold a mapping; its fields are keys of their own, "peft_config.r".
        keys: key to its meaning.
        defaults: in the order in which they are applied.
        contradictions: what excludes each other.
        frozen_dtypes: flags of mixed precision to the dtype that they suggest for a base that doesn't train.
        untranslated: keys that change what is loaded and have no counterpart, to what to do about it.
        trainer: keys that are the trainer's though they look like loading keys; `*` stands for anything.
        complete: whether all its keys are known, so that another one is told.
    """

    name: str
    source: str
    nested: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    keys: dict[str, Key]
    defaults: tuple[Default, ...] = ()
    contradictions: tuple[Contradiction, ...] = ()
    frozen_dtypes: dict[str, str] = {}
    untranslated: dict[str, str] = {}
    trainer: tuple[str, ...] = ()
    complete: bool = False


FILES = ("trl.toml", "axolotl.toml", "llama_factory_v1.toml", "llama_factory.toml")
"""The first has no markers, and takes what nobody else's markers claim."""


@functools.cache
def dialects() -> tuple[Dialect, ...]:
    """Every table."""
    folder = resources.files("loadkit.request.recipes")
    return tuple(read_dialect(folder.joinpath(name).read_text(encoding="utf-8")) for name in FILES)


def read_dialect(text: str) -> Dialect:
    """A dialect's table from the text of a TOML file, laid out as loadkit's own are.

    Raises:
        ValueError: it isn't TOML, or isn't such a table.
    """
    return msgspec.convert(tomllib.loads(text), Dialect)


def dialect_fault(dialect: Dialect) -> str:
    """What is wrong with a plugin's dialect, in words; "" where nothing is.

    A recipe of a dialect that is here already is never another's, so its markers are keys of its own.
    """
    if dialect.name in (own.name for own in dialects()):
        return f"the dialect {dialect.name!r} is one of loadkit's own: choose another name"
    if not dialect.name.strip() or not dialect.markers or not dialect.source:
        return "a dialect needs a name, the key that names the model, and markers: keys that only it has"
    for own in dialects():
        known = {own.source, *own.keys, *own.nested, *own.markers, *own.untranslated, *own.trainer}
        if taken := [marker for marker in dialect.markers if marker in known]:
            return f"its marker {taken[0]!r} is a key of {own.name}'s recipes: name keys that only it has"
    return ""


def dialects_of(content: Mapping[str, Any], brought: Sequence[Dialect] = ()) -> list[Dialect]:
    """The dialect that alone names the model as a recipe does; else the one of which it has the most marker
    keys. Several where nothing tells which of those that plugins bring it is.

    Parameters:
        brought: plugins' dialects, asked where no marker of loadkit's own is there.
    """

    def marked(dialect: Dialect) -> int:
        return sum(marker in content for marker in dialect.markers)

    most = max(map(marked, brought), default=0)
    if most and not any(map(marked, dialects())):
        return [dialect for dialect in brought if marked(dialect) == most]
    return [max(dialects(), key=lambda d: (d.source in content and d.source in d.markers, marked(d)))]


def entry(table: Mapping[str, Any], text: str) -> str | None:
    """The entry of a table that stands for a value: itself, else a pattern that fits it, else None."""
    if text in table:
        return text
    return next((pattern for pattern in table if fnmatchcase(text, pattern)), None)

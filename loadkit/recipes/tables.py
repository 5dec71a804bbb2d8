"""The translation tables: what each key of a recipe means to loadkit, as data."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from importlib import resources
from typing import Any, Literal

import msgspec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Dialect", "Key", "dialect_of", "dialects"]


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one key of a recipe means.

    Parameters:
        option: the option it becomes.
        sets: value, as text, to the options that it sets; for keys that are more than one option.
        fields: for a mapping: its fields to options; "*" stands for fields that are named like options.
        values: value, as text, to the option's value.
        ignore: values that ask for nothing.
        only: whether a value that is in neither `sets`, `values` nor `ignore` is an error.
        needs: the key is inert unless one of these is set.
        number: a number, which YAML may have read as text ("5e-2").
        split: a text of several names with commas between them.
        invert: true means false.
        shared: the trainer reads it too.
        inert: for a key that sets nothing: what to tell of it.
        note: what to tell when it is used.
    """

    option: str = ""
    sets: dict[str, dict[str, Any]] = {}
    fields: dict[str, str] = {}
    values: dict[str, Any] = {}
    ignore: tuple[Any, ...] = ()
    only: bool = False
    needs: tuple[str, ...] = ()
    number: bool = False
    split: bool = False
    invert: bool = False
    shared: bool = False
    inert: str = ""
    note: str = ""


class Default(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options that hold where the recipe is silent.

    Parameters:
        when: an option that must be true for it; "" for always.
        unless: options of which none may be set.
        options: option to value.
        multiples: option to (another option, factor).
        note: what to tell then.
    """

    when: str = ""
    unless: tuple[str, ...] = ()
    options: dict[str, Any] = {}
    multiples: dict[str, tuple[str, float]] = {}
    note: str = ""


class Contradiction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys that exclude each other: an error where all have these values."""

    keys: dict[str, Any]
    remedy: str


class Dialect(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One dialect.

    Parameters:
        name: what it is called.
        markers: keys that only it has.
        source: the key that names the model.
        keys: key to its meaning.
        defaults: in the order in which they are applied.
        contradictions: what excludes each other.
        frozen_dtypes: flags of the trainer's mixed precision to the dtype that they suggest for a base that doesn't train.
        untranslated: keys that change what is loaded and have no counterpart, to what to do about it.
        trainer: keys that are the trainer's though they look like loading keys.
    """

    name: Literal["trl", "axolotl", "llama-factory"]
    source: str
    markers: tuple[str, ...] = ()
    keys: dict[str, Key]
    defaults: tuple[Default, ...] = ()
    contradictions: tuple[Contradiction, ...] = ()
    frozen_dtypes: dict[str, str] = {}
    untranslated: dict[str, str] = {}
    trainer: tuple[str, ...] = ()


FILES = ("axolotl.toml", "llama_factory.toml", "trl.toml")
"""In the order in which their markers are looked for; the last has none and takes what is left."""


@functools.cache
def dialects() -> tuple[Dialect, ...]:
    """Every table."""
    folder = resources.files("loadkit.recipes")
    return tuple(
        msgspec.convert(tomllib.loads(folder.joinpath(name).read_text(encoding="utf-8")), Dialect)
        for name in FILES
    )


def dialect_of(content: Mapping[str, Any]) -> Dialect:
    """The dialect whose marker keys a recipe has."""
    known = dialects()
    return next((d for d in known if any(marker in content for marker in d.markers)), known[-1])

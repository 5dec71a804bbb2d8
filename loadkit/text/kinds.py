"""How the kinds of values read in messages: "an int", "true or false", "a list of names or a text"."""

from __future__ import annotations

__all__ = ["kind_of", "kinds_text", "with_article"]

KINDS = {
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "list": "a list of names",
    "mapping": "a mapping",
    "names": "a mapping of names to names",
    "places": "a mapping of modules to devices",
    "sizes": "a mapping of devices to sizes",
    "str": "a text",
}
"""A part of an option's type to what it takes."""

OF_PYTHON = {
    "bool": "a bool",
    "dict": "a mapping",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "NoneType": "None",
    "str": "a text",
    "tuple": "a list",
}
"""A type of Python's to what its values are called."""


def kinds_text(type_name: str) -> str:
    """What an option of that type takes, such as "true or false, a mapping, or a text"."""
    kinds = [KINDS.get(part, with_article(part)) for part in type_name.split(" or ")]
    return ", or ".join(kinds) if len(kinds) < 3 else f"{', '.join(kinds[:-1])}, or {kinds[-1]}"


def kind_of(value: object) -> str:
    """What a value is, such as "a list" or "an OrderedDict"."""
    return OF_PYTHON.get(type(value).__name__, with_article(type(value).__name__))


def with_article(word: str) -> str:
    """A word behind "a" or "an"."""
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"

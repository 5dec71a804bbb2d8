"""Whether a plain value fits a type annotation, read as text: what transformers' strict configs will say."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

__all__ = ["fits"]

SIMPLE: Mapping[str, type] = {
    "bool": bool,
    "float": float,
    "int": int,
    "str": str,
    "dict": dict,
    "list": list,
}
"""Types whose values are plain data. A tuple's never are: plain data has lists."""

CONFIGS = ("Config", "Parameters")
"""Ends of the names of classes that a mapping is turned into."""


def fits(annotation: str, value: Any, *, loosely: bool = False) -> bool:
    """Whether a config's field of this type takes a value; a type that isn't known takes any.

    As huggingface_hub's `strict` has it: no number for a text, no whole number for a float that isn't
    declared for both, no bool for an int.

    Parameters:
        annotation: as the source has it, such as "int | list[int] | None"; "" for none.
        value: plain data.
        loosely: for classes that don't check: whole numbers are floats, and lists are tuples and sets.
    """
    parsed = _parsed(_loosened(annotation) if loosely else annotation)
    return parsed is None or _fits(parsed, value)


def _loosened(annotation: str) -> str:
    text = re.sub(r"\bfloat\b", "int | float", annotation)
    text = re.sub(r"\btuple\[([^\[\]]*?)(, \.\.\.)?\]", r"list[\1]", text)
    return re.sub(r"\b(set|tuple)\b", "list", text)


@cache
def _parsed(annotation: str) -> ast.expr | None:
    try:
        return ast.parse(annotation, mode="eval").body
    except SyntaxError:
        return None


def _fits(kind: ast.expr, value: Any) -> bool:
    match kind:
        case ast.Constant(value=None):
            return value is None
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return _fits(left, value) or _fits(right, value)
        case ast.Name(id=name) if name in SIMPLE:
            return isinstance(value, SIMPLE[name]) and not (name == "int" and isinstance(value, bool))
        case ast.Name(id="tuple" | "set"):
            return False
        case ast.Name(id=name) | ast.Attribute(attr=name) if name.endswith(CONFIGS):
            return isinstance(value, dict)
        case ast.Subscript(value=ast.Name(id=name), slice=inner):
            return _generic(name, inner.elts if isinstance(inner, ast.Tuple) else [inner], value)
    return True


def _generic(name: str, inner: list[ast.expr], value: Any) -> bool:
    match name:
        case "Optional":
            return value is None or _fits(inner[0], value)
        case "Union":
            return any(_fits(each, value) for each in inner)
        case "Literal":
            words = [each.value for each in inner if isinstance(each, ast.Constant)]
            return any(value == word and isinstance(value, bool) is isinstance(word, bool) for word in words)
        case "list":
            return isinstance(value, list) and all(any(_fits(each, item) for each in inner) for item in value)
        case "Sequence":
            return isinstance(value, list | str) and all(_fits(inner[0], item) for item in value)
        case "dict" if len(inner) == 2:
            return isinstance(value, dict) and all(
                _key(inner[0], k) and _fits(inner[1], v) for k, v in value.items()
            )
        case "tuple" | "set":
            return False
    return True


def _key(kind: ast.expr, key: str) -> bool:
    """Whether a key of a mapping fits; as plain data every one is a text."""
    return _fits(kind, key) or (key.lstrip("-").isdigit() and _fits(kind, int(key)))

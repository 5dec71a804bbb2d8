"""The targets that PEFT has of its own for a model's type, by adapter type, read off its source."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from loadkit.facts.library.peft_configs import peft_types
from loadkit.facts.library.source_text import source_body, source_text

__all__ = ["peft_default_targets"]

TABLE = r"\bTRANSFORMERS_MODELS_TO_\w+?_{}_MAPPING\b"
OWN_TABLE = "TRANSFORMERS_MODEL_CONFIG"
"""What a type's own config module calls a table of the attention that it replaces, by model type."""


def peft_default_targets(peft_type: str, field: str = "target_modules") -> Mapping[str, Any] | None:
    """Model types to what an adapter of a type targets where its config names nothing.

    Parameters:
        peft_type: the type.
        field: the field of its config.

    Returns:
        Lists of names, or patterns; None for a type that looks its targets up in no such table.
    """
    path, _ = peft_types().get(peft_type, (None, ""))
    if path is None:
        return None
    named = re.search(TABLE.format(field.upper()), source_text(path.with_name("model.py")))
    own = tables(source_body(source_text(path))).get(OWN_TABLE) if field == "target_modules" else None
    return _tables().get(named[0]) if named else own


@cache
def _tables() -> Mapping[str, Mapping[str, Any]]:
    found = importlib.util.find_spec("peft")
    if found is None or found.origin is None:
        return {}
    return tables(source_body(source_text(Path(found.origin).parent / "utils" / "constants.py")))


def tables(body: Iterable[ast.stmt]) -> dict[str, dict[str, Any]]:
    """The tables of a module that are written out, copied from another, or changed by an item."""
    found: dict[str, dict[str, Any]] = {}
    for line in body:
        match line:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict() as written):
                found[name] = _items(written)
            case ast.Assign(
                targets=[ast.Name(id=name)],
                value=ast.Call(func=ast.Attribute(value=ast.Name(id=other), attr="copy")),
            ) if other in found:
                found[name] = dict(found[other])
            case ast.Assign(
                targets=[ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=key))], value=value
            ) if name in found:
                found[name] |= _items(ast.Dict(keys=[ast.Constant(value=key)], values=[value]))
    return found


def _items(written: ast.Dict) -> dict[str, Any]:
    """What is written out; of a call, the targets that it is given."""
    pairs = ((key, value) for key, value in zip(written.keys, written.values, strict=True) if key is not None)
    found = {}
    for key, value in pairs:
        if isinstance(value, ast.Call):
            value = next((k.value for k in value.keywords if k.arg == "target_modules"), value)
        try:
            found[ast.literal_eval(key)] = ast.literal_eval(value)
        except ValueError:
            continue  # a function, or a name of another module
    return found

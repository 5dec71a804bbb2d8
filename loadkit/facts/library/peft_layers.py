"""What PEFT's layers refuse when an adapter is put on them, read off the source of each adapter type."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from loadkit.facts.library.peft_configs import peft_fields, peft_types
from loadkit.facts.library.refusals import refusal
from loadkit.facts.library.source_text import source_body, source_text

__all__ = ["peft_adapts", "peft_biases", "peft_layer_refusal", "peft_packages"]

NEEDED = re.compile(r"raise ImportError\([^)]*pip install ([\w-]+)")
"""Where a config says, when it is made, what isn't installed."""


OTHERS = re.compile(r"Conv|Embedding|Quant|Multihead|Param")
"""Layers of other kinds than a plain linear one."""


def peft_layer_refusal(
    peft_type: str, options: Mapping[str, Any], inputs: int | None, outputs: int | None
) -> str:
    """What a linear layer says when an adapter is put on it; "" for nothing, as far as its source tells.

    Parameters:
        peft_type: the type.
        options: fields of its config; the others have their defaults.
        inputs: the layer's width; None where it isn't known.
        outputs: the width of what it gives.
    """
    fields = peft_fields(peft_type)
    names = {name: field.default for name, field in fields.items() if field.literal} | dict(options)
    own = {"in_features": inputs, "out_features": outputs}
    layer = {name: value for name, value in own.items() if value is not None}
    for method in _updates(peft_type):
        taken = {each.arg for each in (*method.args.args, *method.args.kwonlyargs)}
        known = {name: value for name, value in names.items() if name in taken}
        known |= {f"config.{name}": value for name, value in names.items()}
        if said := refusal([method], layer, known):
            return said
    return ""


def peft_adapts(peft_type: str, layer: str) -> bool:
    """Whether a type's source speaks of another kind of layer at all, by its class: "Embedding", "Conv1D"."""
    return any(layer in text for name, text in _texts(peft_type).items() if name != "config.py")


def peft_biases(peft_type: str) -> frozenset[str]:
    """What a type's `bias` may be: none, all, or its own."""
    own = {word for text in _texts(peft_type).values() for word in re.findall(r"[\"'](\w+_only)[\"']", text)}
    return frozenset({"none", "all", *own})


def peft_packages(peft_type: str) -> tuple[str, ...]:
    """The packages without which a type's config can't be made, by what it says to install."""
    return tuple(dict.fromkeys(NEEDED.findall(_texts(peft_type).get("config.py", ""))))


@cache
def _texts(peft_type: str) -> Mapping[str, str]:
    """The source of a type's model and layers."""
    path, _ = peft_types().get(peft_type, (None, ""))
    names = ("model.py", "layer.py", "config.py")
    return {} if path is None else {name: source_text(path.with_name(name)) for name in names}


@cache
def _updates(peft_type: str) -> tuple[ast.FunctionDef, ...]:
    """The methods by which a type's linear layers take an adapter."""
    return tuple(
        line
        for node in source_body(_texts(peft_type).get("layer.py", ""))
        if isinstance(node, ast.ClassDef) and not OTHERS.search(node.name)
        for line in node.body
        if isinstance(line, ast.FunctionDef) and line.name == "update_layer"
    )

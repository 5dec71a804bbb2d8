"""The shapes that a config gives a model's tensors, read off the source of transformers: nothing is built.

A path such as "model.layers.0.self_attn.q_proj.weight" is followed through the classes whose constructors
make "model", then "layers", then "self_attn"; what "q_proj" is made with is worked out for the config.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from loadkit.facts.library.library import ConfigFacts, Library, ModuleFacts

__all__ = ["Shape", "expected_shapes"]

Shape = tuple[int, ...]

OTHERWISE = {
    "head_dim": "config.hidden_size // config.num_attention_heads",
    "num_key_value_heads": "config.num_attention_heads",
}
"""What configs put in the place of fields that nobody set."""


def expected_shapes(
    library: Library,
    model_class: str,
    facts: ConfigFacts,
    config: Mapping[str, Any],
    names: Iterable[str],
    changed: Mapping[str, Any] | None = None,
) -> dict[str, frozenset[Shape]]:
    """The shapes that tensors may have by the config; one that the source doesn't tell of isn't there.

    Parameters:
        library: the source, as far as it is the checkpoint's.
        model_class: the class that loads it.
        facts: the class of the config that the language model is made from.
        config: what that config holds in its file.
        names: the tensors, as the files spell them.
        changed: what is set on it afterwards: fields that it derives from others don't follow.
    """
    modules = {name: each for family in library.families.values() for name, each in family.modules.items()}
    values = _Values(facts, config, changed or {})
    found: dict[tuple[str, ...], frozenset[Shape]] = {}
    result = {}
    for name in names:
        path = tuple(part for part in name.split(".") if not part.isdigit())
        if path not in found:
            found[path] = _shapes(path, modules, model_class, values)
        if found[path]:
            result[name] = found[path]
    return result


def _shapes(
    path: tuple[str, ...], modules: Mapping[str, ModuleFacts], model_class: str, values: _Values
) -> frozenset[Shape]:
    *parents, last = path
    if last == "weight" and parents:  # of a layer, or of a module that holds its weight itself
        *above, layer = parents
        made = _made(_classes(above, modules, model_class), layer, values)
        if made:
            return made
    return _made(_classes(parents, modules, model_class), last, values)


def _made(classes: Iterable[ModuleFacts], name: str, values: _Values) -> frozenset[Shape]:
    """The shapes of what the classes make under a name; none where one of them doesn't tell."""
    found: set[Shape] = set()
    for facts in classes:
        if name not in facts.shapes:
            if name in facts.members:
                return frozenset()
            continue
        for axes in facts.shapes[name]:
            shape = values.shape(axes, facts)
            if shape is None:
                return frozenset()
            found.add(shape)
    return frozenset(found)


def _classes(path: Iterable[str], modules: Mapping[str, ModuleFacts], model_class: str) -> list[ModuleFacts]:
    """The classes that a module at a path may have; files may leave the base model's name out."""
    top = [modules[model_class]] if model_class in modules else []
    for start in (top, [modules[c] for f in top for cs in f.members.values() for c in cs if c in modules]):
        here = start
        for name in path:
            here = [modules[c] for f in here for c in f.members.get(name, ()) if c in modules]
        if here and (start is top or path):
            return here
    return []


class _UnknownError(Exception):
    """An expression whose value the source doesn't tell."""


class _Values:
    """Works out expressions of a constructor for one config."""

    def __init__(self, facts: ConfigFacts, config: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
        self._facts = facts
        self._config = {**config, **changed}
        self._said = False
        self._derived = _Values(facts, config, {}) if changed else self

    def shape(self, axes: Iterable[str], module: ModuleFacts) -> Shape | None:
        """The shape by the expressions of a class's constructor; None where it isn't known, or config.json
        says nothing of it."""
        self._said = False
        try:
            sizes = [self._of(_parsed(text), module, 0) for text in axes]
        except (_UnknownError, ArithmeticError, TypeError, ValueError):
            return None
        whole = tuple(size for size in sizes if isinstance(size, int) and size >= 0)
        return whole if self._said and len(whole) == len(sizes) else None

    def _of(self, node: ast.expr, module: ModuleFacts, depth: int) -> Any:
        def of(inner: ast.expr) -> Any:
            return self._of(inner, module, depth)

        match node:
            case ast.Constant(value=value):
                return value
            case ast.Attribute(value=ast.Name(id="config"), attr=name) | ast.Attribute(value=ast.Attribute(value=ast.Name(id="self"), attr="config"), attr=name):  # fmt: skip
                return self._field(name)
            case ast.Attribute(value=ast.Name(id="self"), attr=name) if depth < 6:
                return self._attribute(name, module, depth)
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                return of(left) + of(right)
            case ast.BinOp(op=ast.Sub(), left=left, right=right):
                return of(left) - of(right)
            case ast.BinOp(op=ast.Mult(), left=left, right=right):
                return of(left) * of(right)
            case ast.BinOp(op=ast.FloorDiv(), left=left, right=right):
                return of(left) // of(right)
            case ast.BinOp(op=ast.Div(), left=left, right=right):
                return of(left) / of(right)
            case ast.Call(func=ast.Name(id="int"), args=[inner]):
                return int(of(inner))
            case ast.Call(func=ast.Name(id="getattr"), args=[ast.Name(id="config"), ast.Constant(value=str(name)), *rest]):  # fmt: skip
                if self._has(name):
                    return self._field(name)
                if rest:
                    return of(rest[0])
            case ast.BoolOp(op=ast.Or(), values=[first, *others]):
                return of(first) or (of(ast.BoolOp(ast.Or(), others)) if len(others) > 1 else of(others[0]))
            case ast.IfExp(test=ast.Compare(left=left, ops=[ast.Is() | ast.IsNot() as op], comparators=[ast.Constant(value=None)]), body=body, orelse=other):  # fmt: skip
                none = of(left) is None
                return of(body if none is isinstance(op, ast.Is) else other)
        raise _UnknownError

    def _attribute(self, name: str, module: ModuleFacts, depth: int) -> Any:
        found = {repr(value): value for text in module.values.get(name, ()) for value in [self._of(_parsed(text), module, depth + 1)]}  # fmt: skip
        if len(found) != 1:
            raise _UnknownError
        return next(iter(found.values()))

    def _has(self, name: str) -> bool:
        name = self._facts.attribute_map.get(name, name)
        return name in self._config or name in self._facts.fields

    def _field(self, name: str) -> Any:
        spelt = {self._facts.attribute_map.get(name, name), name}
        for source in (self._config, self._facts.fields):
            for each in spelt | {k for k, v in self._facts.attribute_map.items() if v in spelt}:
                if source.get(each) is not None:
                    self._said = self._said or source is self._config
                    return source[each]
        if name in OTHERWISE and name in self._facts.fields:
            return self._derived._of(_parsed(OTHERWISE[name]), ModuleFacts(), 0)
        raise _UnknownError


@cache
def _parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body

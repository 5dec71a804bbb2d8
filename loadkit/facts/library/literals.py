"""The values that literal Python source stands for, without running it."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

__all__ = ["CONTAINERS", "evaluate", "execute", "known", "text", "text_items"]

_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
CONTAINERS: Mapping[str, Callable[..., object]] = {
    "OrderedDict": dict,
    "dict": dict,
    "frozenset": frozenset,
    "list": list,
    "set": set,
    "tuple": tuple,
}
"""The names that mean a builtin container, which may be called."""

_CONTAINER = (list, tuple, set, frozenset, dict)
_NUMBER = (int, float)


def evaluate(node: ast.expr, names: Mapping[str, Any] | None = None) -> Any:
    """The value of an expression made of literals, known names, containers and arithmetic.

    A conditional whose test isn't known gives what its branches can give: the one value, or a tuple of all,
    the preferred one first, without None. Callables among the names may be called.

    Raises:
        ValueError: for any other expression.
    """
    names = CONTAINERS if names is None else names
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.Tuple(elts=elements):
            return tuple(_elements(elements, names))
        case ast.List(elts=elements):
            return list(_elements(elements, names))
        case ast.Set(elts=elements):
            return set(_elements(elements, names))
        case ast.Dict(keys=keys, values=values):
            return dict(_items(keys, values, names))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_as(_NUMBER, evaluate(operand, names))
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _ARITHMETIC:
            return _ARITHMETIC[type(op)](*(_as(_NUMBER, evaluate(side, names)) for side in (left, right)))
        case ast.Compare(left=left, ops=[ast.In() | ast.NotIn() as op], comparators=[right]):
            inside = evaluate(left, names) in _as(_CONTAINER, evaluate(right, names))
            return inside is isinstance(op, ast.In)
        case ast.IfExp():
            return _either(node, names)
        case ast.Subscript(value=value) if callable(generic := evaluate(value, names)):
            return generic  # OrderedDict[str, str] is OrderedDict
        case ast.Call(func=ast.Attribute(value=owner, attr="items"), args=[], keywords=[]):
            return list(_as(dict, evaluate(owner, names)).items())
        case ast.Call(func=func, args=args, keywords=keywords) if callable(function := evaluate(func, names)):
            given = [*_elements(args, names)]
            named = dict(_items(map(_key, keywords), [k.value for k in keywords], names))
            try:
                return function(*given, **named)
            except TypeError as error:
                raise ValueError(f"line {node.lineno} calls a function in an unknown way: {error}") from error
    raise ValueError(f"line {node.lineno} isn't a literal")


def execute(
    body: Iterable[ast.stmt], names: dict[str, Any], imported: Callable[[ast.ImportFrom], Mapping[str, Any]]
) -> None:
    """Follow statements in order, and change `names` in place to what they assign, as far as that is known.

    A name whose value isn't known is taken out, for better no map than one that lacks entries. What asks for
    an optional package is taken as if it were installed. `imported` gives the names of an imported module.
    """
    for statement in body:
        match statement:
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    _assign(names, target, value)
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                _assign(names, target, value)
            case ast.Expr(value=ast.Call(func=ast.Attribute(attr="update"), args=[given]) as call):
                _update(names, call, given)
            case ast.If(test=test, body=inner, orelse=other):
                execute(inner if _holds(test, names) else other, names, imported)
            case ast.For(target=ast.Name(id=name), iter=several, body=inner):
                for each in known(several, names, ()):
                    names[name] = each
                    execute(inner, names, imported)
            case ast.Try(body=inner):
                execute(inner, names, imported)
            case ast.ImportFrom(names=aliases):
                theirs = imported(statement)
                names |= {a.asname or a.name: theirs[a.name] for a in aliases if a.name in theirs}


def known(node: ast.expr | None, names: Mapping[str, Any] | None = None, otherwise: Any = None) -> Any:
    """The value of an expression, or another where it has none."""
    try:
        return otherwise if node is None else evaluate(node, names)
    except ValueError:
        return otherwise


def text(value: Any) -> str:
    """The value where it is a text; "" for any other."""
    return value if isinstance(value, str) else ""


def text_items(value: Any) -> dict[str, str]:
    """A dictionary's items as texts; empty for any other value."""
    return {text(key): text(each) for key, each in value.items()} if isinstance(value, dict) else {}


def _key(keyword: ast.keyword) -> ast.expr | None:
    return None if keyword.arg is None else ast.Constant(value=keyword.arg)


def _elements(nodes: Iterable[ast.expr], names: Mapping[str, Any]) -> Iterator[Any]:
    for node in nodes:
        if not isinstance(node, ast.Starred):
            yield evaluate(node, names)
        else:
            yield from _as(_CONTAINER, evaluate(node.value, names))


def _items(
    keys: Iterable[ast.expr | None], values: Iterable[ast.expr], names: Mapping[str, Any]
) -> Iterator[tuple[Any, Any]]:
    for key, value in zip(keys, values, strict=True):
        evaluated = evaluate(value, names)
        if key is not None:
            yield evaluate(key, names), evaluated
        else:
            yield from _as(dict, evaluated).items()


def _as(kind: Any, value: Any) -> Any:
    if isinstance(value, kind):
        return value
    raise ValueError(f"{value!r} isn't of {kind}")


def _either(node: ast.IfExp, names: Mapping[str, Any]) -> Any:
    try:
        return evaluate(node.body if evaluate(node.test, names) else node.orelse, names)
    except ValueError:
        branches = [evaluate(branch, names) for branch in (node.body, node.orelse)]
    several = [value for branch in branches for value in (branch if isinstance(branch, tuple) else [branch])]
    found = tuple(value for value in several if value is not None)
    return found if len(found) > 1 else next(iter(found), None)


def _holds(test: ast.expr, names: Mapping[str, Any]) -> bool:
    """Whether a branch is run: what asks for an optional package is, what is for type checkers only isn't."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return not _holds(test.operand, names)
    return bool(known(test, {**names, "TYPE_CHECKING": False}, True))


def _assign(names: dict[str, Any], target: ast.expr, value: ast.expr) -> None:
    match target:
        case ast.Name(id=name):
            try:
                names[name] = evaluate(value, names)
            except ValueError:
                names.pop(name, None)
        case ast.Subscript(value=ast.Name(id=name), slice=key) if isinstance(table := names.get(name), dict):
            try:
                table[evaluate(key, names)] = evaluate(value, names)
            except ValueError:
                names.pop(name)


def _update(names: dict[str, Any], call: ast.Call, given: ast.expr) -> None:
    match call.func:
        case ast.Attribute(value=ast.Name(id=name)) if isinstance(table := names.get(name), dict):
            try:
                table.update(evaluate(given, names))
            except (TypeError, ValueError):
                names.pop(name)

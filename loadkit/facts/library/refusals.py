"""What a config class refuses in its `__post_init__`, worked out from its source for given values.

Only what the values decide is followed: a condition that isn't understood refuses nothing.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from loadkit.facts.library.literals import known

__all__ = ["Refusal", "constants", "refusal"]

Refusal = str

KINDS: Mapping[str, type | tuple[type, ...]] = {
    "bool": bool, "dict": dict, "float": float, "int": int, "list": list, "set": set, "str": str, "tuple": tuple,
}  # fmt: skip

COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda one, other: one in other,
    ast.NotIn: lambda one, other: one not in other,
}

ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.BitXor: operator.xor,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Mult: operator.mul,
    ast.Pow: operator.pow,
    ast.Sub: operator.sub,
}


class _UnknownError(Exception):
    """A value that the source and the given fields don't tell."""


class _RaisedError(Exception):
    """The source raises here."""


def refusal(
    methods: Iterable[ast.FunctionDef], fields: Mapping[str, Any], names: Mapping[str, Any]
) -> Refusal:
    """What the first `raise` says that the methods come to, in their order; "" where they come to none.

    Parameters:
        methods: `__post_init__` of a class and of its bases.
        fields: the fields' values, defaults included; one that isn't there is unknown.
        names: the values of names of the module.
    """
    own = dict(fields)
    try:
        for method in methods:
            _Run(own, dict(names)).block(method.body)
    except _RaisedError as raised:
        return str(raised)
    return ""


def constants(body: Iterable[ast.stmt]) -> dict[str, Any]:
    """The literal values of a module's names, and of its enumerations' members, as "Kind.MEMBER"."""
    found: dict[str, Any] = {}
    for line in body:
        match line:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if (
                literal := known(value)
            ) is not None:
                found[name] = literal
            case ast.ClassDef(name=kind, body=inner):
                for member in inner:
                    match member:
                        case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=plain)):
                            found[f"{kind}.{name}"] = plain
    return found


class _Run:
    """One run of a method: fields are changed as it would change them."""

    def __init__(self, fields: dict[str, Any], names: dict[str, Any]) -> None:
        self.fields = fields
        self.names = names

    def block(self, body: Iterable[ast.stmt]) -> None:
        for line in body:
            match line:
                case ast.If(test=test, body=then, orelse=other):
                    self._branch(test, then, other)
                case ast.Raise(exc=ast.Call(args=args)):
                    raise _RaisedError(" ".join(self._text(args[0]).split()) if args else "")
                case ast.Raise():
                    raise _RaisedError("it is refused")
                case ast.Assign(targets=[target], value=value):
                    self._assign(target, value)
                case ast.Return():
                    return
                case ast.Expr():
                    continue
                case _:
                    self._forget(line)

    def _branch(self, test: ast.expr, then: list[ast.stmt], other: list[ast.stmt]) -> None:
        try:
            chosen = then if self.value(test) else other
        except (_UnknownError, ArithmeticError, TypeError, ValueError):
            for line in (*then, *other):
                self._forget(line)
            return
        self.block(chosen)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        home = self.fields if isinstance(target, ast.Attribute) else self.names
        name = (
            target.attr
            if isinstance(target, ast.Attribute)
            else target.id
            if isinstance(target, ast.Name)
            else ""
        )
        try:
            home[name] = self.value(value)
        except (_UnknownError, ArithmeticError, TypeError, ValueError):
            home.pop(name, None)

    def _forget(self, line: ast.stmt) -> None:
        """What a statement that isn't followed may change isn't known any more."""
        for node in ast.walk(line):
            match node:
                case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                    self.fields.pop(name, None)
                case ast.Name(id=name, ctx=ast.Store()):
                    self.names.pop(name, None)

    def value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Attribute(value=ast.Name(id="self"), attr=name) if name in self.fields:
                return self.fields[name]
            case ast.Attribute(value=ast.Name(id=kind), attr=name) if f"{kind}.{name}" in self.names:
                return self.names[f"{kind}.{name}"]
            case ast.Attribute(value=inner, attr="value"):
                return self.value(inner)
            case ast.Name(id=name) if name in self.names:
                return self.names[name]
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return [self.value(item) for item in items]
            case ast.Set(elts=items):
                return {self.value(item) for item in items}
            case ast.UnaryOp(op=ast.Not(), operand=inner):
                return not self.value(inner)
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return -self.value(inner)
            case ast.BoolOp(op=op, values=values):
                return self._either(values, wanted=isinstance(op, ast.Or))
            case ast.Compare(left=left, ops=ops, comparators=rest):
                return self._compare([left, *rest], ops)
            case ast.BinOp(op=op, left=left, right=right) if type(op) in ARITHMETIC:
                return ARITHMETIC[type(op)](self.value(left), self.value(right))
            case ast.IfExp(test=test, body=body, orelse=other):
                return self.value(body if self.value(test) else other)
            case ast.Call(func=ast.Name(id="isinstance"), args=[inner, kinds]):
                return isinstance(self.value(inner), tuple(self._kinds(kinds)))
            case ast.Call(func=ast.Name(id="int"), args=[inner]):
                return int(self.value(inner))
            case ast.Call(func=ast.Name(id="min" | "max" as name), args=[first, *others]) if others:
                return {"min": min, "max": max}[name](self.value(each) for each in (first, *others))
            case ast.Call(func=ast.Name(id="len"), args=[inner]):
                return len(self.value(inner))
            case ast.Call(func=ast.Name(id="set"), args=[inner]):
                return set(self.value(inner))
            case ast.Call(func=ast.Name(id="list" | "tuple"), args=[inner]):
                return list(self.value(inner))
            case ast.Call(func=ast.Name(id="sorted"), args=[inner]):
                return sorted(self.value(inner))
            case ast.Call(func=ast.Attribute(value=inner, attr="issubset"), args=[other]):
                return set(self.value(inner)) <= set(self.value(other))
        raise _UnknownError

    def _either(self, values: list[ast.expr], *, wanted: bool) -> Any:
        """`or` and `and`: one side can decide where another isn't known."""
        unknown = False
        last: Any = None
        for each in values:
            try:
                last = self.value(each)
            except _UnknownError:
                unknown = True
                continue
            if bool(last) is wanted:
                return last
        if unknown:
            raise _UnknownError
        return last

    def _compare(self, sides: list[ast.expr], ops: list[ast.cmpop]) -> bool:
        """Each side beside the next; a pair that doesn't hold decides where another side isn't known."""
        values = [self._or_unknown(side) for side in sides]
        pairs = list(zip(ops, values, values[1:], strict=False))
        if not all(COMPARISONS[type(op)](a, b) for op, a, b in pairs if _UnknownError not in (a, b)):
            return False
        if _UnknownError in values:
            raise _UnknownError
        return True

    def _or_unknown(self, node: ast.expr) -> Any:
        try:
            return self.value(node)
        except _UnknownError:
            return _UnknownError

    def _kinds(self, node: ast.expr) -> Iterator[type]:
        for each in node.elts if isinstance(node, ast.Tuple) else [node]:
            found = KINDS.get(each.id) if isinstance(each, ast.Name) else None
            if found is None:
                raise _UnknownError
            yield from found if isinstance(found, tuple) else (found,)

    def _text(self, node: ast.expr) -> str:
        match node:
            case ast.JoinedStr(values=values):
                return "".join(self._text(each) for each in values)
            case ast.FormattedValue(value=inner):
                try:
                    return str(self.value(inner))
                except (_UnknownError, ArithmeticError, TypeError, ValueError):
                    return "…"
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                return self._text(left) + self._text(right)
            case ast.Constant(value=value):
                return str(value)
        return "…"

"""What a constructor says about the shapes of its parameters, as expressions of its config, unevaluated."""

from __future__ import annotations

import ast
from collections.abc import Iterator

__all__ = ["attribute_values", "parameter_shapes"]

EMPTY = ("empty", "ones", "randn", "rand", "zeros")
"""torch's functions that make a tensor of a shape."""

AXES = {
    "Linear": (("out_features", 1), ("in_features", 0)),
    "Embedding": (("num_embeddings", 0), ("embedding_dim", 1)),
}
"""torch's modules to the axes of their weight: the argument's name and place."""


def parameter_shapes(function: ast.FunctionDef) -> dict[str, tuple[tuple[str, ...], ...]]:
    """The attributes that a constructor makes a layer or a parameter for, to the shapes that it may have.

    A shape is an expression an axis, such as "config.num_attention_heads * self.head_dim"; an attribute that
    is also made in a way that isn't understood isn't there.
    """
    local = _locals(function)
    found: dict[str, list[tuple[str, ...]]] = {}
    unknown: set[str] = set()
    for name, value in _given_to_self(function):
        if not _makes(value):
            continue
        shape = _shape(value)
        if shape is None:
            unknown.add(name)
        else:
            found.setdefault(name, []).append(tuple(_inlined(axis, local) for axis in shape))
    return {name: tuple(dict.fromkeys(shapes)) for name, shapes in found.items() if name not in unknown}


def attribute_values(function: ast.FunctionDef) -> dict[str, tuple[str, ...]]:
    """The attributes that a constructor gives plain values to, to the expressions that they may have."""
    local = _locals(function)
    found: dict[str, list[str]] = {}
    for name, value in _given_to_self(function):
        if not _makes(value):
            found.setdefault(name, []).append(_inlined(value, local))
    return {
        name: tuple(dict.fromkeys(texts)) for name, texts in found.items() if all(len(t) < 200 for t in texts)
    }


def _given_to_self(function: ast.FunctionDef) -> Iterator[tuple[str, ast.expr]]:
    for node in ast.walk(function):
        match node:
            case (
                ast.Assign(targets=[ast.Attribute(attr=name, value=ast.Name(id="self"))], value=value)
                | ast.AnnAssign(target=ast.Attribute(attr=name, value=ast.Name(id="self")), value=value)
            ) if value is not None:
                yield name, value


def _makes(value: ast.expr) -> bool:
    """Whether an expression makes a module or a parameter: it calls a class, or takes one from a table."""
    return any(
        isinstance(node, ast.Call) and (_last(node.func)[:1].isupper() or not _last(node.func))
        for node in ast.walk(value)
    )


def _shape(value: ast.expr) -> list[ast.expr] | None:
    if not isinstance(value, ast.Call):
        return None
    kind = _last(value.func)
    given = {keyword.arg: keyword.value for keyword in value.keywords}
    axes: list[ast.expr | None] = []
    if kind in AXES and (
        isinstance(value.func, ast.Name) or _last(getattr(value.func, "value", None)) == "nn"
    ):
        axes = [
            given.get(name) or (value.args[at] if at < len(value.args) else None) for name, at in AXES[kind]
        ]
    elif kind.endswith("RMSNorm"):
        axes = [value.args[0] if value.args else given.get("hidden_size")]
    elif kind == "Parameter" and value.args and isinstance(inner := value.args[0], ast.Call):
        axes = list(_empty(inner))
    known = [axis for axis in axes if axis is not None and not isinstance(axis, ast.Starred)]
    return known if known and len(known) == len(axes) else None


def _empty(call: ast.Call) -> list[ast.expr]:
    """The axes of a tensor that torch makes of a shape."""
    if _last(call.func) not in EMPTY:
        return []
    first = call.args[0] if len(call.args) == 1 else None
    return first.elts if isinstance(first, ast.Tuple | ast.List) else call.args


def _locals(function: ast.FunctionDef) -> dict[str, ast.expr]:
    """Local names that are assigned once, and aren't arguments."""
    arguments = {each.arg for each in (*function.args.args, *function.args.kwonlyargs)}
    found: dict[str, ast.expr] = {}
    twice: set[str] = set(arguments)
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            twice |= {name} if name in found or len(node.targets) > 1 else set()
            found[name] = node.value
        elif isinstance(node, ast.For | ast.AugAssign) and isinstance(node.target, ast.Name):
            twice.add(node.target.id)
    return {name: value for name, value in found.items() if name not in twice}


class _Inline(ast.NodeTransformer):
    def __init__(self, local: dict[str, ast.expr], depth: int = 0) -> None:
        self.local = local
        self.depth = depth

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id not in self.local or self.depth > 4:
            return node
        copy = ast.parse(ast.unparse(self.local[node.id]), mode="eval").body
        return _Inline(self.local, self.depth + 1).visit(copy)  # type: ignore[no-any-return]


def _inlined(value: ast.expr, local: dict[str, ast.expr]) -> str:
    return ast.unparse(_Inline(local).visit(ast.parse(ast.unparse(value), mode="eval").body))


def _last(node: ast.expr | None) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""

"""Parameters that a class only multiplies with, by its source: those can be packed as linear layers are."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping

__all__ = ["EXPERTS", "FIRST_AXIS", "expert_counts", "only_multiplied", "routers"]

VIEWS = ("contiguous", "flatten", "permute", "reshape", "squeeze", "t", "transpose", "unsqueeze", "view")
"""Methods that give the same values in another form."""

PRODUCTS = ("baddbmm", "bmm", "einsum", "linear", "matmul", "mm")
"""torch's products of activations and weights."""

ADDED = {"baddbmm": 0, "linear": 2}
"""The place of what a product adds, which is no factor."""

ABOUT = ("device", "dtype", "ndim", "shape", "size", "dim", "numel", "requires_grad", "is_meta")

FIRST_AXIS = "0"
"""Stands for the number of matrices in a stack, where an attribute of its module has that for a flat one."""

EXPERTS = re.compile(r"[\w.]*experts\w*")
"""An expression for a number of experts."""


def only_multiplied(methods: list[ast.FunctionDef], names: Mapping[str, object]) -> tuple[str, ...]:
    """The parameters that methods multiply activations with, and do nothing else with."""
    uses: dict[str, set[str]] = {name: set() for name in names}
    for method in methods:
        tree = _Tree(method)
        for node in ast.walk(method):
            match node:
                case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Load()) if name in uses:
                    uses[name] |= set(tree.uses(node))
    return tuple(name for name, found in uses.items() if "factor" in found and "other" not in found)


class _Tree:
    """A function's nodes, and what they stand in."""

    def __init__(self, function: ast.FunctionDef) -> None:
        self._function = function
        self._above = {below: node for node in ast.walk(function) for below in ast.iter_child_nodes(node)}

    def uses(self, node: ast.AST, depth: int = 0) -> Iterator[str]:
        """What a value is used as: "factor" of a product, "about" where it is only asked about, "other"."""
        above = self._above.get(node)
        match above:
            case ast.Subscript(value=value) if value is node:
                yield from self.uses(above, depth)
            case ast.Attribute(attr="T" | "mT"):
                yield from self.uses(above, depth)
            case ast.Attribute(attr=name) if name in ABOUT:
                yield "about"
            case ast.Attribute(attr=name) if name in VIEWS and self._called(above):
                yield from self.uses(self._above[above], depth)
            case ast.Attribute(attr="matmul" | "mm" | "bmm") | ast.BinOp(op=ast.MatMult()):
                yield "factor"
            case ast.Call(func=func, args=args) if node in args:
                name = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
                factor = name in PRODUCTS and args.index(node) != ADDED.get(name)
                yield "factor" if factor else "other"
            case ast.Compare(comparators=[ast.Constant(value=None)]):
                yield "about"
            case ast.Assign(targets=[ast.Name(id=local)]) if depth < 3:
                for other in ast.walk(self._function):
                    if isinstance(other, ast.Name) and other.id == local and isinstance(other.ctx, ast.Load):
                        yield from self.uses(other, depth + 1)
            case _:
                yield "other"

    def _called(self, node: ast.AST) -> bool:
        above = self._above.get(node)
        return isinstance(above, ast.Call) and above.func is node


def expert_counts(shapes: Mapping[str, tuple[tuple[str, ...], ...]]) -> dict[str, str]:
    """Flat stacks of experts, whose first axis is a number of experts times rows: name to the attribute that
    has the number."""
    found = {}
    for name, several in shapes.items():
        for axes in several:
            count = re.fullmatch(r"self\.(\w*experts\w*) \* .+", axes[0])
            if count and len(axes) == 2:
                found[name] = count[1]
    return found


def routers(
    shapes: Mapping[str, tuple[tuple[str, ...], ...]], members: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...]:
    """Plain linear layers with an output for each expert."""
    return tuple(
        name
        for name, several in shapes.items()
        if "Linear" in members.get(name, ())
        and any(len(axes) == 2 and EXPERTS.fullmatch(axes[0]) for axes in several)
    )

"""Whether a plugin's code has sets whose order could show: those are worth processes of their own."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from loadkit.testing.subjects import Subject

__all__ = ["orders_of_sets"]

ORDERLESS = ("sorted", "len", "set", "frozenset", "any", "all", "sum", "min", "max", "bool")
"""Functions to which the order of what they take is the same."""


def orders_of_sets(subject: Subject) -> bool:
    """Whether a module of the plugin that is imported makes a set for more than looking something up."""
    return any(_shows(ast.parse(text)) for text in _sources(subject.home))


def _sources(home: str) -> Iterator[bytes]:
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] == home and file and file.endswith(".py"):
            with suppress(OSError):
                yield Path(file).read_bytes()


def _shows(tree: ast.Module) -> bool:
    harmless: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            harmless |= {id(each) for each in (node.left, *node.comparators)}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ORDERLESS:
            harmless |= {id(each) for each in node.args}
        elif isinstance(node, ast.BinOp) and id(node) in harmless:
            harmless |= {id(node.left), id(node.right)}
        elif isinstance(node, ast.Attribute):
            harmless |= {id(node.value)} if node.attr in ("isdisjoint", "issubset", "issuperset") else set()
    return any(_makes_set(node) for node in ast.walk(tree) if id(node) not in harmless)


def _makes_set(node: ast.AST) -> bool:
    made = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    return isinstance(node, ast.Set | ast.SetComp) or (
        made and getattr(getattr(node, "func", None), "id", "") in ("set", "frozenset", "hash", "id")
    )

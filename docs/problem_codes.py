"""Every code of a problem or finding that stands in the sources, and the files that it stands in.

What makes one is found by its parameter or field `code`, wherever it stands: `Problem` and `Finding`,
functions that make one, and a `functools.partial` of either.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["problem_codes"]

Makers = dict[str, int]
"""A name that makes a problem or finding, to the place of its code among the positional arguments."""


def problem_codes(root: Path, folders: Mapping[str, str]) -> dict[str, set[str]]:
    """Every code to the files that it stands in.

    Parameters:
        root: of the repository; files are named from there.
        folders: of packages, to the packages' names. Their parts for tests are left out: those make up codes.
    """
    trees: dict[str, tuple[Path, ast.Module]] = {}
    for folder, package in folders.items():
        for path in sorted((root / folder).rglob("*.py")):
            inside = path.relative_to(root / folder)
            if inside.parts[0] != "testing":
                name = ".".join([package, *inside.with_suffix("").parts]).removesuffix(".__init__")
                trees[name] = path, ast.parse(path.read_text(encoding="utf-8"))
    makers = _makers({name: tree for name, (_, tree) in trees.items()})
    found: dict[str, set[str]] = {}
    for name, (path, tree) in trees.items():
        for node in ast.walk(tree):
            for code in _codes(node, makers[name]):
                found.setdefault(code, set()).add(path.relative_to(root).as_posix())
    return found


def _makers(trees: Mapping[str, ast.Module]) -> dict[str, Makers]:
    """The makers that each module has under a name: its own, and those that it imports, also by way of
    others."""
    known: dict[str, Makers] = {name: {} for name in trees}
    before = -1
    while before != (before := sum(len(makers) for makers in known.values())):
        for name, tree in trees.items():
            for node in ast.walk(tree):
                known[name].update(_made_by(node, known[name], known))
    return known


def _made_by(node: ast.AST, here: Makers, known: Mapping[str, Makers]) -> Iterator[tuple[str, int]]:
    if isinstance(node, ast.ImportFrom):
        there = known.get(node.module or "", {})
        yield from ((a.asname or a.name, there[a.name]) for a in node.names if a.name in there)
    elif isinstance(node, ast.FunctionDef):
        yield from _place(node.name, [a.arg for a in node.args.args if a.arg not in ("self", "cls")])
    elif isinstance(node, ast.ClassDef):
        fields = [
            n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
        ]
        yield from _place(node.name, fields)
    elif (
        isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _called(node.value) == "partial"
    ):
        whole, *given = node.value.args
        name = getattr(whole, "id", "")
        if name in here and here[name] >= len(given):
            yield from ((t.id, here[name] - len(given)) for t in node.targets if isinstance(t, ast.Name))


def _place(name: str, parameters: list[str]) -> Iterator[tuple[str, int]]:
    if "code" in parameters:
        yield name, parameters.index("code")


def _called(call: ast.Call) -> str:
    return str(getattr(call.func, "id", getattr(call.func, "attr", "")))


def _codes(node: ast.AST, makers: Makers) -> Iterator[str]:
    """The codes in a call of a maker; a partial of one may give it too."""
    if isinstance(node, ast.Call):
        partial = _called(node) == "partial" and bool(node.args)
        name = getattr(node.args[0], "id", "") if partial else _called(node)
        given = node.args[partial:]
        place = makers.get(name, len(given))
        for value in [k.value for k in node.keywords if k.arg == "code"] + given[place : place + 1]:
            for constant in (value.body, value.orelse) if isinstance(value, ast.IfExp) else (value,):
                if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                    yield constant.value

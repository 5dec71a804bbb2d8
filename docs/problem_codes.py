"""Every code of a problem or finding that stands in the sources, and the files that it stands in.

What makes one is found by its parameter or field `code`, wherever it stands: `Problem` and `Finding`,
functions that make one, and a `functools.partial` of either. A code stands there as it is, or under a name
that it was given in the same file; one that is put together can't be listed, and is refused.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["problem_codes"]

EXPLAINS = Path("cli", "explain.py")
"""Reads every code from the explanations, and makes none."""

Makers = dict[str, int]
"""A name that makes a problem or finding, to the place of its code among the positional arguments."""


def problem_codes(root: Path, folders: Mapping[str, str]) -> dict[str, set[str]]:
    """Every code to the files that it stands in.

    Parameters:
        root: of the repository; files are named from there.
        folders: of packages, to the packages' names. Their parts for tests are left out: those make up codes.

    Raises:
        LookupError: a code can't be read.
    """
    trees: dict[str, tuple[Path, ast.Module]] = {}
    for folder, package in folders.items():
        for path in sorted((root / folder).rglob("*.py")):
            inside = path.relative_to(root / folder)
            if inside.parts[0] != "testing" and inside != EXPLAINS:
                name = ".".join([package, *inside.with_suffix("").parts]).removesuffix(".__init__")
                trees[name] = path, ast.parse(path.read_text(encoding="utf-8"))
    makers = _makers({name: tree for name, (_, tree) in trees.items()})
    found: dict[str, set[str]] = {}
    for name, (path, tree) in trees.items():
        where, named = path.relative_to(root).as_posix(), _named(tree)
        for node in ast.walk(tree):
            for value in _given(node, makers[name]):
                for code in _texts(value, named, f"{where}:{value.lineno}"):
                    found.setdefault(code, set()).add(where)
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
        taken = [(a.arg, a.annotation) for a in node.args.args if a.arg not in ("self", "cls")]
        yield from _place(node.name, taken)
    elif isinstance(node, ast.ClassDef):
        fields = [
            (n.target.id, n.annotation)
            for n in node.body
            if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
        ]
        yield from _place(node.name, fields)
    elif (
        isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _called(node.value) == "partial"
    ):
        whole, *given = node.value.args
        name = getattr(whole, "id", "")
        if name in here and here[name] >= len(given):
            yield from ((t.id, here[name] - len(given)) for t in node.targets if isinstance(t, ast.Name))


def _place(name: str, parameters: list[tuple[str, ast.expr | None]]) -> Iterator[tuple[str, int]]:
    for place, (parameter, kind) in enumerate(parameters):
        if parameter == "code" and (kind is None or ast.unparse(kind) == "str"):
            yield name, place


def _called(call: ast.Call) -> str:
    return str(getattr(call.func, "id", getattr(call.func, "attr", "")))


def _given(node: ast.AST, makers: Makers) -> Iterator[ast.expr]:
    """What a call gives a maker as the code; a partial of one may give it too."""
    if isinstance(node, ast.Call):
        partial = _called(node) == "partial" and bool(node.args)
        name = getattr(node.args[0], "id", "") if partial else _called(node)
        given = node.args[partial:]
        if name in makers:
            place = makers[name]
            yield from given[place : place + 1]
        if name in makers or _called(node) == "replace":
            yield from (k.value for k in node.keywords if k.arg == "code")


def _named(tree: ast.Module) -> Mapping[str, list[ast.expr]]:
    """A name to all that is assigned to it anywhere in a module; what a caller gives is told there."""
    named: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    named.setdefault(target.id, []).append(node.value)
        elif isinstance(node, ast.FunctionDef):
            for argument in node.args.args:
                named.setdefault(argument.arg, [])
    return named


def _texts(value: ast.expr, named: Mapping[str, list[ast.expr]], where: str) -> Iterator[str]:
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.IfExp):
        for each in (value.body, value.orelse):
            yield from _texts(each, named, where)
    elif isinstance(value, ast.Name) and value.id in named:
        for each in named[value.id]:
            yield from _texts(each, named, where)
    elif not (isinstance(value, ast.Attribute) and value.attr == "code"):  # that one was made elsewhere
        raise LookupError(f"{where}: write the code as a text, not as {ast.unparse(value)}")

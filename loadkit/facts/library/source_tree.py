"""Python source, parsed and not run: a package's modules, their classes, and inheritance across them."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from loadkit.facts.library.class_source import ClassSource, class_source
from loadkit.facts.library.literals import CONTAINERS, execute

__all__ = ["Module", "SourceTree"]


class Module(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A parsed module, by its dotted name.

    Parameters:
        classes: those of its top level.
        imports: local name to (module, name) of `from … import …`.
        stars: modules of `from … import *`.
        aliases: names assigned from another name.
    """

    name: str
    path: Path
    body: list[ast.stmt]
    classes: dict[str, ClassSource]
    imports: dict[str, tuple[str, str]]
    stars: list[str]
    aliases: dict[str, str]


class SourceTree:
    """The modules of the package in a folder, parsed when first asked for.

    Parameters:
        roots: classes that inheritance is followed up to, to the module that defines them.
        functions: names to callables that `namespace` may call, beyond the builtin containers.
    """

    def __init__(
        self,
        root: Path,
        *,
        roots: Mapping[str, str] | None = None,
        functions: Mapping[str, Callable[..., object]] | None = None,
    ) -> None:
        self.root = root
        self.visited: set[Path] = set()
        """Every file read for an answer since this was last emptied (with `start`)."""
        self._roots = dict(roots or {})
        self._functions = {**CONTAINERS, **(functions or {})}
        self._modules: dict[str, Module | None] = {}
        self._namespaces: dict[str, dict[str, Any]] = {}
        self._mros: dict[ClassSource, list[ClassSource]] = {}

    def start(self) -> None:
        """Begin a new answer: forget which files were visited; what is parsed stays parsed."""
        self.visited.clear()
        self._mros.clear()

    def module(self, name: str) -> Module | None:
        """A module by its dotted name; None where it isn't a file of the package that can be parsed."""
        if name not in self._modules:
            path = self._path(name)
            self._modules[name] = _parse(name, path) if path else None
        found = self._modules[name]
        if found:
            self.visited.add(found.path)
        return found

    def find(self, module: str, name: str) -> ClassSource | None:
        """The class that a name means in a module, through aliases and imports; None where out of reach."""
        seen: set[tuple[str, str]] = set()
        waiting = [(module, name)]
        while waiting:
            module, name = waiting.pop(0)
            if module == self.root.name and name in self._roots:
                module = self._roots[name]  # the package itself exports them, by lazy import
            found = self.module(module) if (module, name) not in seen else None
            seen.add((module, name))
            if found is None:
                continue
            if name in found.classes:
                return found.classes[name]
            if name in found.aliases:
                waiting.append((module, found.aliases[name]))
            elif name in found.imports:
                waiting.append(found.imports[name])
            else:
                waiting += [(star, name) for star in found.stars]
        return None

    def mro(self, source: ClassSource) -> list[ClassSource]:
        """Python's method resolution order, without the classes that aren't in reach."""
        if source not in self._mros:
            self._mros[source] = [source]  # stands for itself should the source be circular
            names = () if source.name in self._roots else source.bases
            bases = [base for name in names if (base := self.find(source.module, name))]
            self._mros[source] = [source, *_merge([*([*self.mro(base)] for base in bases), bases])]
        return self._mros[source]

    def namespace(self, name: str) -> dict[str, Any]:
        """The literal values of a module's top-level names, as its statements in order leave them.

        Names imported from modules of the same folder are followed.
        """
        if name not in self._namespaces:
            names = self._namespaces[name] = dict(self._functions)
            if module := self.module(name):
                execute(module.body, names, lambda statement: self._imported(module, statement))
        return self._namespaces[name]

    def _imported(self, module: Module, statement: ast.ImportFrom) -> Mapping[str, Any]:
        return self.namespace(_absolute(module, statement)) if statement.level == 1 else {}

    def _path(self, name: str) -> Path | None:
        package, _, rest = name.partition(".")
        if package != self.root.name:
            return None
        parts = rest.split(".")
        if not rest or (parts[0] != "models" and (self.root / parts[0]).is_dir()):
            return None  # other sub-packages hold no model and no config, and would drag in much source
        path = self.root.joinpath(*parts)
        files = (path.with_name(path.name + ".py"), path / "__init__.py")
        return next((file for file in files if file.is_file()), None)


def _parse(name: str, path: Path) -> Module | None:
    try:
        body = ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, SyntaxError, ValueError):
        return None
    module = Module(name=name, path=path, body=body, classes={}, imports={}, stars=[], aliases={})
    _collect(module, body)
    return module


def _collect(module: Module, body: list[ast.stmt]) -> None:
    for statement in body:
        match statement:
            case ast.ClassDef(name=name):
                module.classes.setdefault(name, class_source(module.name, statement))
            case ast.ImportFrom(names=imported):
                origin = _absolute(module, statement)
                module.stars.extend(origin for alias in imported if alias.name == "*")
                module.imports.update({a.asname or a.name: (origin, a.name) for a in imported})
            case ast.Assign(targets=[ast.Name(id=target)], value=ast.Name(id=name)):
                module.aliases[target] = name
            case ast.If(body=inner, orelse=other) | ast.Try(body=inner, orelse=other):
                _collect(module, inner)
                _collect(module, other)


def _absolute(module: Module, statement: ast.ImportFrom) -> str:
    if not statement.level:
        return statement.module or ""
    parts = module.name.split(".")
    package = parts if module.path.name == "__init__.py" else parts[:-1]
    kept = package[: len(package) - statement.level + 1]
    return ".".join([*kept, statement.module] if statement.module else kept)


def _merge(orders: list[list[ClassSource]]) -> list[ClassSource]:
    """Python's C3 linearization: a class comes before its bases, and bases in the order they are written."""
    merged: list[ClassSource] = []
    while orders := [order for order in orders if order]:
        heads = [order[0] for order in orders]
        # Python refuses a hierarchy without a good head, and leaving classes out can't make one.
        head = next((h for h in heads if not any(h in order[1:] for order in orders)), heads[0])
        merged.append(head)
        orders = [[each for each in order if each is not head] for order in orders]
    return merged

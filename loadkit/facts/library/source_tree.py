"""Python source, parsed and not run: a package's modules, their classes, and inheritance across them."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from loadkit.facts.library.literals import CONTAINERS, execute

__all__ = ["ClassSource", "Module", "SourceTree"]


class ClassSource(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A class statement.

    Parameters:
        name: the class.
        module: its module, dotted.
        bases: the names of its bases as written; a base that isn't a plain name is left out.
        values: the attributes its body assigns, unevaluated.
        annotations: the attributes its body annotates, with or without a value.
        kin: the last parts of its bases' names, `Linear` for `nn.Linear`.
        members: the attributes that its `__init__` gives to self, to the classes that are called for them.
        given: those of them that are made from an attribute of the config, to that attribute: "vision_config" for
            `self.tower = Tower(config.vision_config)`; "config" to "" where it keeps the config itself.
        head: the attribute path that its `get_output_embeddings` returns; "" where it has no such method.
        direct: the attributes whose weight its methods compute with themselves, or cast to the dtype of.
    """

    name: str
    module: str
    bases: tuple[str, ...]
    values: dict[str, ast.expr]
    annotations: dict[str, ast.expr]
    kin: tuple[str, ...] = ()
    members: dict[str, tuple[str, ...]] = {}
    given: dict[str, str] = {}
    head: str = ""
    direct: tuple[str, ...] = ()


class Module(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A parsed module.

    Parameters:
        name: dotted.
        path: its file.
        body: its statements.
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
    """The modules of one package, parsed when first asked for.

    Parameters:
        root: the package's folder.
        roots: names of classes that inheritance is followed up to, to the module that defines them.
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
        places = [(module, name)]
        while places:
            place = places.pop(0)
            if place[0] == self.root.name and place[1] in self._roots:
                place = (self._roots[place[1]], place[1])  # the package itself exports them, by lazy import
            found = self.module(place[0]) if place not in seen else None
            seen.add(place)
            if found is None:
                continue
            if place[1] in found.classes:
                return found.classes[place[1]]
            if place[1] in found.aliases:
                places.append((place[0], found.aliases[place[1]]))
            elif place[1] in found.imports:
                places.append(found.imports[place[1]])
            else:
                places += [(star, place[1]) for star in found.stars]
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
        return next(
            (p for p in (path.with_name(path.name + ".py"), path / "__init__.py") if p.is_file()), None
        )


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
                module.classes.setdefault(name, _class_source(module, statement))
            case ast.ImportFrom(names=imported):
                origin = _absolute(module, statement)
                module.stars.extend(origin for alias in imported if alias.name == "*")
                module.imports.update(
                    {alias.asname or alias.name: (origin, alias.name) for alias in imported}
                )
            case ast.Assign(targets=[ast.Name(id=target)], value=ast.Name(id=name)):
                module.aliases[target] = name
            case ast.If(body=inner, orelse=other) | ast.Try(body=inner, orelse=other):
                _collect(module, inner)
                _collect(module, other)


def _class_source(module: Module, statement: ast.ClassDef) -> ClassSource:
    values: dict[str, ast.expr] = {}
    annotations: dict[str, ast.expr] = {}
    members: dict[str, tuple[str, ...]] = {}
    given: dict[str, str] = {}
    direct: dict[str, None] = {}
    head = ""
    for line in statement.body:
        match line:
            case ast.Assign(targets=targets, value=value):
                values |= {target.id: value for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=target), annotation=annotation, value=default):
                annotations[target] = annotation
                if default is not None:
                    values[target] = default
            case ast.FunctionDef(name="__init__"):
                members |= _members(line)
                given |= _given(line)
            case ast.FunctionDef(name="get_output_embeddings"):
                head = _returned(line)
            case ast.FunctionDef(name=name) if "init" not in name:
                direct |= dict.fromkeys(_direct(line))
    return ClassSource(
        name=statement.name,
        module=module.name,
        bases=tuple(base.id for base in statement.bases if isinstance(base, ast.Name)),
        values=values,
        annotations=annotations,
        kin=tuple(filter(None, map(_last_part, statement.bases))),
        members=members,
        given=given,
        head=head,
        direct=tuple(direct),
    )


def _members(function: ast.FunctionDef) -> dict[str, tuple[str, ...]]:
    """What a constructor gives to self, to the classes called for it, through local names and lists that are appended to."""
    local: dict[str, list[str]] = {}
    members: dict[str, tuple[str, ...]] = {}
    for node in _in_order(function):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                local.setdefault(name, []).extend(_called(value, local))
            case ast.Call(func=ast.Attribute(attr="append", value=ast.Name(id=name)), args=[value]):
                local.setdefault(name, []).extend(_called(value, local))
            case (
                ast.Assign(targets=[ast.Attribute(attr=name, value=ast.Name(id="self"))], value=value)
                | ast.AnnAssign(target=ast.Attribute(attr=name, value=ast.Name(id="self")), value=value)
            ) if value is not None:
                members[name] = tuple(dict.fromkeys([*members.get(name, ()), *_called(value, local)]))
    return {name: classes for name, classes in members.items() if classes}


def _in_order(function: ast.FunctionDef) -> list[ast.stmt | ast.expr]:
    """What a function is made of, as it stands in its source."""
    found = [node for node in ast.walk(function) if isinstance(node, ast.stmt | ast.expr)]
    return sorted(found, key=lambda node: (node.lineno, node.col_offset))


def _given(function: ast.FunctionDef) -> dict[str, str]:
    """Which attribute of the config a constructor hands to what it gives to self, through local names."""
    local: dict[str, str] = {}
    given: dict[str, str] = {}
    for node in _in_order(function):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if found := _handed(value, local):
                local[name] = found
            case ast.Assign(targets=[ast.Attribute(attr=name, value=ast.Name(id="self"))], value=value):
                if isinstance(value, ast.Name) and (name, value.id) == ("config", "config"):
                    given["config"] = ""
                elif found := _handed(value, local):
                    given[name] = found
    return given


def _handed(value: ast.expr, local: Mapping[str, str]) -> str:
    """The attribute of the config that an expression is, or that a class in it is made from; "" for none."""
    calls = [node for node in ast.walk(value) if isinstance(node, ast.Call) and _classes(node)]
    for node in (value, *(each for c in calls for each in (*c.args, *(k.value for k in c.keywords)))):
        match node:
            case (
                ast.Attribute(attr=name, value=ast.Name(id="config"))
                | ast.Attribute(attr=name, value=ast.Attribute(attr="config", value=ast.Name(id="self")))
            ):
                return name
            case ast.Name(id=name) if name in local:
                return local[name]
    return ""


def _called(value: ast.expr, local: Mapping[str, list[str]]) -> list[str]:
    """The classes that an expression calls: names that begin with a capital, and those behind a local name."""
    found: list[str] = []
    for node in ast.walk(value):
        if isinstance(node, ast.Name) and node.id in local:
            found += local[node.id]
        elif isinstance(node, ast.Call):
            found += _classes(node)
    return found


def _classes(call: ast.Call) -> list[str]:
    """The class that a call makes an instance of, other than a config; also by a method of it, as `AutoModel.from_config`."""
    named = [_last_part(call.func)]
    if isinstance(call.func, ast.Attribute):
        named.append(_last_part(call.func.value))
    return [name for name in named if name.lstrip("_")[:1].isupper() and not name.endswith("Config")]


ABOUT = (
    "device",
    "shape",
    "dtype",
    "size",
    "requires_grad",
    "is_floating_point",
    "numel",
    "dim",
    "ndim",
    "element_size",
)
"""What may be asked of a weight without computing with it."""


def _direct(function: ast.FunctionDef) -> Iterator[str]:
    """Members whose `weight` a method uses as a tensor, or casts something to the dtype of: a packed weight can do neither."""
    asked = {
        node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr in ABOUT and _weight_of_member(node.value)
    }
    for node in ast.walk(function):
        if name := _weight_of_member(node):
            if node not in asked:
                yield name
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "to":
            for given in node.args:
                if (
                    isinstance(given, ast.Attribute)
                    and given.attr == "dtype"
                    and (name := _weight_of_member(given.value))
                ):
                    yield name


def _weight_of_member(node: ast.AST) -> str:
    """ "q_proj" for `self.q_proj.weight`."""
    match node:
        case ast.Attribute(attr="weight", value=ast.Attribute(attr=name, value=ast.Name(id="self"))):
            return name
    return ""


def _returned(function: ast.FunctionDef) -> str:
    for node in ast.walk(function):
        if isinstance(node, ast.Return) and node.value is not None:
            text = ast.unparse(node.value)
            if text.startswith("self.") and "(" not in text:
                return text.removeprefix("self.")
    return ""


def _last_part(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


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

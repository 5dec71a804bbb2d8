"""What one class statement says: its bases, what it assigns, and what its methods make and use."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

import msgspec

from loadkit.facts.library.multiplied import only_multiplied
from loadkit.facts.library.shape_source import attribute_values, parameter_shapes

__all__ = ["ClassSource", "class_source"]

_ABOUT = (
    "device", "shape", "dtype", "size", "requires_grad", "is_floating_point", "numel", "dim", "ndim",
    "element_size",
)  # fmt: skip
"""What may be asked of a weight without computing with it."""


class ClassSource(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A class statement.

    Parameters:
        bases: the names of its bases as written; a base that isn't a plain name is left out.
        values: the attributes its body assigns, unevaluated.
        annotations: the attributes its body annotates, with or without a value.
        kin: the last parts of its bases' names, `Linear` for `nn.Linear`.
        members: the attributes that its `__init__` gives to self, to the classes that are called for them.
        given: those that are made from an attribute of the config, to that attribute: "vision_config" for
            `self.tower = Tower(config.vision_config)`; "config" to "" where it keeps the config itself.
        head: the attribute path that its `get_output_embeddings` returns; "" where it has no such method.
        direct: the attributes whose weight its methods compute with themselves, or cast to the dtype of.
        decorators: the names of its own decorators.
        settable: the attributes that its methods give to self, and properties with a setter.
        arguments: what its `__init__` takes by name beside self; None without one.
        shapes, values_of_self: as `parameter_shapes` and `attribute_values` tell.
        multiplied: parameters of its own that its methods only multiply with.
        experts: whether transformers may run its forward pass as it runs experts.
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
    decorators: tuple[str, ...] = ()
    settable: tuple[str, ...] = ()
    arguments: tuple[str, ...] | None = None
    shapes: dict[str, tuple[tuple[str, ...], ...]] = {}
    values_of_self: dict[str, tuple[str, ...]] = {}
    multiplied: tuple[str, ...] = ()
    experts: bool = False


def class_source(module: str, statement: ast.ClassDef) -> ClassSource:
    """What a class statement of a module, dotted, says."""
    values: dict[str, ast.expr] = {}
    annotations: dict[str, ast.expr] = {}
    members: dict[str, tuple[str, ...]] = {}
    given: dict[str, str] = {}
    direct: dict[str, None] = {}
    settable: dict[str, None] = {}
    arguments: tuple[str, ...] | None = None
    shapes: dict[str, tuple[tuple[str, ...], ...]] = {}
    set_to: dict[str, tuple[str, ...]] = {}
    head = ""
    methods = []
    for line in statement.body:
        if isinstance(line, ast.FunctionDef):
            settable |= dict.fromkeys(_settable(line))
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
                arguments = _arguments(line)
                shapes, set_to = parameter_shapes(line), attribute_values(line)
            case ast.FunctionDef(name="get_output_embeddings"):
                head = _returned(line)
            case ast.FunctionDef(name=name) if "init" not in name:
                direct |= dict.fromkeys(_direct(line))
                methods += [] if name.startswith("reset") else [line]
    decorators = tuple(
        _last_part(each.func if isinstance(each, ast.Call) else each) for each in statement.decorator_list
    )
    own = {name: classes for name, classes in members.items() if "Parameter" in classes}
    return ClassSource(
        name=statement.name,
        module=module,
        bases=tuple(base.id for base in statement.bases if isinstance(base, ast.Name)),
        values=values,
        annotations=annotations,
        kin=tuple(filter(None, map(_last_part, statement.bases))),
        members=members,
        given=given,
        head=head,
        direct=tuple(direct),
        decorators=decorators,
        settable=tuple(settable),
        arguments=arguments,
        shapes=shapes,
        values_of_self=set_to,
        multiplied=only_multiplied(methods, {**own, "weight": ()}),
        experts="use_experts_implementation" in decorators,
    )


def _settable(function: ast.FunctionDef) -> Iterator[str]:
    """The attribute that a setter is for, and those that a method gives to self."""
    if any(_last_part(each) == "setter" for each in function.decorator_list):
        yield function.name
    for node in ast.walk(function):
        match node:
            case (
                ast.Assign(targets=[ast.Attribute(attr=name, value=ast.Name(id="self"))])
                | ast.AnnAssign(target=ast.Attribute(attr=name, value=ast.Name(id="self")))
            ) if not name.startswith("_"):
                yield name


def _arguments(function: ast.FunctionDef) -> tuple[str, ...]:
    given = function.args
    named = [each.arg for each in (*given.args[1:], *given.kwonlyargs)]
    return tuple(named)


def _members(function: ast.FunctionDef) -> dict[str, tuple[str, ...]]:
    """What a constructor gives to self, to the classes called for it, by way of local names and lists."""
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


def _called(value: ast.expr, local: Mapping[str, list[str]]) -> list[str]:
    """The classes that an expression calls: names with a capital first, and those behind a local name."""
    found: list[str] = []
    for node in ast.walk(value):
        if isinstance(node, ast.Name) and node.id in local:
            found += local[node.id]
        elif isinstance(node, ast.Call):
            found += _classes(node)
    return found


def _classes(call: ast.Call) -> list[str]:
    """The class, other than a config's, that a call makes, also by a method as `AutoModel.from_config`."""
    named = [_last_part(call.func)]
    if isinstance(call.func, ast.Attribute):
        named.append(_last_part(call.func.value))
    return [name for name in named if name.lstrip("_")[:1].isupper() and not name.endswith("Config")]


def _given(function: ast.FunctionDef) -> dict[str, str]:
    """Which attribute of the config a constructor hands to what it gives to self, by way of local names."""
    local: dict[str, str] = {}
    given: dict[str, str] = {}
    for node in _in_order(function):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if found := _handed(value, local):
                local[name] = found
            case ast.Assign(
                targets=[ast.Attribute(attr="config", value=ast.Name(id="self"))], value=ast.Name(id="config")
            ):
                given["config"] = ""
            case ast.Assign(targets=[ast.Attribute(attr=name, value=ast.Name(id="self"))], value=value):
                if found := _handed(value, local):
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


def _in_order(function: ast.FunctionDef) -> list[ast.stmt | ast.expr]:
    """What a function is made of, as it stands in its source."""
    found = [node for node in ast.walk(function) if isinstance(node, ast.stmt | ast.expr)]
    return sorted(found, key=lambda node: (node.lineno, node.col_offset))


def _direct(function: ast.FunctionDef) -> Iterator[str]:
    """Members whose `weight` a method uses as a tensor or for its dtype: a packed weight can be neither."""
    asked = {
        node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr in _ABOUT and _weight_of_member(node.value)
    }
    for node in ast.walk(function):
        if name := _weight_of_member(node):
            if node not in asked:
                yield name
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "to":
            dtypes = [g.value for g in node.args if isinstance(g, ast.Attribute) and g.attr == "dtype"]
            yield from filter(None, map(_weight_of_member, dtypes))


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

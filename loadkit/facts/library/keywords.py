"""What transformers' `from_pretrained` takes beside the fields of a config, read off its source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from loadkit.facts.library.library import Keywords
from loadkit.facts.library.literals import known
from loadkit.facts.library.source_text import source_body, source_text
from loadkit.facts.library.source_tree import SourceTree

__all__ = ["read_keywords"]

LOADERS = (("modeling_utils.py", "PreTrainedModel"), ("models/auto/auto_factory.py", "_BaseAutoModelClass"))
"""The files and classes whose `from_pretrained` a load goes through."""

GENERATION = "generation/configuration_utils.py"
ROPE = "modeling_rope_utils.py"


def read_keywords(tree: SourceTree) -> Keywords:
    """The keywords of the loaders; empty ones where the source isn't laid out so."""
    root = tree.root
    taken: dict[str, str] = {}
    ignored: dict[str, None] = {}
    for file, name in LOADERS:
        for function in _functions(root / file, name, "from_pretrained"):
            taken |= _arguments(function) | dict(_popped(function))
            ignored |= dict.fromkeys(_dropped(function))
    generation = [
        key
        for function in _functions(root / GENERATION, "GenerationConfig", "__init__")
        for key, _ in _popped(function)
    ]
    return Keywords(
        taken={name: kind for name, kind in taken.items() if not name.startswith("_")},
        ignored=tuple(name for name in ignored if not name.startswith("_")),
        generation=tuple(dict.fromkeys(key for key in generation if not key.startswith("_"))),
        rope=dict(_annotated(root / ROPE, "RopeParameters")),
        rope_types=dict(_rope_types(root / ROPE)),
        activations=tuple(_table(root / "activations.py", "ACT2CLS")),
    )


@cache
def _body(path: Path) -> tuple[ast.stmt, ...]:
    return source_body(source_text(path))


def _class(path: Path, name: str) -> ast.ClassDef | None:
    found = (node for node in _body(path) if isinstance(node, ast.ClassDef) and node.name == name)
    return next(found, None)


def _functions(path: Path, class_name: str, name: str) -> Iterator[ast.FunctionDef]:
    found = _class(path, class_name)
    for node in found.body if found else ():
        if isinstance(node, ast.FunctionDef) and node.name == name:
            yield node


def _arguments(function: ast.FunctionDef) -> dict[str, str]:
    """The arguments that may be given by name, to their annotations; a class method's first two aren't."""
    listed = [*function.args.args[2:], *function.args.kwonlyargs]
    return {each.arg: ast.unparse(each.annotation) if each.annotation else "" for each in listed}


def _popped(function: ast.FunctionDef) -> Iterator[tuple[str, str]]:
    """What is taken out of `kwargs`, with a type where the default tells it."""
    for node in ast.walk(function):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="kwargs"), attr="pop"),
                args=[ast.Constant(value=str(name)), *rest],
            ):
                default = rest[0].value if rest and isinstance(rest[0], ast.Constant) else None
                yield name, "bool" if isinstance(default, bool) else ""


def _dropped(function: ast.FunctionDef) -> Iterator[str]:
    """What is taken out in a loop, and not looked at."""
    for node in ast.walk(function):
        match node:
            case ast.For(target=ast.Name(id=name), iter=several, body=[ast.Assign(value=ast.Call(args=[ast.Name(id=used), *_]))]) if name == used:  # fmt: skip
                yield from (each for each in known(several, otherwise=()) if isinstance(each, str))


def _annotated(path: Path, class_name: str) -> Iterator[tuple[str, str]]:
    found = _class(path, class_name)
    for line in found.body if found else ():
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            yield line.target.id, ast.unparse(line.annotation)


def _rope_types(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Kinds of rotary embeddings, by the methods that validate the parameters of each."""
    found = _class(path, "RotaryEmbeddingConfigMixin")
    for line in found.body if found else ():
        if isinstance(line, ast.FunctionDef) and (
            match := re.fullmatch(r"_validate_(\w+)_rope_parameters", line.name)
        ):
            needed = (
                known(node.value)
                for node in ast.walk(line)
                if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "required_keys"
            )
            yield match[1], tuple(sorted(next(needed, None) or ()))


def _table(path: Path, name: str) -> Iterator[str]:
    """The keys of a dictionary of the module's."""
    for line in _body(path):
        match line:
            case ast.Assign(targets=[ast.Name(id=found)], value=ast.Dict(keys=keys)) if found == name:
                yield from (
                    key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)
                )

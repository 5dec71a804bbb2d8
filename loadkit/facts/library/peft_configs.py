"""The adapter types of the installed PEFT, and their configs' fields, read from its source, not imported."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

__all__ = ["PeftField", "peft_fields", "peft_task_types", "peft_types"]

REGISTERED = re.compile(r"register_peft_method\(\s*name=\"(\w+)\"[^)]*?config_cls=(\w+)", re.DOTALL)
SHARED = ("config.py", "tuners/lycoris_utils.py", "tuners/prompt_tuning/config.py", "tuners/lora/config.py")
"""Where configs' bases are."""

PLAIN = {"bool", "dict", "float", "int", "list", "set", "str", "tuple"}


class PeftField(msgspec.Struct, frozen=True):
    """A field of a PEFT config.

    Parameters:
        default: its default where that is a literal; None for others.
        choices: the words it takes; empty where any goes.
        kinds: the plain types of its annotation, such as "int"; empty where it takes more than plain data.
    """

    default: Any = None
    choices: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()


@cache
def peft_types() -> Mapping[str, tuple[Path, str]]:
    """PEFT's adapter types, each to the file and the class of its config; none where PEFT isn't installed."""
    root = _root()
    files = sorted((root / "tuners").glob("*/__init__.py")) if root else []
    return {
        name.upper(): (init.with_name("config.py"), config)
        for init in files
        for name, config in REGISTERED.findall(_text(init))
    }


@cache
def peft_fields(peft_type: str) -> Mapping[str, PeftField]:
    """The fields of a type's config; empty where the type isn't known."""
    path, config = peft_types().get(peft_type, (None, ""))
    return {} if path is None else dict(_fields(config, {**_bases(), **_classes(path)}))


@cache
def peft_task_types() -> tuple[str, ...]:
    """What PEFT calls the tasks that it knows."""
    root = _root()
    found = _classes(root / "utils" / "peft_types.py").get("TaskType") if root else None
    return tuple(_words(found)) if found else ()


@cache
def _bases() -> Mapping[str, ast.ClassDef]:
    root = _root()
    return {k: v for name in SHARED for k, v in _classes(root / name).items()} if root else {}


def _root() -> Path | None:
    try:
        found = importlib.util.find_spec("peft")
    except (ImportError, ValueError):
        return None
    places = list(found.submodule_search_locations or ()) if found else []
    return Path(places[0]) if places else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _classes(path: Path) -> dict[str, ast.ClassDef]:
    try:
        body = ast.parse(_text(path)).body
    except (SyntaxError, ValueError):
        return {}
    return {node.name: node for node in body if isinstance(node, ast.ClassDef)}


def _fields(name: str, classes: Mapping[str, ast.ClassDef]) -> Iterator[tuple[str, PeftField]]:
    """A dataclass's fields, those of its bases first."""
    found = classes.get(name)
    for base in found.bases if found else ():
        if isinstance(base, ast.Name):
            yield from _fields(base.id, classes)
    for line in found.body if found else ():
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        if _literal(_given(line.value).get("init")) is not False:
            choices, kinds = tuple(_choices(line.annotation)), _kinds(line.annotation)
            yield line.target.id, PeftField(_default(line.value), choices, kinds)


def _given(value: ast.expr | None) -> dict[str, ast.expr]:
    """The keywords of `field(default=…, init=…)`."""
    return {k.arg: k.value for k in value.keywords if k.arg} if isinstance(value, ast.Call) else {}


def _default(value: ast.expr | None) -> Any:
    if isinstance(value, ast.Call):
        value = _given(value).get("default")
    return _literal(value)


def _literal(value: ast.expr | None) -> Any:
    try:
        return None if value is None else ast.literal_eval(value)
    except (ValueError, TypeError):
        return None


def _choices(annotation: ast.expr) -> Iterator[str]:
    """The words of `Literal[…]`, unless a plain `str` goes too."""
    if any(isinstance(node, ast.Name) and node.id == "str" for node in ast.walk(annotation)):
        return
    for node in ast.walk(annotation):
        if isinstance(node, ast.Subscript) and getattr(node.value, "id", "") == "Literal":
            for word in ast.walk(node.slice):
                if isinstance(word, ast.Constant) and isinstance(word.value, str):
                    yield word.value


def _kinds(annotation: ast.expr) -> tuple[str, ...]:
    """The plain types that an annotation names; none where it names others too."""
    names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)} - {"Optional", "Union"}
    if "Literal" in names:
        names = names - {"Literal"} | {"str"}
    return tuple(sorted(names)) if names <= PLAIN else ()


def _words(enumeration: ast.ClassDef) -> Iterator[str]:
    for line in enumeration.body:
        if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant):
            yield str(line.value.value)

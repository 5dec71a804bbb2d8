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

from loadkit.facts.library.refusals import constants, refusal
from loadkit.facts.library.source_text import source_body, source_text

__all__ = ["PeftField", "peft_class_fields", "peft_fields", "peft_refusal", "peft_task_types", "peft_types"]

REGISTERED = re.compile(r"register_peft_method\(\s*name=\"(\w+)\"[^)]*?config_cls=(\w+)", re.DOTALL)
SHARED = ("config.py", "tuners/lycoris_utils.py", "tuners/prompt_tuning/config.py", "tuners/lora/config.py")
"""Where configs' bases are."""

WORDED = ("tuners/p_tuning/config.py", "tuners/multitask_prompt_tuning/config.py")
"""Where further enumerations are."""

NESTED = re.compile(r"\b(\w+Config)\b")


class PeftField(msgspec.Struct, frozen=True):
    """A field of a PEFT config.

    Parameters:
        default: its default where that is a literal; None for others.
        choices: the words it takes; empty where any goes.
        annotation: what it takes, as the source has it.
        literal: whether `default` is what it has by default.
        member: the member of an enumeration that it is by default, as "Kind.NAME"; "" for none.
    """

    default: Any = None
    choices: tuple[str, ...] = ()
    annotation: str = ""
    literal: bool = True
    member: str = ""

    @property
    def config(self) -> str:
        """The class that a mapping is turned into; "" for none."""
        found = NESTED.search(self.annotation)
        return found[1] if found else ""


@cache
def peft_types() -> Mapping[str, tuple[Path, str]]:
    """PEFT's adapter types, each to the file and the class of its config; none where PEFT isn't installed."""
    root = _root()
    files = sorted((root / "tuners").glob("*/__init__.py")) if root else []
    return {
        name.upper(): (init.with_name("config.py"), config)
        for init in files
        for name, config in REGISTERED.findall(source_text(init))
    }


@cache
def peft_fields(peft_type: str) -> Mapping[str, PeftField]:
    """The fields of a type's config; empty where the type isn't known."""
    path, config = peft_types().get(peft_type, (None, ""))
    return {} if path is None else dict(_fields(config, {**_bases(), **_classes(path)}))


@cache
def peft_class_fields(peft_type: str, name: str) -> Mapping[str, PeftField]:
    """The fields of a config that is nested in a type's; empty where the class isn't known."""
    path, _ = peft_types().get(peft_type, (None, ""))
    return {} if path is None else dict(_fields(name, {**_bases(), **_classes(path)}))


def peft_refusal(peft_type: str, options: Mapping[str, Any], nested: str = "") -> str:
    """What a type's config, or one that is nested in it, says against given fields when it is made; "" for
    nothing, as far as its source tells."""
    path, config = peft_types().get(peft_type, (None, ""))
    if path is None:
        return ""
    classes = {**_bases(), **_classes(path)}
    fields = peft_class_fields(peft_type, nested or config)
    own = (*_body(path.with_name("constants.py")), *_body(path))
    names = {**_enumerations(), **constants(own)}
    values = {name: field.default for name, field in fields.items() if field.literal}
    values |= {name: names[field.member] for name, field in fields.items() if field.member in names}
    values |= {name: value for name, value in options.items() if name in fields}
    return refusal(_post_inits(nested or config, classes), values, {**names, "__class__": config})


def _post_inits(name: str, classes: Mapping[str, ast.ClassDef]) -> Iterator[ast.FunctionDef]:
    """The methods that check a config's fields: its own, and those of its bases."""
    found = classes.get(name)
    for line in found.body if found else ():
        if isinstance(line, ast.FunctionDef) and line.name == "__post_init__":
            yield line
    for base in found.bases if found else ():
        if isinstance(base, ast.Name):
            yield from _post_inits(base.id, classes)


@cache
def _enumerations() -> Mapping[str, Any]:
    root = _root()
    files = [root / "utils" / "peft_types.py", *(root / name for name in (*SHARED, *WORDED))] if root else []
    return {name: value for file in files for name, value in constants(_body(file)).items()}


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


@cache
def _body(path: Path) -> tuple[ast.stmt, ...]:
    return source_body(source_text(path))


def _classes(path: Path) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in _body(path) if isinstance(node, ast.ClassDef)}


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
            choices, text = tuple(_choices(line.annotation)), ast.unparse(line.annotation)
            choices = choices or _members(line.annotation, line.target.id)
            member = _member(line.value)
            yield line.target.id, PeftField(_default(line.value), choices, text, _tells(line.value), member)


def _given(value: ast.expr | None) -> dict[str, ast.expr]:
    """The keywords of `field(default=…, init=…)`."""
    return {k.arg: k.value for k in value.keywords if k.arg} if isinstance(value, ast.Call) else {}


def _default(value: ast.expr | None) -> Any:
    if isinstance(value, ast.Call):
        value = _given(value).get("default")
    return _literal(value)


def _member(value: ast.expr | None) -> str:
    """The member of an enumeration that is the default."""
    if isinstance(value, ast.Call):
        value = _given(value).get("default")
    match value:
        case ast.Attribute(value=ast.Name(id=kind), attr=name):
            return f"{kind}.{name}"
    return ""


def _tells(value: ast.expr | None) -> bool:
    """Whether a default is a literal."""
    if isinstance(value, ast.Call):
        value = _given(value).get("default")
    if value is None:
        return False
    return _literal(value) is not None or (isinstance(value, ast.Constant) and value.value is None)


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


def _members(annotation: ast.expr, field: str) -> tuple[str, ...]:
    """The words of an enumeration that an annotation names; the type's and the task's have checks of their
    own."""
    kinds = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
    if field in ("peft_type", "task_type"):
        return ()
    named = ((name.partition(".")[0], value) for name, value in _enumerations().items())
    return tuple(value for kind, value in named if kind in kinds and isinstance(value, str))


def _words(enumeration: ast.ClassDef) -> Iterator[str]:
    for line in enumeration.body:
        if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant):
            yield str(line.value.value)

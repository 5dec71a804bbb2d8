"""Whose code it is, where it isn't loadkit's own: what can be known of other people's plugins without asking
them."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import msgspec

from loadkit.hooks.discovery import OWN, announced, module_of

__all__ = ["SomebodysCode", "who_says"]


class SomebodysCode(msgspec.Struct, frozen=True, kw_only=True):
    """A code that a plugin of somebody else has in its sources.

    Parameters:
        code: the code.
        plugin: the plugin's name.
        distribution: the distribution that brings it.
        version: that distribution's version.
        pages: where its documentation or home is, as the distribution says; none where it doesn't.
    """

    code: str
    plugin: str
    distribution: str
    version: str
    pages: tuple[str, ...] = ()


def who_says(code: str) -> list[SomebodysCode]:
    """The plugins of others in whose sources a problem or finding has the code; they aren't imported."""
    return [
        SomebodysCode(
            code=code,
            plugin=each.name,
            distribution=each.distribution,
            version=each.version,
            pages=_pages(each.entry.dist),
        )
        for each in announced()
        if each.distribution != OWN and any(_says(text, code) for text in _sources(module_of(each.entry)))
    ]


def _says(source: str, code: str) -> bool:
    """Whether a `Problem(…)`, a `Finding(…)`, or a function that is named after them, is given the code."""
    if code not in source:
        return False
    try:
        calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    except (SyntaxError, ValueError, RecursionError):
        return False
    return any(
        isinstance(given, ast.Constant) and given.value == code
        for call in calls
        if ast.unparse(call.func).lower().endswith(("problem", "finding"))
        for given in (*call.args[:3], *(keyword.value for keyword in call.keywords if keyword.arg == "code"))
    )


def _sources(module: str) -> Iterator[str]:
    """The sources of the package that the module is in."""
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(Path(folder).rglob("*.py")):
            yield _text(file)
    if spec is not None and spec.submodule_search_locations is None and spec.origin:
        yield _text(Path(spec.origin))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _pages(distribution: metadata.Distribution | None) -> tuple[str, ...]:
    """Addresses from the metadata, written "Label, https://…" there."""
    if distribution is None:
        return ()
    stated = [
        *(distribution.metadata.get_all("Project-URL") or ()),
        *(distribution.metadata.get_all("Home-page") or ()),
    ]
    return tuple(dict.fromkeys(each.rpartition(", ")[2] for each in stated))

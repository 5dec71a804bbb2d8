"""The tree of rooms, from the folders that are there, what their docstrings say, and the floors of the import
contracts."""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["floors", "house", "rooms", "stack"]

COLUMN, WIDTH = 24, 110
"""Where what is said of a room begins, and where its lines end."""


def floors(root: Path) -> list[list[str]]:
    """The rooms of loadkit, floor by floor from the ground, as the contract has them.

    Parameters:
        root: of the repository.

    Raises:
        LookupError: no contract of layers is there.
    """
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    for contract in settings["tool"]["importlinter"]["contracts"]:
        if contract["type"] == "layers" and contract["containers"] == ["loadkit"]:
            return [re.findall(r"\w+", floor) for floor in reversed(contract["layers"])]
    raise LookupError("pyproject.toml has no contract of layers for loadkit")


def stack(root: Path) -> str:
    """The floors of loadkit, the uppermost first.

    Parameters:
        root: of the repository.
    """
    return _block([" · ".join(floor) for floor in reversed(floors(root))])


def rooms(root: Path) -> str:
    """The rooms of loadkit with a line each, from the ground up.

    Parameters:
        root: of the repository.
    """
    return _block(
        ["loadkit/", *(_entry(root / "loadkit", name, 1) for floor in floors(root) for name in floor)]
    )


def house(root: Path) -> str:
    """Every room of the repository's packages with a line each.

    Parameters:
        root: of the repository.
    """
    lines = ["loadkit/"]
    for floor in floors(root):
        for name in floor:
            lines += [_entry(root / "loadkit", name, 1), *_inside(root / "loadkit" / name, 2)]
    own = root / "plugins" / "loadkit_plugins"
    lines.append("plugins/loadkit_plugins/")
    for name in _names(own):
        lines += [_entry(own, name, 1), *_inside(own / name, 2)]
    lines.append("plugins/")
    for folder in sorted((root / "plugins").glob("loadkit-*")):
        package = folder / folder.name.replace("-", "_")
        lines.append(_line(f"  {folder.name}/", _said(package / "__init__.py")))
    return _block(lines)


def _inside(folder: Path, depth: int) -> Iterator[str]:
    for name in _names(folder) if folder.is_dir() else ():
        if (folder / name).is_dir():
            yield _entry(folder, name, depth)
            yield from _inside(folder / name, depth + 1)


def _names(folder: Path) -> list[str]:
    packages = {path.parent.name for path in folder.glob("*/__init__.py")}
    return sorted(packages | {path.stem for path in folder.glob("*.py")} - {"__init__"})


def _entry(folder: Path, name: str, depth: int) -> str:
    package = folder / name / "__init__.py"
    there = package if package.is_file() else folder / f"{name}.py"
    return _line(f"{'  ' * depth}{name}{'/' if there is package else '.py'}", _said(there))


def _said(path: Path) -> str:
    """The first paragraph of a module's docstring, without its own name before it."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = " ".join(text.partition("\n\n")[0].split())
    before, colon, rest = first.partition(": ")
    name = path.parent.name if path.stem == "__init__" else path.stem
    told = colon and re.sub(r"\W", "_", before) == name
    return rest if told else first


def _line(name: str, said: str) -> str:
    return textwrap.fill(
        said,
        WIDTH,
        initial_indent=f"{name:{COLUMN}}",
        subsequent_indent=" " * COLUMN,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _block(lines: list[str]) -> str:
    return "\n".join(["```text", *lines, "```"])

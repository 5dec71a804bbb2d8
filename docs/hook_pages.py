"""A page for each hook: its specification, and an example from a plugin that is really used."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from loadkit.hooks import hookspecs

__all__ = ["HOOKS", "hook_pages"]

ROOT = Path(__file__).parent.parent
HOOKS = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("loadkit_")}
PLUGINS = ("plugins/loadkit_plugins/**/*.py", "plugins/*/loadkit_*/plugin.py")
TESTS = ("tests/**/*.py",)
"""Where the example is from, of a hook that no plugin here needs."""

CONSTANT, FUNCTION = 24, 40
"""Most lines of a constant that is shown with the example that uses it, and of a function that it leaves its
work to."""

ENOUGH = 8
"""Lines from which on an example shows something."""


class Example(NamedTuple):
    """An implementation: the file that has it, and its source with what it needs to be understood."""

    file: str
    source: str


def hook_pages(prose: Callable[[str], str], note: str) -> dict[str, str]:
    """Every page, by its name below docs/reference: an index, and one a hook.

    Parameters:
        prose: makes Markdown of a docstring.
        note: what every page begins with.
    """
    pages = {"hooks/index": _index(note)}
    everywhere = {name: list(_examples(name)) for name in HOOKS}
    for name, hook in HOOKS.items():
        signature = str(inspect.signature(hook)).replace("'", "")
        if not everywhere[name]:
            raise LookupError(
                f"no plugin or test here has {name}, so its page would have no example: write a test that does"
            )
        example = min(everywhere[name], key=_fitness)
        parts = [
            f"{note}\n# `{name}`",
            f"*{_kind(name)}.* See [the manual](index.md) for what that means.",
            f"```python\n{name}{signature}\n```",
            prose(inspect.getdoc(hook) or ""),
            f"## Example\n\nFrom `{example.file}`:",
            f"```python\n{example.source}\n```",
        ]
        others = sorted({e.file for e in everywhere[name]} - {example.file})
        if others:
            parts.append(f"Also in {', '.join(f'`{file}`' for file in others)}.")
        pages[f"hooks/{name}"] = "\n\n".join(parts) + "\n"
    return pages


def _fitness(example: Example) -> tuple[bool, int, str]:
    """Lower is better: the shortest that shows something."""
    lines = len(example.source.splitlines())
    return lines < ENOUGH, lines if lines >= ENOUGH else -lines, example.file


def _index(note: str) -> str:
    rows = [
        f"| [`{name}`]({name}.md) | {_kind(name)} | {(inspect.getdoc(hook) or '').splitlines()[0]} |"
        for name, hook in HOOKS.items()
    ]
    table = "\n".join(["| hook | kind | what it does |", "|---|---|---|", *rows])
    return f"{note}\n# Hooks\n\n{inspect.getdoc(hookspecs)}\n\n{table}\n"


def _kind(name: str) -> str:
    """Which of the four kinds of the manual a hook is of."""
    if name.startswith("loadkit_choose_") or name == "loadkit_contribute_kwargs":
        return "Poll"
    if name.startswith("loadkit_estimate_"):
        return "Estimate"
    first: Mapping[str, Any] = getattr(HOOKS[name], f"{hookspecs.PROJECT}_spec")
    return "Act" if first["firstresult"] else "Collect"


def _examples(hook: str) -> Iterator[Example]:
    """Implementations in plugins; in tests where no plugin has one."""
    found = [example for pattern in PLUGINS for example in _in(pattern, hook)]
    yield from found or (example for pattern in TESTS for example in _in(pattern, hook))


def _in(pattern: str, hook: str) -> Iterator[Example]:
    for path in sorted(ROOT.glob(pattern)):
        text = path.read_text(encoding="utf-8")
        if f"def {hook}(" not in text:
            continue
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == hook and node.decorator_list:
                shown = [*_constants(tree, text, node), _source(text, node), *_left_to(path, node)]
                if sum(len(part.splitlines()) for part in shown) < ENOUGH:
                    shown += _beside(tree, text, shown)
                yield Example(path.relative_to(ROOT).as_posix(), "\n\n\n".join(shown))


def _constants(tree: ast.Module, text: str, function: ast.FunctionDef) -> Iterator[str]:
    """The module's constants that a function uses, where they are short."""
    used = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and n.id.isupper()}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = {t.id for t in targets if isinstance(t, ast.Name)}
        if names & used and len(_source(text, node).splitlines()) <= CONSTANT:
            yield _source(text, node)


def _beside(tree: ast.Module, text: str, shown: list[str]) -> Iterator[str]:
    """The module's own functions that are called in what is shown, where they are short."""
    called = {n.id for part in shown for n in ast.walk(ast.parse(part)) if isinstance(n, ast.Name)}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in called:
            source = _source(text, node)
            if len(source.splitlines()) <= FUNCTION:
                yield source


def _left_to(path: Path, function: ast.FunctionDef) -> Iterator[str]:
    """The functions that it imports from a module beside it, where they are short."""
    for imported in (n for n in ast.walk(function) if isinstance(n, ast.ImportFrom)):
        package, _, module = (imported.module or "").rpartition(".")
        beside = path.with_name(f"{module}.py")
        if package.rpartition(".")[2] == path.parent.name and beside.is_file():
            text = beside.read_text(encoding="utf-8")
            names = {alias.name for alias in imported.names}
            for node in ast.parse(text).body:
                if isinstance(node, ast.FunctionDef) and node.name in names:
                    source = _source(text, node)
                    if len(source.splitlines()) <= FUNCTION:
                        yield f"# {beside.name}\n{source}"


def _source(text: str, node: ast.stmt) -> str:
    """The lines of a statement with its decorators, without the indentation of the class it stands in."""
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(d.lineno for d in decorators)])
    lines = text.splitlines()[first - 1 : node.end_lineno]
    return "\n".join(line[node.col_offset :] for line in lines)

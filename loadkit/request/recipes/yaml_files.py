"""Read a YAML file as a mapping, with what PyYAML lets pass: a key given twice."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from loadkit.errors import Problem

__all__ = ["read_yaml"]

_problem = partial(Problem, "request", "loadkit")

MERGE = "tag:yaml.org,2002:merge"


def read_yaml(path: str) -> tuple[dict[str, Any] | None, list[Problem]]:
    """The file's mapping, None where it can't be read; and what is wrong with it, without the file's name."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError, RuntimeError) as error:  # bytes that aren't text, a home that isn't there
        reason = getattr(error, "strerror", None) or str(error)
        remedy = "check the path; a recipe is a YAML file"
        return None, [_problem("recipe-unreadable", f"it can't be read: {reason}", remedy)]
    try:
        content, twice = _parsed(text)
    except (
        Exception
    ) as error:  # PyYAML's constructors raise whatever they stumble over: `!!int ''` is an IndexError
        message = f"it isn't YAML{_place(error, text)}"
        return None, [_problem("recipe-not-yaml", message, "correct the file at that place")]
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        message = f"it holds {_instead(content)}, where `key: value` lines belong"
        return None, [_problem("recipe-not-mapping", message, "give a training recipe")]
    return content, [
        _problem(
            "recipe-key-twice",
            f"line {line} gives {key!r} a second time, and only the last would count",
            "keep one of the two",
        )
        for key, line in twice
    ]


def _parsed(text: str) -> tuple[Any, list[tuple[str, int]]]:
    """What the text holds, and every key that a mapping of it has twice, with its line."""
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None, []
        twice = list(_twice(root))  # before constructing: that writes merged keys into the nodes
        return loader.construct_document(root), twice
    finally:
        loader.dispose()


def _twice(root: yaml.Node) -> Iterator[tuple[str, int]]:
    waiting, known = [root], {id(root)}  # an alias leads to a node once more, or back to itself
    while waiting:
        node = waiting.pop()
        below: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            seen: set[tuple[str, str]] = set()
            for key, value in node.value:
                below += [key, value]
                if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
                    continue
                if (key.tag, key.value) in seen:
                    yield key.value, key.start_mark.line + 1
                seen.add((key.tag, key.value))
        elif isinstance(node, yaml.SequenceNode):
            below = node.value
        for each in below:
            if id(each) not in known:
                known.add(id(each))
                waiting.append(each)


def _instead(content: Any) -> str:
    if content is None:
        return "nothing"
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    return f"the key {next(key for key in content if not isinstance(key, str))!r}, which isn't text"


def _place(error: Exception, text: str) -> str:
    """Where in the file, and what is wrong there."""
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        return f" at line {line}, column {column}: {error.reason}"
    mark, said = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is not None:
        return f" at line {mark.line + 1}, column {mark.column + 1}: {said}"
    return f": {type(error).__name__}{f', {error}' if str(error) else ''}"

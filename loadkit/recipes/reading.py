"""Read a YAML file as a mapping, with what PyYAML lets pass: a key given twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from loadkit.errors import Problem

__all__ = ["read_yaml", "recipe_problem"]


class _Loader(yaml.SafeLoader):
    """The safe loader, which also notes every key that a mapping has twice; PyYAML takes the last without a word."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.twice: list[tuple[str, int]] = []

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    self.twice.append((key_node.value, key_node.start_mark.line + 1))
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: str) -> tuple[dict[str, Any] | None, list[Problem]]:
    """The file's mapping, None where it can't be read; and what is wrong with it."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return None, [
            recipe_problem(
                "recipe-unreadable",
                path,
                f"it can't be read: {reason}",
                "check the path; a recipe is a YAML file",
            )
        ]
    loader = _Loader(text)
    try:
        content = loader.get_single_data()
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        return None, [
            recipe_problem(
                "recipe-not-yaml", path, f"it isn't YAML{_place(error)}", "correct the file at that place"
            )
        ]
    finally:
        loader.dispose()
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        what = "nothing" if content is None else f"a {type(content).__name__}"
        return None, [
            recipe_problem(
                "recipe-not-mapping",
                path,
                f"it holds {what}, where `key: value` lines belong",
                "give a training recipe",
            )
        ]
    problems = [
        recipe_problem(
            "recipe-key-twice", path, f"line {line} gives {key!r} a second time", "keep one of the two"
        )
        for key, line in loader.twice
    ]
    return content, problems


def recipe_problem(code: str, path: str, message: str, remedy: str, **more: Any) -> Problem:
    """A problem of the request that a recipe brought in."""
    text = f"recipe {path!r}: {message}"
    return Problem(stage="request", plugin="loadkit", code=code, message=text, remedy=remedy, **more)


def _place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    said = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f" at line {mark.line + 1}, column {mark.column + 1}: {said}" if mark is not None else f": {said}"

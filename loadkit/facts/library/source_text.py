"""The text of a library's source file, and the statements in it; nothing where it can't be read."""

from __future__ import annotations

import ast
from pathlib import Path

__all__ = ["source_body", "source_text"]


def source_text(path: Path) -> str:
    """A source file's text; "" where it isn't there, or isn't text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def source_body(text: str) -> tuple[ast.stmt, ...]:
    """The statements of a source; none where it isn't Python."""
    try:
        return tuple(ast.parse(text).body)
    except (SyntaxError, ValueError):
        return ()

"""Run a notebook's code cells in order, as a kernel would.

`python notebook.py NOTEBOOK` prints what each cell shows, as JSON.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["cells", "run"]


def cells(notebook: Path) -> list[str]:
    """The sources of the code cells, in order."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


def run(sources: list[str]) -> list[dict[str, str]]:
    """What each cell prints ("text"), and what its last expression shows ("html", or "repr" without)."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for number, source in enumerate(sources):
        tree = ast.parse(source, f"cell {number}")
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        printed = io.StringIO()
        value = None
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, f"cell {number}", "exec"), namespace)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), namespace)
        shown.append({"text": printed.getvalue(), **_shown(value)})
    return shown


def _shown(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if html := getattr(value, "_repr_html_", None):
        return {"html": html()}
    return {"repr": repr(value)}


if __name__ == "__main__":
    print(json.dumps(run(cells(Path(sys.argv[1])))))

"""Codes are found however a problem is made, and those of every room are on the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ERRORS = """
class Problem:
    stage: str
    plugin: str
    code: str
    message: str
"""

RULES = """
from functools import partial
from made.errors import Problem

_problem = partial(Problem, "dtype", "me")

def by_hand(code, message):
    return Problem("dtype", "me", code, message)

class Rule:
    def told(self, message, code):
        return by_hand(code, message)

found = [
    Problem("dtype", "me", "in-place", "positional-message"),
    _problem("of-a-partial", "x"),
    by_hand("of-a-function", "x"),
    Rule().told("x", "of-a-method"),
    _problem(code="by-keyword", message="x"),
    by_hand("either" if found else "or", "x"),
]
NAMED = "under-a-name"
if found:
    here = "first" if found else "second"
    by_hand(here, "x")
handed_on = Problem("dtype", "me", found[0].code, NAMED)
replace(found[0], code=NAMED)

class Other:
    code: dict

Other({code for code in "no code of a problem's"})
bound = partial(by_hand, "bound-ahead")
other = print("no-code", "of", "all")
"""

USES = """
from made.rules import _problem as mine

mine("imported", "x")
"""


def test_codes_are_found_however_a_problem_is_made(
    script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    (tmp_path / "made" / "testing").mkdir(parents=True)
    for name, text in {"errors": ERRORS, "rules": RULES, "uses": USES, "testing/kit": USES}.items():
        (tmp_path / "made" / f"{name}.py").write_text(text, encoding="utf-8")
    found = script("problem_codes").problem_codes(tmp_path, {"made": "made"})
    in_rules = "in-place of-a-partial of-a-function of-a-method by-keyword either or bound-ahead under-a-name first second"
    assert found == {
        **{code: {"made/rules.py"} for code in in_rules.split()},
        "imported": {"made/uses.py"},
    }


@pytest.mark.parametrize("code", ['f"{found}-bit"', '"a" + found', "anything()", "unheard_of"])
def test_a_code_that_is_put_together_is_refused(
    code: str, script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    """Nobody could list it, and it would be explained nowhere."""
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "errors.py").write_text(ERRORS, encoding="utf-8")
    (tmp_path / "made" / "rules.py").write_text(RULES.replace('"bound-ahead"', code), encoding="utf-8")
    with pytest.raises(LookupError, match=r"rules\.py:.* write the code as a text"):
        script("problem_codes").problem_codes(tmp_path, {"made": "made"})


def test_codes_of_every_room_are_on_the_page() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "reference" / "codes.md").read_text(
        encoding="utf-8"
    )
    for code in (
        "gated",
        "bad-header",
        "bad-option",
        "conflict",
        "does-not-fit",
        "quantized-already",
        "other-values",
    ):
        assert f"### `{code}`\n" in page

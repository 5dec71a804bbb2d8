"""How long a regular expression may take, told from its text: Python's matcher tries every way to match.

An adapter brings patterns, and PEFT matches them against the path of every module. `(.+)+x` has as many ways
to match a path as there are ways to cut it into pieces. What is counted here are those ways, from above.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

try:
    from re import _parser  # type: ignore[attr-defined]  # there is no public one
except ImportError:  # Python 3.10
    import sre_parse as _parser

__all__ = ["TOO_MANY", "ways_to_match"]

PATH = 128
"""Characters that a module's path has at most, near enough."""

WORD, TIMES = 3, 4
"""A word of so many characters is found in a path at most so often."""

TOO_MANY = 100_000
"""Ways that are too many: for thousands of modules, it would be a matter of minutes."""

EVERY = frozenset(range(129))
"""Characters by their numbers; 128 stands for all that aren't ASCII."""

NOTHING: frozenset[int] = frozenset()
REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")
CATEGORIES = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}

Items = Sequence[tuple[Any, Any]]


def ways_to_match(pattern: str) -> float:
    """In how many ways a path could match, at most; infinity where that grows with every character.

    Raises:
        re.error: it isn't a regular expression.
        RecursionError: its groups are nested too deeply.
    """
    return _sequence(_parser.parse(pattern), NOTHING, 0, within=False)


def _sequence(items: Items, after: frozenset[int], word: int, *, within: bool) -> float:
    """The ways of items one after the other.

    Parameters:
        after: the characters that what follows may begin with.
        word: how many characters what follows begins with, whatever matches.
        within: whether a repetition is around it: then more than one way is endlessly many.
    """
    ways, items = 1.0, list(items)
    for at in reversed(range(len(items))):
        rest = items[at + 1 :]
        begins, may_be_empty = _first(rest)
        then = begins | after if may_be_empty else begins
        ways *= _item(*items[at], then, _word(rest) or (word if not rest else 0), within=within)
    return ways


def _item(op: Any, given: Any, after: frozenset[int], word: int, *, within: bool) -> float:
    name = str(op)
    if name in REPEATS:
        least, most, body = given
        return _repeat(least, int(most), body, after, word, within=within)
    if name == "SUBPATTERN":
        return _sequence(given[-1], after, word, within=within)
    if name == "ATOMIC_GROUP":
        return _sequence(given, after, word, within=within)
    if name in ("ASSERT", "ASSERT_NOT"):
        return _sequence(given[1], NOTHING, 0, within=within)
    if name in ("BRANCH", "GROUPREF_EXISTS"):
        return _choice(_alternatives(name, given), after, word, within=within)
    return float("inf") if name == "GROUPREF" and within else 1.0


def _choice(alternatives: list[Items], after: frozenset[int], word: int, *, within: bool) -> float:
    every = [_sequence(one, after, word, within=within) for one in alternatives]
    if _apart(alternatives):
        return max(every)
    return float("inf") if within else sum(every)


def _apart(alternatives: list[Items]) -> bool:
    """Whether no text begins with two of them."""
    words = [_literally(one) for one in alternatives]
    if None not in words:
        texts = sorted(str(each) for each in words)
        return not any(b.startswith(a) for a, b in itertools.pairwise(texts))
    seen: set[int] = set()
    for one in alternatives:
        begins, may_be_empty = _first(one)
        if may_be_empty or begins & seen:
            return False
        seen |= begins
    return True


def _repeat(least: int, most: int, body: Items, after: frozenset[int], word: int, *, within: bool) -> float:
    begins, may_be_empty = _first(body)
    several = most > 1
    inner = _sequence(
        body, begins | after if several else after, 0 if several else word, within=within or several
    )
    if inner > 1 and several:
        return float("inf")
    if several and may_be_empty:
        return float("inf")
    if most == least or not begins & after:
        return inner
    if within:
        return float("inf")
    return inner * min(most - least + 1, TIMES if word >= WORD else PATH)


def _alternatives(name: str, given: Any) -> list[Items]:
    every = given[1] if name == "BRANCH" else given[1:]
    return [one or [] for one in every]


def _first(items: Items) -> tuple[frozenset[int], bool]:
    """The characters that a match may begin with, and whether it may be empty."""
    found: frozenset[int] = NOTHING
    for op, given in items:
        begins, may_be_empty = _first_of(str(op), given)
        found |= begins
        if not may_be_empty:
            return found, False
    return found, True


def _first_of(name: str, given: Any) -> tuple[frozenset[int], bool]:
    if name in REPEATS:
        begins, may_be_empty = _first(given[2])
        return begins, may_be_empty or given[0] == 0
    if name == "SUBPATTERN":
        return _first(given[-1])
    if name == "ATOMIC_GROUP":
        return _first(given)
    if name in ("BRANCH", "GROUPREF_EXISTS"):
        every = [_first(one) for one in _alternatives(name, given)]
        return frozenset().union(*(b for b, _ in every)), any(empty for _, empty in every)
    if name in ("AT", "ASSERT", "ASSERT_NOT"):
        return NOTHING, True
    if name == "GROUPREF":
        return EVERY, True
    return _characters(name, given), False


def _characters(name: str, given: Any) -> frozenset[int]:
    """The characters that one item stands for, in both cases."""
    if name == "LITERAL":
        return _cases({given})
    if name != "IN":
        return EVERY
    found: set[int] = set()
    for op, value in given:
        if str(op) == "RANGE":
            found |= {min(each, 128) for each in range(value[0], min(value[1], 128) + 1)} or {128}
        elif str(op) == "CATEGORY":
            found |= _category(str(value))
        elif str(op) == "LITERAL":
            found.add(value)
        elif str(op) == "NEGATE":
            continue
        else:
            return EVERY
    negated = str(given[0][0]) == "NEGATE"
    return _cases(EVERY - {min(each, 128) for each in found} if negated else found) | (
        {128} if negated else set()
    )


def _category(name: str) -> frozenset[int]:
    kind = CATEGORIES.get(name.rpartition("_")[2], "")
    if not kind:
        return EVERY
    found = frozenset(each for each in range(128) if re.match(kind, chr(each))) | {128}
    return (EVERY - found) | {128} if "_NOT_" in name else found


def _cases(numbers: Any) -> frozenset[int]:
    texts = [chr(n).swapcase() for n in numbers if n < 128]
    return frozenset({min(n, 128) for n in numbers} | {min(ord(t), 128) for t in texts})


def _word(items: Items) -> int:
    """How many characters every match begins with that are known."""
    length = 0
    for op, given in items:
        name = str(op)
        if name == "LITERAL":
            length += 1
        elif name == "SUBPATTERN" and _literally(given[-1]) is None:
            return length + _word(given[-1])
        elif name == "SUBPATTERN":
            length += len(str(_literally(given[-1])))
        elif name == "BRANCH":
            return length + min(_word(one) for one in _alternatives(name, given))
        elif name not in ("AT", "ASSERT", "ASSERT_NOT"):
            return length
    return length


def _literally(items: Items) -> str | None:
    """The text that items are, where they are one."""
    if all(str(op) == "LITERAL" for op, _ in items):
        return "".join(chr(given) for _, given in items)
    return None

"""Which implementations of experts the installed transformers has, read from its source."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

__all__ = ["experts_implementations"]

FILES = ("integrations/moe.py", "integrations/finegrained_fp8.py")
MAPPING = re.compile(r"_global_mapping = \{(.*?)\}", re.DOTALL)


@cache
def experts_implementations() -> tuple[str, ...]:
    """What `experts_implementation` may be; empty where that isn't known."""
    try:
        spec = importlib.util.find_spec("transformers")
    except (ImportError, ValueError):
        spec = None
    found: set[str] = set()
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for name in FILES:
            try:
                text = Path(place, name).read_text(encoding="utf-8")
            except OSError:
                continue
            found |= {key for body in MAPPING.findall(text) for key in re.findall(r'"(\w+)":', body)}
    return ("eager", *sorted(found)) if found else ()

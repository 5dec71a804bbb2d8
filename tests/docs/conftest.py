"""The scripts of docs/ as modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """A maker of modules: `script("generate")` is docs/generate.py."""

    def load(name: str) -> ModuleType:
        if str(DOCS) not in sys.path:
            sys.path.insert(0, str(DOCS))
        return importlib.import_module(name)

    return load

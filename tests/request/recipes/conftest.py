"""Recipes from their text: the one that is in order, and what is wrong with one that isn't."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loadkit.request.recipes import Recipe, read_recipe


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    """A recipe's file, from its text."""

    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def recipe(written: Callable[[str], Path]) -> Callable[[str], Recipe]:
    """The recipe that a text is, of which nothing is wrong."""

    def read(text: str) -> Recipe:
        found, problems = read_recipe(written(text))
        assert problems == []
        assert found is not None
        return found

    return read


@pytest.fixture
def reported(written: Callable[[str], Path]) -> Callable[[str], dict[str, str]]:
    """Code to text of everything that is wrong with a recipe."""

    def read(text: str) -> dict[str, str]:
        problems = read_recipe(written(text))[1]
        assert all(p.remedy and p.stage == "request" for p in problems)
        return {p.code: f"{p.message} | {p.remedy}" for p in problems}

    return read

"""From options, recipe and profile to one request: who wins, what was hidden, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loadkit import Option, PluginManager, Problem, Profile, Strength, hookimpl
from loadkit.planning.build_request import make_request, no_source, several_plugins
from loadkit.request.recipes import Recipe
from loadkit.schema.request import Request


class Declares:
    """A plugin with a profile and two options."""

    @hookimpl
    def loadkit_options(self) -> list[Option]:
        return [Option(name=n, type="int", stage="dtype", help="a number") for n in ("one", "two", "three")]

    @hookimpl
    def loadkit_profiles(self) -> list[Profile]:
        options = {"one": 1, "two": 1, "three": 1}
        return [
            Profile(name="ours", description="Ours.", options=options),
            Profile(name="odd", description="Odd.", options={"one": "x"}),
        ]


@pytest.fixture
def manager() -> PluginManager:
    found = PluginManager(entry_points=False, environ={})
    found.register(Declares(), "declares")
    return found


RECIPE = Recipe(
    path="some/recipe.yaml",
    source="its/model",
    options={"one": 2, "two": 2},
    trainer={"z": 1, "a": 2},
    notes=("a becomes b", "c is left out"),
)


def test_you_beat_the_recipe_and_that_the_profile_and_all_is_kept(manager: PluginManager) -> None:
    request, problems = make_request(Path("my") / "model", "ours", {"one": 3}, manager, RECIPE)
    assert (request.source, request.profile, request.recipe) == (
        str(Path("my") / "model"),
        "ours",
        "some/recipe.yaml",
    )
    assert request.trainer_keys == ("a", "z")
    by_profile, by_recipe = "profile 'ours'", "recipe 'recipe.yaml'"
    assert {n: (a.value, a.by, a.strength) for n, a in request.options.items()} == {
        "one": (3, "you", Strength.YOU),
        "two": (2, by_recipe, Strength.PROFILE),
        "three": (1, by_profile, Strength.PROFILE),
    }
    assert [(a.name, a.value, a.by) for a in request.hidden] == [
        ("one", 2, by_recipe),
        ("one", 1, by_profile),
        ("two", 1, by_profile),
    ]
    remedy = "nothing need be done; an option of your own decides otherwise"
    assert problems == [
        Problem("request", "loadkit", "recipe-note", f"{by_recipe}: {note}", remedy, "note")
        for note in RECIPE.notes
    ]


def test_the_source_is_yours_else_the_recipes(manager: PluginManager) -> None:
    assert make_request("mine", None, {}, manager, RECIPE)[0].source == "mine"
    assert make_request("", None, {}, manager, RECIPE)[0].source == ""
    assert make_request(None, None, {}, manager, RECIPE)[0].source == "its/model"
    assert make_request(None, None, {}, manager) == (Request(source=""), [])


def test_a_recipes_file_is_read_and_what_is_wrong_with_it_is_said(tmp_path: Path) -> None:
    manager, path = PluginManager(environ={}), tmp_path / "recipe.yaml"
    path.write_text("model_name_or_path: a/b\ndtype: bfloat16\nlearning_rate: 1.0e-4\n", encoding="utf-8")
    request, problems = make_request(None, None, {}, manager, path)
    assert (request.source, request.recipe, request.trainer_keys) == ("a/b", str(path), ("learning_rate",))
    assert problems == []
    path.write_text("a: [\n", encoding="utf-8")
    request, problems = make_request("mine", None, {}, manager, path)
    assert (request.source, request.recipe, request.trainer_keys) == ("mine", "", ())
    assert problems
    assert all(str(path) in p.message for p in problems)


@pytest.mark.parametrize(
    ("given", "codes"),
    [
        ({"options": {"one": "x"}}, ["bad-option"]),
        ({"recipe": Recipe(path="r", options={"one": "x", "four": 1})}, ["bad-option", "unknown-option"]),
        ({"profile": "odd"}, ["bad-option"]),
        ({"profile": "oars"}, ["unknown-profile"]),
    ],
)
def test_every_layer_is_checked(manager: PluginManager, given: dict[str, Any], codes: list[str]) -> None:
    asked = {"profile": None, "options": {}, "recipe": None, **given}
    request, problems = make_request(
        "a/b", asked["profile"], asked["options"], manager, recipe=asked["recipe"]
    )
    assert ([p.code for p in problems], request.options) == (codes, {})
    by = {"options": "you gave", "recipe": "recipe 'r' gave", "profile": ""}[next(iter(given))]
    assert all(p.message.startswith(by) for p in problems)


def test_a_profile_of_several_plugins_is_nobodys(manager: PluginManager) -> None:
    for name in ("b", "c"):
        manager.register(Declares(), name)
    request, problems = make_request("a/b", "ours", {}, manager)
    assert request.options == {}
    assert problems == [
        Problem(
            "request",
            "loadkit",
            "conflict",
            "profile 'ours' is provided by several plugins: b, c, declares",
            "leave all but one out, for example LOADKIT_DISABLE=c,declares",
        )
    ]


def test_what_is_said_where_no_model_is_named() -> None:
    remedy = "give a folder or a Hub id as the source, or model_name_or_path in the recipe"
    for request, said in (
        (Request(source=""), "neither a model nor a recipe was given"),
        (Request(source="", recipe="r.yaml"), "recipe 'r.yaml' names no model"),
    ):
        assert no_source(request) == Problem("request", "loadkit", "no-source", said, remedy)


def test_several_plugins_are_named() -> None:
    found = several_plugins("architecture", "model type", "new", {"new": ("a", "b")})
    assert found == Problem(
        "architecture",
        "loadkit",
        "conflict",
        "model type 'new' is provided by several plugins: a, b",
        "leave all but one out, for example LOADKIT_DISABLE=b",
    )

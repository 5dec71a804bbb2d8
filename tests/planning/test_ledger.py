"""Everything asked has a disposition: decided, passed on, overruled, the trainer's, unmatched, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from examples import CPU, planned

import loadkit
from loadkit.hooks.manager import default_manager
from loadkit.schema.request import Fields, Request

Tiny = Callable[..., Path]

PROFILES = ("", *sorted(default_manager().profiles.found))
OPTIONS = {option.name: option for _, option in default_manager().options.found.values()}

OF_TYPE: dict[str, tuple[Any, ...]] = {
    "bool": (True, False),
    "float": (0.5,),
    "int": (8,),
    "list": (["q_proj"],),
    "mapping": ({"r": 8},),
    "str": ("word",),
    "bool or mapping": (True, False),
    "bool or str": (True, False),
    "list or str": (["q_proj"], "all-linear"),
    "mapping or str": ("auto",),
    "names or str": ("sdpa",),
    "places or str": ("cpu",),
    "sizes": ({"cpu": "1GiB"},),
    "bool or mapping or str": (True, False),
}
"""Values to try, by the type that an option declares."""


def values(name: str) -> tuple[Any, ...]:
    option = OPTIONS[name]
    return option.choices[:2] or OF_TYPE[option.type]


def outcome(**options: Any) -> loadkit.Plan | loadkit.PlanError:
    try:
        return planned(machine=CPU, **options)
    except loadkit.PlanError as error:
        return error


@pytest.mark.parametrize(
    "profile",
    [pytest.param(p, marks=() if p in ("", "qlora") else pytest.mark.slow) for p in PROFILES],
)
def test_every_option_is_in_the_ledger_or_refused(profile: str) -> None:
    """All options × all profiles × values of every type."""
    kept = 0
    for name in OPTIONS:
        for value in values(name):
            got = outcome(profile=profile or None, **{name: value})
            if isinstance(got, loadkit.PlanError):
                assert got.problems
                continue
            mine = [r for r in got.requested if r.by == "you"]
            assert mine, (name, value)
            assert {r.name.split(".")[0] for r in mine} == {name}
            assert {r.disposition for r in mine} <= {"decided", "passed on"}, (name, value, mine)
            kept += 1
    assert kept > len(OPTIONS) / 2


@pytest.mark.parametrize(
    "profile", [pytest.param(p, marks=() if p == "qlora" else pytest.mark.slow) for p in PROFILES]
)
def test_an_option_whose_consumer_is_gone_is_refused(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutants: each option in turn is hidden from whoever reads it."""
    real = Request.asked
    hidden = ""

    def asked(self: Request, name: str) -> Any:
        return None if name == hidden else real(self, name)

    monkeypatch.setattr(Request, "asked", asked)
    tried = 0
    for name in OPTIONS:
        for value in values(name):
            hidden = ""
            if isinstance(outcome(profile=profile or None, **{name: value}), loadkit.PlanError):
                continue
            hidden = name
            got = outcome(profile=profile or None, **{name: value})
            assert isinstance(got, loadkit.PlanError), (name, value)
            codes = {problem.code for problem in got.problems}
            assert codes & {"not-taken-up", "nothing-trains"}, (name, value, got)
            tried += 1
    assert tried > len(OPTIONS) / 3


def test_an_option_that_its_plugin_never_reads_is_refused(tiny: Tiny) -> None:
    class Forgetful:
        @loadkit.hookimpl
        def loadkit_options(self) -> list[loadkit.Option]:
            return [loadkit.Option(name="sparkle", type="bool", stage="dtype", help="never read")]

    manager = loadkit.PluginManager()
    manager.register(Forgetful(), "forgetful")
    with pytest.raises(
        loadkit.PlanError, match="sparkle=True, and nothing in this plan takes it up"
    ) as caught:
        loadkit.plan(tiny("mistral"), sparkle=True, plugin_manager=manager)
    (problem,) = caught.value.problems
    assert problem.code == "not-taken-up"
    assert "'forgetful'" in problem.message


def test_a_field_that_nobody_reads_is_refused(tiny: Tiny) -> None:
    class Half:
        @loadkit.hookimpl
        def loadkit_options(self) -> list[loadkit.Option]:
            return [loadkit.Option(name="glitter", type="mapping", stage="dtype", help="half read")]

        @loadkit.hookimpl
        def loadkit_check_plan(self, context: loadkit.Context) -> list[loadkit.Problem]:
            context.request.value("glitter", {}).get("colour")
            return []

    manager = loadkit.PluginManager()
    manager.register(Half(), "half")
    assert loadkit.plan(tiny("mistral"), glitter={"colour": "red"}, plugin_manager=manager).requested
    with pytest.raises(loadkit.PlanError, match=r"glitter.colur='red'"):
        loadkit.plan(tiny("mistral"), glitter={"colour": "red", "colur": "red"}, plugin_manager=manager)


def test_what_gave_way_says_to_whom(tiny: Tiny) -> None:
    plan = loadkit.plan(tiny("mistral"), "qlora", lora_r=8)
    found = {(r.name, r.by): r for r in plan.requested}
    assert found["lora_r", "you"].disposition == "decided"
    assert found["lora_r", "you"].where == "adapter"
    overruled = found["lora_r", "profile 'qlora'"]
    assert (overruled.disposition, overruled.because) == ("overruled", "you gave 8")
    assert "lora_r=8 by you, instead of 16 by profile 'qlora'" in str(plan)
    assert "lora_alpha=32" not in str(plan)


@pytest.mark.parametrize("name", ["quantized_cache", "cpu_kernels", "check_adapter_base"])
def test_a_switch_of_something_that_isnt_there_is_no_error(tiny: Tiny, name: str) -> None:
    """A script may say once for all of its loads that nothing is to be kept."""
    assert loadkit.plan(tiny("mistral"), **{name: False}).requested[0].disposition == "decided"


def test_further_arguments_are_passed_on(tiny: Tiny) -> None:
    plan = loadkit.plan(tiny("mistral"), model_kwargs={"attention_dropout": 0.5})
    (asked,) = (each for each in plan.requested if each.by == "you")
    assert (asked.name, asked.disposition, asked.where) == (
        "model_kwargs.attention_dropout",
        "passed on",
        "attention_dropout",
    )


def test_a_recipes_keys_are_the_trainers_or_ours(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model_name_or_path: {tiny('mistral')}\nlearning_rate: 1.0e-4\ndtype: float32\n")
    found = {r.name: r for r in loadkit.plan(recipe=recipe).requested}
    assert found["learning_rate"].disposition == "left to the trainer"
    assert (found["dtype"].disposition, found["dtype"].where) == ("decided", "dtype")


def test_it_goes_with_plan_and_manifest(tiny: Tiny) -> None:
    plan = loadkit.plan(tiny("mistral"), "lora", lora_r=8)
    assert loadkit.Plan.from_json(plan.to_json()) == plan
    assert json.loads(plan.to_json())["requested"][0]["name"] == "lora_r"


def test_fields_note_what_is_read() -> None:
    from loadkit.schema.request import noting_reads

    read: list[str] = []
    fields = Fields("config", {"a": 1, "b": 2, "c": 3})
    with noting_reads(read.append):
        assert fields["a"] == 1
        assert fields.get("b") == 2
        assert read == ["config.a", "config.b"]
        assert dict(fields) == {**fields} == {"a": 1, "b": 2, "c": 3}
    assert set(read) == {"config.a", "config.b", "config.c"}
    assert fields == {"a": 1, "b": 2, "c": 3}

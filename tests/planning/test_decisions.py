"""Stage after stage, with plugins made for the purpose: what each is given, and what comes of one that can't
decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from examples import CPU, checkpoint, planned

from loadkit import (
    Claim,
    Decision,
    ModelClass,
    Option,
    Placement,
    Plan,
    PlanError,
    PluginError,
    PluginManager,
    Preparation,
    Problem,
    Processing,
    Profile,
    Strength,
    hookimpl,
)
from loadkit.plugins import Shortcut

VALUES: Mapping[str, Any] = {
    "architecture": ModelClass(
        task="causal-lm", auto_class="AutoModelForCausalLM", model_class="MistralForCausalLM"
    ),
    "dtype": "bfloat16",
    "attention": "sdpa",
    "device_map": Placement(device_map=None),
    "preparation": Preparation(training=True),
    "processing": Processing(kind="tokenizer"),
}
"""What is claimed for each stage that must be decided."""


def choosing(stage: str, answer: Callable[[dict[str, Any]], Any], *names: str) -> object:
    """A plugin that answers one stage from what it is given."""
    made: dict[str, Any] = {}
    hook = f"loadkit_choose_{stage}"
    exec(
        f"def {hook}(self{''.join(', ' + n for n in names)}):\n    return answer(locals())",
        {"answer": answer},
        made,
    )
    return type("Chooses", (), {hook: hookimpl(made[hook])})()


def claiming(stage: str, value: Any, **more: Any) -> object:
    return choosing(stage, lambda given: Claim(value=value, because="it says so", **more))


def managed(*, without: tuple[str, ...] = (), **plugins: object) -> PluginManager:
    """Plugins of their own: one for each stage that must be decided, called as the stage, and these."""
    found = PluginManager(entry_points=False, environ={})
    for stage, value in VALUES.items():
        if stage not in without:
            found.register(claiming(stage, value), stage)
    for name, plugin in plugins.items():
        found.register(plugin, name)
    return found


def failed(manager: PluginManager, **options: Any) -> PlanError:
    with pytest.raises(PlanError) as caught:
        planned(manager=manager, **options)
    return caught.value


def test_what_nobody_has_to_decide_stays_open() -> None:
    plan = planned(manager=managed())
    assert [d.stage for d in plan.decisions] == list(VALUES)
    assert [d.value for d in plan.decisions] == list(VALUES.values())
    assert (plan.quantization, plan.adapter, plan.use_cache) == (None, None, None)
    assert (plan.warnings, plan.elsewhere, plan.shortcuts) == ((), "", ())


def test_the_plan_says_what_it_was_made_from() -> None:
    plan = planned(manager=managed())
    facts = checkpoint()
    assert plan.checkpoint.tensors == len(facts.tensors) > 1
    assert (plan.checkpoint.location, plan.checkpoint.commit, plan.checkpoint.weight_files) == (
        facts.location,
        facts.commit,
        facts.weight_files,
    )
    assert (plan.machine, plan.topology) == (CPU.describe(), "")
    assert set(plan.plugins) == set(VALUES)
    assert plan.memory is not None


@pytest.mark.parametrize("stage", VALUES)
def test_what_must_be_decided_and_isnt_is_a_problem_of_that_stage_alone(stage: str) -> None:
    """But for the class, without which nobody else is asked, the others go on."""
    error = failed(managed(without=(stage,)))
    assert error.problems == (
        Problem(
            stage,
            "loadkit",
            "undecided",
            "no plugin decided it",
            "`loadkit plugins` shows which plugins are there; loadkit's own come with the distribution",
        ),
    )


def test_plugins_that_take_no_part_are_named_where_something_is_undecided() -> None:
    manager = PluginManager(environ={"LOADKIT_DISABLE": "dtype"})
    (problem,) = failed(manager).problems
    assert (
        problem.message == "no plugin decided it; not taking part: dtype (blocked: LOADKIT_DISABLE names it)"
    )


def test_a_plugin_that_explains_itself_is_heard_instead() -> None:
    said = Problem("dtype", "why", "no-dtype", "there is none", "have one")
    error = failed(managed(without=("dtype",), why=choosing("dtype", lambda given: said)))
    assert error.problems == (said,)
    assert planned(manager=managed(why=choosing("dtype", lambda given: said))).dtype == "bfloat16"


def test_without_a_class_nobody_else_is_asked() -> None:
    asked: list[str] = []
    spy = choosing("dtype", lambda given: asked.append("dtype"))
    failed(managed(without=("architecture",), spy=spy))
    assert asked == []
    planned(manager=managed(spy=spy))
    assert asked == ["dtype"]


def given_to_tokens(manager: PluginManager) -> dict[str, Any]:
    """What the stage that depends on most others is given."""
    found: dict[str, Any] = {}
    names = ("context", "architecture", "quantization", "preparation", "processing")
    manager.register(choosing("tokens", found.update, *names), "zz-spy")
    with suppress(PlanError):
        planned(manager=manager)
    return {name: found[name] for name in names}


def test_later_stages_are_given_what_earlier_ones_decided_or_something_to_go_on_with() -> None:
    given = given_to_tokens(managed())
    assert given.pop("context").checkpoint.location == "a/b"
    assert given == {
        "architecture": VALUES["architecture"],
        "quantization": None,
        "preparation": VALUES["preparation"],
        "processing": VALUES["processing"],
    }
    given = given_to_tokens(managed(without=("preparation", "processing")))
    assert (given["preparation"], given["processing"]) == (Preparation(), Processing(kind="none"))
    seen: list[Any] = []
    spy = choosing("adapter", lambda given: seen.append(given["dtype"]), "dtype")
    failed(managed(without=("dtype",), spy=spy))
    assert seen == ["float32"]


def test_a_stage_in_conflict_goes_on_with_the_strongest_and_the_whole_is_still_checked() -> None:
    class Checks:
        @hookimpl
        def loadkit_check_plan(self, plan: Plan) -> list[Problem]:
            assert plan.memory is not None
            return [Problem("check", "checks", "too", f"there is {plan.dtype} too", "mend it")]

    seen: list[Any] = []
    manager = managed(
        a=claiming("dtype", "float16", strength=Strength.PROFILE),
        b=claiming("dtype", "float32", strength=Strength.PROFILE),
        checks=Checks(),
        spy=choosing("adapter", lambda given: seen.append(given["dtype"]), "dtype"),
    )
    error = failed(manager)
    assert [p.code for p in error.problems] == ["conflict", "too"]
    assert "choose with dtype=…" in error.problems[0].remedy
    assert error.problems[1].message == "there is float32 too"
    assert seen == ["float32"]
    assert error.__cause__ is None


def test_a_plugin_that_fails_is_named_and_the_others_are_still_asked() -> None:
    def fails(given: dict[str, Any]) -> None:
        raise ZeroDivisionError("by nought")

    seen: list[Any] = []
    spy = choosing("adapter", lambda given: seen.append(given["dtype"]), "dtype")
    error = failed(managed(bad=choosing("dtype", fails), spy=spy))
    (problem,) = error.problems
    assert (problem.stage, problem.plugin, problem.code) == ("dtype", "bad", "plugin-failed")
    assert "ZeroDivisionError: by nought" in problem.message
    assert problem.remedy == "tell the plugin's author, or go on without it: LOADKIT_DISABLE=bad"
    assert isinstance(error.__cause__, PluginError)
    assert str(error.__cause__) == problem.message
    assert seen == ["float32"]


def test_a_value_is_brought_into_the_stages_type_or_refused() -> None:
    plan = planned(manager=managed(without=("device_map",), p=claiming("device_map", {"device_map": "auto"})))
    assert plan.why("device_map").value == Placement(device_map="auto")
    (problem,) = failed(managed(without=("device_map",), p=claiming("device_map", 5))).problems
    assert "loadkit_choose_device_map" in problem.message
    assert "its claim has a value of the wrong type: 5 (Expected `object`, got `int`)" in problem.message
    seen: list[Any] = []
    spy = choosing("adapter", lambda given: seen.append(given["dtype"]), "dtype")
    (problem,) = failed(managed(without=("dtype",), p=claiming("dtype", object()), spy=spy)).problems
    assert problem.code == "plugin-failed"
    assert seen == ["float32"]


# --- Further keyword arguments ----------------------------


def contributing(answer: Callable[[Plan], Any]) -> object:
    class Contributes:
        @hookimpl
        def loadkit_contribute_kwargs(self, plan: Plan) -> Any:
            return answer(plan)

    return Contributes()


def one(value: Any, strength: Strength = Strength.CLAIM) -> Claim[Any]:
    return Claim(value=value, because="so", strength=strength)


def test_keywords_come_sorted_each_decided_among_all_that_claim_it() -> None:
    several = [one(1, Strength.FALLBACK), one(2)]
    manager = managed(
        p=contributing(lambda plan: {"z": several, "y": tuple(several), "x": one(plan.dtype)}),
        q=contributing(lambda plan: {"z": one(3, Strength.PROFILE)}),
        r=contributing(lambda plan: {"w": [], "z": ()}),
    )
    decisions = planned(manager=manager).decisions[len(VALUES) :]
    assert [(d.stage, d.value, d.plugin) for d in decisions] == [
        ("kwargs.x", "bfloat16", "p"),
        ("kwargs.y", 2, "p"),
        ("kwargs.z", 3, "q"),
    ]
    assert [o.value for o in decisions[2].instead_of] == [2, 1]


def test_a_keyword_in_conflict_is_chosen_in_model_kwargs() -> None:
    manager = managed(p=contributing(lambda plan: {"x": one(1)}), q=contributing(lambda plan: {"x": one(2)}))
    (problem,) = failed(manager).problems
    assert (problem.stage, problem.code) == ("kwargs.x", "conflict")
    assert "model_kwargs={'x': …}" in problem.remedy


@pytest.mark.parametrize("answer", [5, [one(1)], {"x": 5}, {"x": [one(1), 5]}, {"x": None}])
def test_an_answer_of_another_kind_is_refused(answer: Any) -> None:
    (problem,) = failed(managed(p=contributing(lambda plan: answer))).problems
    assert (problem.stage, problem.plugin, problem.code) == ("kwargs", "p", "plugin-failed")
    said = f"it answered {answer!r}; this hook returns a mapping of keyword to Claim, or None"
    assert said in problem.message
    assert "loadkit_contribute_kwargs" in problem.message


@pytest.mark.parametrize(
    ("key", "owner", "remedy"),
    [
        (
            "torch_dtype",
            "dtype stage",
            "give it as an option of its own (dtype=…) rather than in model_kwargs",
        ),
        ("revision", "checkpoint step, which decides it itself", "leave revision out of model_kwargs"),
        (
            "tp_size",
            "engine step, which decides it itself",
            "leave tp_size out of model_kwargs; tp_plan and tp_size are options of their own",
        ),
    ],
)
def test_a_keyword_of_somebody_elses_is_refused_in_these_words(key: str, owner: str, remedy: str) -> None:
    error = failed(managed(p=contributing(lambda plan: {key: one(1)})))
    said = f"{key!r} was given as a further keyword argument, but it belongs to the {owner}"
    assert error.problems == (Problem("kwargs", "p", "owned-kwarg", said, remedy),)


# --- The whole ----------------------------


def test_a_plan_that_isnt_whole_is_checked_by_nobody() -> None:
    asked: list[str] = []

    class Looks:
        @hookimpl
        def loadkit_check_plan(self, plan: Plan) -> list[Problem]:
            asked.append("check")
            return [Problem("check", "looks", "by-the-way", "look", "at it", severity="warning")]

        @hookimpl
        def loadkit_shortcuts(self, plan: Plan, identity: str, machine: Any, entries: Any) -> list[Shortcut]:
            asked.append(f"{machine.describe() == CPU.describe()} {type(entries).__name__}")
            return [Shortcut(plugin="looks", line="it is ready")]

    failed(managed(without=("dtype",), looks=Looks()))
    assert asked == []
    plan = planned(manager=managed(looks=Looks()))
    assert asked == ["check", "True Entries"]
    assert [w.code for w in plan.warnings] == ["by-the-way"]
    assert [s.line for s in plan.shortcuts] == ["it is ready"]


def test_a_check_that_fails_is_named() -> None:
    class Fails:
        @hookimpl
        def loadkit_check_plan(self) -> list[Problem]:
            raise ZeroDivisionError("by nought")

    (problem,) = failed(managed(fails=Fails())).problems
    assert (problem.stage, problem.plugin, problem.code) == ("check", "fails", "plugin-failed")


def test_weights_that_dont_fit_are_a_problem_of_the_whole() -> None:
    error = failed(managed(), machine=msgspec.structs.replace(CPU, memory=10_000))
    assert [(p.stage, p.plugin) for p in error.problems] == [("memory", "loadkit")]


def test_demands_are_named_only_of_the_stage_and_of_those_that_claim() -> None:
    class Declares:
        """An option of the stage by a plugin that claims nothing."""

        @hookimpl
        def loadkit_options(self) -> list[Option]:
            return [
                Option(name="idle", type="bool", stage="dtype", help="nothing"),
                Option(name="dtype", type="str", stage="dtype", help="the dtype"),
            ]

    class Wants:
        def __init__(self, name: str, value: str) -> None:
            self.name, self.value = name, value

        @hookimpl
        def loadkit_options(self) -> list[Option]:
            own = [
                Option(name=f"{self.name}{end}", type="bool", stage="dtype", help="it")
                for end in ("", "_wish")
            ]
            other = Option(name=f"{self.name}_other", type="bool", stage="attention", help="another stage's")
            return [*own, other]

        @hookimpl
        def loadkit_profiles(self) -> list[Profile]:
            """Wishes are no demands: nobody can take them back."""
            wishes = {f"{self.name}_wish": True}
            return [Profile(name=f"wish-{self.name}", description="A wish.", options=wishes)]

        @hookimpl
        def loadkit_choose_dtype(self) -> Claim[str]:
            return one(self.value, Strength.YOU)

    manager = managed(declares=Declares(), p=Wants("half", "float16"), q=Wants("exact", "float32"))
    given = {"half": True, "exact": True, "half_other": True, "idle": True}
    (problem,) = failed(manager, profile="wish-half", **given).problems
    assert problem.remedy.startswith("keep one of exact=True, half=True and take back the others, or ")
    (problem,) = failed(manager, **given, dtype="float64").problems
    assert problem.remedy.startswith("keep one of dtype='float64', exact=True, half=True and ")


def test_a_decision_that_concurs_says_with_whom() -> None:
    (dtype,) = (
        d for d in planned(manager=managed(z=claiming("dtype", "bfloat16"))).decisions if d.stage == "dtype"
    )
    assert dtype == Decision(
        stage="dtype",
        value="bfloat16",
        plugin="dtype",
        because="it says so",
        strength=Strength.CLAIM,
        concurring=("z",),
    )

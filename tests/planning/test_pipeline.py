"""Requests, conflicts and problems: what the pipeline makes of the plugins' opinions."""

from __future__ import annotations

from typing import Any

import pytest
from examples import CPU, T4, checkpoint, planned, problems
from hypothesis import given, settings
from hypothesis import strategies as st

from loadkit import (
    Claim,
    Context,
    LoadkitError,
    Option,
    Plan,
    PlanError,
    PluginManager,
    Quantization,
    Strength,
    hookimpl,
)


class Says:
    """A plain third-party plugin."""

    def __init__(self, value: str, because: str = "it says so") -> None:
        self.value, self.because = value, because

    @hookimpl
    def loadkit_choose_dtype(self) -> Claim[str]:
        return Claim(value=self.value, because=self.because)


def managed(**plugins: object) -> PluginManager:
    found = PluginManager(environ={})
    for name, plugin in plugins.items():
        found.register(plugin, name)
    return found


def test_a_third_party_changes_one_decision_and_the_plan_says_so() -> None:
    before, after = planned(), planned(manager=managed(other=Says("float32")))
    decision = after.why("dtype")
    assert (decision.value, decision.plugin, decision.strength) == ("float32", "other", Strength.CLAIM)
    assert [(o.plugin, o.value) for o in decision.instead_of] == [("dtype", "bfloat16")]
    assert [d for d in before.decisions if d.stage != "dtype"] == [
        d for d in after.decisions if d.stage != "dtype"
    ]
    assert "instead of bfloat16 (dtype: the checkpoint's files have it)" in after.explained()


def test_the_user_beats_everybody() -> None:
    plan = planned(manager=managed(other=Says("float32")), dtype="float16")
    assert plan.dtype == "float16"
    assert {o.plugin for o in plan.why("dtype").instead_of} == {"other", "dtype"}


def test_two_that_disagree_are_an_error_that_names_both() -> None:
    manager = managed(a=Says("float32", "it is exact"), b=Says("float16", "it is small"))
    told = problems(manager=manager)["conflict"]
    for words in ("'a'", "'b'", "it is exact", "it is small", "dtype="):
        assert words in told
    assert planned(manager=manager, dtype="float32").dtype == "float32"
    manager.unregister("b")
    assert planned(manager=manager).dtype == "float32"


@settings(max_examples=20, deadline=None)
@given(st.permutations(["a", "b", "c"]))
def test_registration_order_decides_nothing(order: list[str]) -> None:
    plugins = {"a": Says("float32"), "b": Says("float32"), "c": Says("float32", "for another reason")}
    assert planned(manager=managed(**{name: plugins[name] for name in order})) == planned(
        manager=managed(**plugins)
    )


def test_all_problems_come_together() -> None:
    told = problems(
        None, "qloar", dtpe="x", dtype="bf17", load_in_4bit=True, load_in_8bit=True, skip_modules=["qq_proj"],
        attn_implementation="flash_attention_2", device_map="cuda:0", chat_template=5,
    )  # fmt: skip
    assert set(told) == {
        "unknown-profile", "unknown-option", "unknown-dtype", "4bit-and-8bit", "skip-matches-nothing",
        "attention-unavailable", "no-such-device", "bad-option",
    }  # fmt: skip


def test_every_problem_has_a_remedy_and_a_plugin() -> None:
    with pytest.raises(PlanError) as caught:
        planned(None, "qloar", dtype="bf17")
    error = caught.value
    assert all(p.remedy and p.plugin and p.stage and p.code for p in error.problems)
    assert str(error).count("fix:") == len(error.problems) == 2


def test_a_keyword_that_a_stage_owns_is_refused() -> None:
    with pytest.raises(PlanError) as caught:
        planned(model_kwargs={"torch_dtype": "float16", "revision": "main", "trust_remote_code": True})
    refused = caught.value.problems
    assert {(p.stage, p.plugin, p.code) for p in refused} == {("kwargs", "from-pretrained", "owned-kwarg")}
    assert {p.message.split("'")[1]: (p.message.partition("belongs to the ")[2], p.remedy) for p in refused} == {
        "torch_dtype": ("dtype stage", "give it as an option of its own (dtype=…) rather than in model_kwargs"),
        "revision": ("checkpoint step, which decides it itself", "leave revision out of model_kwargs"),
        "trust_remote_code": (
            "architecture stage", "give it as an option of its own (task=…) rather than in model_kwargs"
        ),
    }  # fmt: skip


def test_further_keywords_are_decided_one_by_one() -> None:
    plan = planned(model_kwargs={"attention_dropout": 0.1}, cache_dir="cache")
    assert plan.kwargs["attention_dropout"] == 0.1
    assert plan.why("attention_dropout").because == "you asked for it in model_kwargs"
    assert plan.kwargs["cache_dir"] == "cache"


class Contributes:
    @hookimpl
    def loadkit_contribute_kwargs(self) -> dict[str, Claim[int]]:
        return {"low_limit": Claim(value=3, because="it helps")}


def test_a_plugin_contributes_a_keyword() -> None:
    plan = planned(manager=managed(more=Contributes()))
    assert plan.kwargs["low_limit"] == 3
    assert plan.why("low_limit").plugin == "more"
    assert (
        planned(manager=managed(more=Contributes()), model_kwargs={"low_limit": 4}).kwargs["low_limit"] == 4
    )


@pytest.mark.parametrize(
    "profile", [None, "full", "lora", "qlora", "qlora-8bit", "inference", "inference-4bit"]
)
@pytest.mark.parametrize("machine", [CPU, T4], ids=["cpu", "t4"])
def test_a_plan_survives_json(profile: str | None, machine) -> None:
    plan = planned(
        None, profile, machine=machine, skip_modules=["q_proj"] if profile and "4bit" in profile else None
    )
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert (again.digest, hash(again), again.kwargs, str(again)) == (
        plan.digest,
        hash(plan),
        plan.kwargs,
        str(plan),
    )
    assert type(again.why("architecture").value) is type(plan.why("architecture").value)


def test_equal_requests_have_equal_digests_and_others_dont() -> None:
    assert planned().digest == planned().digest
    assert planned().digest != planned(dtype="float32").digest
    assert planned().digest != planned(checkpoint(commit="f" * 40)).digest


def test_why_finds_stages_options_and_keywords() -> None:
    plan = planned(model_kwargs={"attention_dropout": 0.5})
    assert plan.why("attn_implementation") is plan.why("attention")
    assert plan.why("attention_dropout").value == 0.5
    with pytest.raises(LoadkitError, match="did you mean 'attention'"):
        plan.why("attentoin")


def test_what_isnt_a_plan_is_refused() -> None:
    for text in ("", "{}", "[1]", "\xff", planned().to_json().replace('"bfloat16"', "[1]")):
        with pytest.raises(LoadkitError):
            Plan.from_json(text)


def test_a_quantization_config_that_nobody_takes_up_is_refused() -> None:
    assert "gptq" in problems(quantization_config={"quant_method": "gptq", "bits": 4})["unknown-quantization"]


@pytest.mark.parametrize("config", [{"quant_method": "other"}, {"bits": 3}])
def test_a_quantization_config_without_a_taker_is_refused(config: dict[str, Any]) -> None:
    assert "isn't quantized" in problems(quantization_config=config)["unknown-quantization"]


class Quantizes:
    """A quantizer that has never heard of another."""

    @hookimpl
    def loadkit_options(self) -> list[Option]:
        return [Option(name="third", type="bool", stage="quantization", help="quantize by the third method")]

    @hookimpl
    def loadkit_choose_quantization(self, context: Context) -> Claim[Any] | None:
        asked = context.request.asked("third")
        skip = tuple(context.request.value("skip_modules", ()))
        value = Quantization(method="third", bits=3, skip_modules=skip)
        return asked and Claim(value=value, because=asked.because, strength=asked.strength)


def test_skip_modules_belongs_to_every_quantizer() -> None:
    plan = planned(manager=managed(third=Quantizes()), third=True, skip_modules=["q_proj"])
    assert plan.quantization is not None
    assert (plan.quantization.method, plan.quantization.skip_modules) == ("third", ("q_proj",))
    again = problems(manager=managed(third=Quantizes()), third=True, skip_modules=["q_prj"])
    assert list(again) == ["skip-matches-nothing"]
    assert "did you mean 'q_proj'?" in again["skip-matches-nothing"]
    alone = PluginManager(environ={"LOADKIT_DISABLE": "bitsandbytes"})
    assert "skip_modules" in problems(manager=alone, skip_modules=["q_proj"])["setting-without-quantization"]


def test_demands_of_two_quantizers_are_a_conflict_that_names_them() -> None:
    told = problems(manager=managed(third=Quantizes()), third=True, load_in_4bit=True, dtype="float32")
    assert list(told) == ["conflict"]
    assert "keep one of load_in_4bit=True, third=True and take back the others" in told["conflict"]


def test_modules_to_skip_are_looked_for_in_a_config_too() -> None:
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "llm_int8_skip_modules": ["q_prj"]}
    assert "did you mean 'q_proj'?" in problems(quantization_config=config)["skip-matches-nothing"]

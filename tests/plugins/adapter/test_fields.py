"""The fields of a PEFT config: yours are met one by one; what PEFT can't take is refused while planning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from examples import checkpoint, planned, problems

GOOD = {"r": 4, "target_modules": ["q_proj"]}


def fields(*args: Any, **kwargs: Any) -> dict[str, Any]:
    adapter = planned(*args, **kwargs).adapter
    assert adapter is not None
    return adapter.options


def lora(**given: Any) -> Any:
    import peft

    return peft.LoraConfig(**given)


def test_what_a_dict_leaves_out_may_come_from_the_profile() -> None:
    options = fields(None, "lora", peft_config=GOOD)
    assert (options["r"], options["target_modules"]) == (4, ["q_proj"])
    assert (options["lora_alpha"], options["lora_dropout"]) == (32.0, 0.05)


def test_an_objects_defaults_were_given_too() -> None:
    options = fields(None, "lora", peft_config=lora(**GOOD))
    assert (options["r"], options["lora_alpha"], options["lora_dropout"]) == (4, 8, 0.0)
    options = fields(None, "lora", peft_config=lora(**GOOD), lora_alpha=64)  # but for an option of yours
    assert options["lora_alpha"] == 64.0


@pytest.mark.parametrize("config", [GOOD, "object"])
def test_two_demands_that_differ_are_a_conflict(config: Any) -> None:
    given = lora(**GOOD) if config == "object" else config
    told = problems(None, "lora", peft_config=given, lora_r=8)["option-twice"]
    assert "peft_config(r=4) and lora_r=8" in told
    assert fields(None, "lora", peft_config=given, lora_r=4)["r"] == 4
    targets = problems(peft_config=given, lora_target_modules=["k_proj"])["option-twice"]
    assert "lora_target_modules=['k_proj']" in targets


def test_an_option_of_yours_goes_over_a_profiles_config(tmp_path: Path) -> None:
    profile = tmp_path / "mine.toml"
    profile.write_text('description = "x"\n[options]\npeft_config = { r = 4, target_modules = ["q_proj"] }\n')
    decision = planned(None, str(profile), lora_r=8).why("adapter")
    assert decision.value.members[0].options["r"] == 8
    assert [p.value for p in decision.passed_over] == ["peft_config.r=4"]


def test_a_profiles_lora_has_no_place_in_a_config_of_another_type() -> None:
    decision = planned(
        None,
        "qlora",
        peft_config={"peft_type": "IA3", "target_modules": ["k_proj"], "feedforward_modules": []},
    ).why("adapter")
    assert decision.value.members[0].peft_type == "IA3"
    assert "lora_r" not in str(decision.value.members[0].options)
    assert "the peft_config is one of IA3" in decision.passed_over[0].reason
    told = problems(peft_config={"peft_type": "IA3"}, lora_r=4)["lora-option-unused"]
    assert "lora_r" in told


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ({"lora_alhpa": 8}, "unknown-field", "did you mean 'lora_alpha'"),
        ({"peft_type": "LORAA"}, "unknown-peft-type", "did you mean 'LORA'"),
        ({"init_lora_weights": "gausian"}, "unknown-init", "did you mean 'gaussian'"),
        ({"bias": "some"}, "bad-field", "lora_only"),
        ({"r": "8"}, "bad-field", "a str; the field takes int"),
        ({"r": True}, "bad-field", "a bool"),
        ({"target_modules": {"q_proj": 1}}, "bad-field", "a dict"),
        ({"r": 0}, "bad-field", "a rank is 1 or more"),
        ({"lora_dropout": 1.5}, "bad-field", "less than 1"),
        ({"lora_alpha": float("inf")}, "bad-field", "finite"),
        ({"rank_pattern": {"q_proj": -1}}, "bad-field", "a rank is 1 or more"),
        ({"layers_to_transform": [2]}, "target-matches-nothing", "2 layers"),
        ({"layers_pattern": "layers"}, "fields-contradict", "layers_to_transform"),
        ({"task_type": "SEQ_CLS"}, "peft-task-differs", "task='sequence-classification'"),
        ({"task_type": "CAUSAL"}, "peft-task-differs", "did you mean 'CAUSAL_LM'"),
        ({"exclude_modules": ["k_porj"]}, "target-matches-nothing", "did you mean 'k_proj'"),
    ],
)  # fmt: skip
def test_fields_that_cant_be(given: dict[str, Any], code: str, said: str) -> None:
    facts = checkpoint(
        {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "num_hidden_layers": 2}
    )
    assert said in problems(facts, peft_config={**GOOD, **given})[code]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lora_r": 0}, "you gave lora_r=0"),
        ({"lora_r": -8}, "a rank is 1 or more"),
        ({"lora_dropout": 1.0}, "less than 1"),
        ({"lora_dropout": -0.1}, "0 or more"),
        ({"lora_alpha": 0}, "does nothing"),
    ],
)
def test_plain_options_that_cant_be(options: dict[str, Any], said: str) -> None:
    assert said in problems(None, "lora", **options)["bad-field"]


def test_nan_is_refused_wherever_it_stands() -> None:
    assert "isn't a number" in problems(None, "lora", lora_dropout=float("nan"))["bad-option"]
    assert "isn't a number" in problems(peft_config={**GOOD, "lora_alpha": float("nan")})["bad-option"]
    assert "isn't a number" in problems(load_in_8bit=True, llm_int8_threshold=float("nan"))["bad-option"]


def test_a_profiles_targets_are_met_as_far_as_they_are_there(tmp_path: Path) -> None:
    profile = tmp_path / "mine.toml"
    profile.write_text(
        'description = "x"\nextends = "lora"\n[options]\nlora_target_modules = ["q_proj", "wqkv"]\n'
    )
    decision = planned(None, str(profile)).why("adapter")
    assert decision.value.members[0].options["target_modules"] == ["q_proj", "wqkv"]
    assert [p.value for p in decision.passed_over] == ["wqkv"]
    profile.write_text('description = "x"\nextends = "lora"\n[options]\nlora_target_modules = ["wqkv"]\n')
    assert "'wqkv'" in problems(None, str(profile))["target-matches-nothing"]


def test_every_field_of_every_type_is_read_as_peft_has_it() -> None:
    import dataclasses

    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from loadkit.facts.library.peft_configs import peft_fields, peft_task_types, peft_types

    assert {str(t.value) for t in PEFT_TYPE_TO_CONFIG_MAPPING} == set(peft_types())
    for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        assert {f.name for f in dataclasses.fields(config) if f.init} == set(peft_fields(kind.value))
    assert "SEQ_CLS" in peft_task_types()


def test_a_rank_of_0_is_a_block_size_in_oft() -> None:
    """PEFT's own default of OFT."""
    plan = planned(
        peft_config={"peft_type": "OFT", "target_modules": ["q_proj"], "r": 0, "oft_block_size": 32}
    )
    assert plan.adapter is not None

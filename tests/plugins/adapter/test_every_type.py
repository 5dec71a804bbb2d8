"""Every adapter type of the installed PEFT × odd values of every field: what is planned can be attached."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from examples import CPU, PACKAGES, planned, problems

import loadkit
from loadkit.facts.library.peft_configs import PeftField, peft_fields, peft_types

Tiny = Callable[..., Path]

NEEDED: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 900}, "ADAPTION_PROMPT": {"target_modules": None, "adapter_len": 4, "adapter_layers": 1}, "C3A": {"block_size": 16},
    "LILY": {"num_B": 2}, "ROAD": {"group_size": 8}, "SHIRA": {"r": 2}, "VBLORA": {"vector_length": 16, "num_vectors": 8}, "WAVEFT": {"n_frequency": 16},
}  # fmt: skip
"""What the tiny model's widths, or the type itself, want."""

NOT_OURS = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "inference_mode", "base_model_name_or_path", "revision",
    "shadow_model", "prompt_tuning_init_state_dict_path", "tokenizer_name_or_path", "corda_config", "megatron_config",
}  # fmt: skip
"""Fields with checks of their own, and such as name something on the Hub or on the disk."""

SECONDS = 60


def odd_values(field: PeftField) -> list[Any]:
    by_kind: dict[str, list[Any]] = {
        "bool": [True, False], "int": [-1, 0, 1, 3, 200], "float": [-0.5, 0.0, 2.0, float("nan")], "dict": [{}, {"a": 1}, {"q_proj": 2}],
        "Config": [{}, {"a": 1}], "list": [[], ["q_proj"], ["nope"], [1]], "str": ["", "nope", "é"],
    }  # fmt: skip
    return [
        *field.choices,
        *(v for kind, values in by_kind.items() if kind in field.annotation for v in values),
    ]


def cases() -> Iterator[dict[str, Any]]:
    for kind in sorted(peft_types()):
        fields = peft_fields(kind)
        start: dict[str, Any] = {"peft_type": kind}
        if "target_modules" in fields:
            start["target_modules"] = ["q_proj", "v_proj"]
        if "num_virtual_tokens" in fields and kind != "CPT":
            start["num_virtual_tokens"] = 4
        start |= NEEDED.get(kind, {})
        yield start
        for name, field in fields.items():
            yield from ({**start, name: value} for value in odd_values(field) if name not in NOT_OURS)


def attached(base: Any, folder: Path, given: dict[str, Any]) -> bool:
    """Whether a plan was made; what was planned must be attached, and train."""
    from loadkit_plugins.adapter.attach import attach

    try:
        plan = loadkit.plan(folder, "lora", gradient_checkpointing=False, peft_config=given)
    except loadkit.PlanError:
        return False
    assert plan.adapters is not None
    model = attach(plan, copy.deepcopy(base), plan.adapters, loadkit.Vocabulary(size=0))
    assert any(parameter.requires_grad for parameter in model.parameters()), given
    return True


def swept(folder: Path, chosen: list[dict[str, Any]], seconds: float) -> tuple[int, list[str]]:
    base = loadkit.load(folder, "lora", adapter=False, gradient_checkpointing=False).model
    end, kept, faults = time.monotonic() + seconds, 0, list[str]()
    for given in chosen:
        if time.monotonic() > end:
            break
        try:
            kept += attached(base, folder, given)
        except Exception as error:
            faults.append(f"{given}: {type(error).__name__}: {error}")
    return kept, faults


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_what_is_planned_is_attached(tiny: Tiny) -> None:
    chosen = list(cases())
    random.Random(0).shuffle(chosen)
    kept, faults = swept(tiny("mistral"), chosen, SECONDS)
    assert kept > 100
    assert not faults, "\n".join(faults)


@pytest.mark.filterwarnings("ignore")
def test_a_sample_of_it(tiny: Tiny) -> None:
    chosen = random.Random(1).sample(list(cases()), 24)
    kept, faults = swept(tiny("mistral"), chosen, 10)
    assert kept > 3
    assert not faults, "\n".join(faults)


def test_the_package_that_a_type_needs() -> None:
    given = {"peft_type": "ADAMSS", "target_modules": ["q_proj"]}
    assert "pip install scikit-learn" in problems(profile="lora", peft_config=given)["peft-needs-package"]
    import msgspec

    with_it = msgspec.structs.replace(CPU, packages={**PACKAGES, "scikit-learn": "1.7"})
    assert planned(profile="lora", peft_config=given, machine=with_it).adapter is not None


Q = ["q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ({"use_bdlora": {}}, "peft-refuses", "in neither of target_modules_bd_a"),
        ({"use_bdlora": {"target_modules_bd_a": Q, "target_modules_bd_b": Q}}, "peft-refuses", "in both of"),
        ({"arrow_config": {}}, "peft-refuses", "create_arrow_model"),
        ({"peft_type": "OFT", "oft_block_size": -1}, "bad-field", "isn't negative"),
        ({"peft_type": "UNILORA", "proj_seed": -1}, "bad-field", "isn't negative"),
        ({"peft_type": "POLY", "n_splits": 0}, "bad-field", "divided by it"),
        ({"peft_type": "PEANUT", "act_fn": "gleu"}, "bad-field", "did you mean 'gelu'"),
        ({"peft_type": "PSOFT", "r": 500}, "peft-refuses", "must be less than or equal to"),
        ({"peft_type": "P_TUNING", "target_modules": None, "num_virtual_tokens": 4, "encoder_reparameterization_type": "MPL"}, "bad-field", "did you mean 'MLP'"),
        ({"peft_type": "MULTITASK_PROMPT_TUNING", "target_modules": None, "num_virtual_tokens": 4, "prompt_tuning_init": "EXACT_SOURCE_TASK"}, "init-needs-config", "state_dict_path"),
        ({"target_parameters": ["q_proj.weight"]}, "fields-contradict", "adapted twice"),
    ],
)  # fmt: skip
def test_what_is_refused(given: dict[str, Any], code: str, said: str) -> None:
    assert said in problems(profile="lora", peft_config={"target_modules": Q, **given})[code]


@pytest.mark.parametrize("by", ["option", "config"])
def test_parameters_of_linear_layers_alone(tiny: Tiny, by: str) -> None:
    names = ["q_proj.weight"]
    given: dict[str, Any] = (
        {"lora_target_parameters": names} if by == "option" else {"peft_config": {"target_parameters": names}}
    )
    loaded = loadkit.load(tiny("mistral"), "lora", **given)
    trained = {
        n.split(".lora_")[0].split(".")[-1] for n, p in loaded.model.named_parameters() if p.requires_grad
    }
    assert trained == {"q_proj"}
    assert [p.value for p in loaded.plan.why("adapter").passed_over] == ["lora_target_modules=all-linear"]
    told = problems(profile="qlora", **given)
    assert "is quantized" in told["target-cant-be-adapted"]

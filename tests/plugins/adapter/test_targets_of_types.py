"""Every adapter type × models that PEFT knows, and that it does not, with and without targets: what is
planned is loaded, and stays out of towers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import loadkit
from loadkit.facts.library.peft_configs import peft_fields, peft_types

Tiny = Callable[..., Path]

ARCHITECTURES = {"gemma3": "q_proj", "gpt2": "c_attn", "mistral": "q_proj", "qwen2-sequence-classification": "q_proj", "t5": "q"}  # fmt: skip
"""Each to one of its linear layers."""

NEEDED: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10}, "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1}, "IA3": {"feedforward_modules": []},
    "TRAINABLE_TOKENS": {"token_indices": [1, 2]}, "VBLORA": {"vector_length": 16, "num_vectors": 8}, "C3A": {"block_size": 16},
    "ROAD": {"group_size": 8}, "SHIRA": {"r": 2}, "WAVEFT": {"n_frequency": 16}, "MULTITASK_PROMPT_TUNING": {"num_tasks": 2},
}  # fmt: skip

ROUNDED = "SHADOW"
"""Its copy's rotary frequencies are cast to the base's dtype (PEFT 0.21.2), which the audit finds."""


def asked(kind: str, targets: Any) -> dict[str, Any]:
    fields = peft_fields(kind)
    given: dict[str, Any] = {"peft_type": kind, **NEEDED.get(kind, {})}
    if targets is not None:
        given["target_modules"] = targets
    if "num_virtual_tokens" in fields and kind != "CPT":
        given["num_virtual_tokens"] = 4
    return given


def cases() -> Iterator[tuple[str, str, Any]]:
    for architecture, layer in ARCHITECTURES.items():
        for kind in sorted(peft_types()):
            named = "target_modules" in peft_fields(kind)
            for targets in (None, "all-linear", [layer]) if named else (None,):
                yield architecture, kind, targets


def load(folder: Path, given: dict[str, Any]) -> Any:
    """The model; None where the plan is refused. Anything else that is raised is a fault."""
    dtype = "float32" if given["peft_type"] == ROUNDED else "bfloat16"
    try:
        return loadkit.load(folder, dtype=dtype, peft_config=given).model
    except loadkit.PlanError:
        return None


def faults(model: Any) -> list[str]:
    trains = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [name for name in trains if "vision" in name] if trains else ["nothing trains"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_planned_is_loaded(tiny: Tiny, architecture: str) -> None:
    loaded, wrong = 0, dict[str, Any]()
    for name, kind, targets in cases():
        if name != architecture:
            continue
        try:
            model = load(tiny(architecture), asked(kind, targets))
        except Exception as error:
            wrong[f"{kind} {targets}"] = error
            continue
        loaded += model is not None
        if model is not None and (found := faults(model)):
            wrong[f"{kind} {targets}"] = found
    assert not wrong
    assert loaded > 25


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("architecture", "given", "code", "said"),
    [
        ("gemma3", {"peft_type": "OFT"}, "no-default-targets", 'target_modules="all-linear"'),
        ("gemma3", {"peft_type": "LORA"}, "no-default-targets", "Gemma3ForConditionalGeneration"),
        ("gemma3", {"peft_type": "IA3", "target_modules": ["q_proj"]}, "no-default-targets", "feedforward_modules"),
        ("gemma3", {"peft_type": "ADAPTION_PROMPT", "adapter_len": 4, "adapter_layers": 1}, "peft-refuses", "another type"),
        ("gemma3", {"peft_type": "SHADOW"}, "peft-refuses", "the decoder"),
        ("gpt2", {"peft_type": "ADAPTION_PROMPT"}, "bad-field", "adapter_layers"),
        ("gpt2", {"peft_type": "HRA"}, "target-cant-be-adapted", "Conv1D"),
        ("gpt2", {"peft_type": "CPT", "num_virtual_tokens": 4}, "fields-contradict", "makes 1"),
        ("gpt2", {"peft_type": "XLORA"}, "peft-refuses", "trained already"),
        ("gpt2", {"peft_type": "LORA", "layer_replication": [[0, 1], [0, 2]]}, "peft-refuses", "model.layers"),
        ("mistral", {"peft_type": "LORA", "layer_replication": [[0, 3]]}, "bad-field", "2 layers"),
        ("gemma3", {"peft_type": "LORA", "target_modules": ["score"]}, "target-matches-nothing", "'score'"),
        ("llava", {"peft_type": "LORA", "target_modules": ["linear_1"], "modules_to_save": ["layers"]}, "target-cant-be-adapted", "a list of layers"),
        ("mixtral", {"peft_type": "LORA", "target_modules": ["q_proj"], "modules_to_save": ["model"]}, "target-matches-nothing", "nothing to adapt"),
        ("mistral", {"peft_type": "ROAD"}, "peft-refuses", "divisible by group_size"),
    ],
)  # fmt: skip
def test_what_the_plan_refuses(
    tiny: Tiny, architecture: str, given: dict[str, Any], code: str, said: str
) -> None:
    with pytest.raises(loadkit.PlanError) as caught:
        loadkit.plan(tiny(architecture), peft_config=given)
    told = {p.code: f"{p.message} {p.remedy}" for p in caught.value.problems}
    assert said in told[code]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("architecture", "given"),
    [
        ("gemma3", {"peft_type": "SHIRA", "target_modules": ["q_proj"], "r": 2}),
        ("gemma3", {"peft_type": "VERA", "target_modules": "all-linear"}),
        ("gemma3", {"peft_type": "C3A", "target_modules": r".*\.(q|v)_proj", "block_size": 16}),
        ("gemma3", {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}),
        ("gemma3", {"peft_type": "TRAINABLE_TOKENS", "token_indices": [1]}),
        ("t5", {"peft_type": "TRAINABLE_TOKENS", "token_indices": [1]}),
        ("mistral", {"peft_type": "LORA", "layer_replication": [[0, 2], [1, 2]]}),
    ],
)
def test_it_loads_and_stays_out_of_towers(tiny: Tiny, architecture: str, given: dict[str, Any]) -> None:
    model = load(tiny(architecture), given)
    assert model is not None
    assert faults(model) == []


def test_the_memory_of_peft_s_own_targets_is_known(tiny: Tiny) -> None:
    loaded = loadkit.load(tiny("mistral"), training=True, peft_config={"peft_type": "LORA", "r": 4})
    held = sum(p.nbytes for p in loaded.model.parameters() if p.requires_grad)
    assert {n.split(".")[-4] for n, p in loaded.model.named_parameters() if p.requires_grad} == {
        "q_proj",
        "v_proj",
    }
    assert loaded.plan.memory is not None
    assert loaded.plan.memory.adapters == held

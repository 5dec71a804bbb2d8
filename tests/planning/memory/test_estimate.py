"""Estimates before loading, beside what is there after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from loading.test_profiles import ARCHITECTURES, PROFILES, load
from zoo.sweeping import make

import loadkit
from loadkit.facts.library.weight_roles import Weight
from loadkit.planning.memory.optimizers import optimizer_bytes

MOST_OFF = 0.01


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_estimate_is_what_is_loaded(tiny: Any, arch: str, profile: str) -> None:
    """Within 1 % of transformers' own count, constants aside, which it doesn't count."""
    wide = (
        {"vocab_size": 4096} if arch.startswith("bert") else {}
    )  # of a tiny BERT 2 % are buffers of position ids
    loaded = loadkit.load(tiny(arch, tokenizer=False, **wide), profile) if wide else load(tiny, arch, profile)
    memory, measured = loaded.plan.memory, loaded.report.measurements
    assert memory is not None
    footprint = loaded.model.get_memory_footprint()
    assert abs(memory.model - memory.constants - footprint) <= MOST_OFF * footprint
    assert abs(memory.model - measured.footprint) <= MOST_OFF * measured.footprint
    assert memory.constants == measured.footprint - footprint
    trained = [p for p in loaded.model.parameters() if p.requires_grad and loaded.model.training]
    assert memory.gradients == sum(p.numel() * p.element_size() for p in trained)
    assert memory.unquantized == measured.unquantized
    assert memory.unknown == ()
    assert abs(memory.parameters - measured.parameters) <= MOST_OFF * measured.parameters
    assert memory.trainable == sum(p.numel() for p in trained)
    assert (memory.quantized_parameters > 0) == (memory.quantized > 0)


MOE = [
    *("qwen3_moe", "olmoe", "qwen2_moe", "mixtral", "deepseek_v2"),
    *(pytest.param(each, marks=pytest.mark.slow) for each in ("dots1", "ernie4_5_moe", "flex_olmo", "glm4_moe", "gpt_oss", "hunyuan_v1_moe", "jamba", "jetmoe", "minimax", "qwen3_next")),
]  # fmt: skip


@pytest.mark.parametrize("profile", ["qlora", "lora"])
@pytest.mark.parametrize("model_type", MOE)
def test_experts_that_are_stored_one_by_one_are_counted_as_stacked(
    tmp_path: Path, model_type: str, profile: str
) -> None:
    """Of some types a single expert's file name is that of the stacked parameter: "down_proj"."""
    assert make(model_type, tmp_path) == ""
    loaded = loadkit.load(tmp_path, profile)
    memory, measured = loaded.plan.memory, loaded.report.measurements
    assert memory is not None
    assert abs(memory.model - measured.footprint) <= MOST_OFF * measured.footprint
    adapters = sum(p.numel() * p.element_size() for n, p in loaded.model.named_parameters() if "lora_" in n)
    assert abs(memory.adapters - adapters) <= MOST_OFF * adapters
    assert memory.unquantized.get("fused experts") == measured.unquantized.get("fused experts")


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({"lora_target_modules": ["q_proj", "v_proj"], "lora_r": 4}, {}),
        ({"lora_target_modules": r".*\.(gate|up)_proj", "lora_r": 8}, {}),
        ({"use_dora": True}, {}),
        ({"lora_modules_to_save": ["lm_head"]}, {}),
        ({"lora_vision": True}, {"arch": "llava"}),
        ({"dtype": "float32"}, {}),
        ({"load_in_4bit": True, "skip_modules": ["down_proj"]}, {}),
        ({"load_in_4bit": True, "bnb_4bit_use_double_quant": False}, {}),
        ({"task": "text"}, {"arch": "gemma3"}),
        ({"task": "text"}, {"arch": "llava"}),
        ({"dtype": "float16"}, {"arch": "t5"}),
    ],
)
def test_options_count(tiny: Any, options: dict[str, Any], more: dict[str, Any]) -> None:
    loaded = loadkit.load(tiny(more.get("arch", "mistral")), "lora", **options)
    memory, measured = loaded.plan.memory, loaded.report.measurements
    assert memory is not None
    assert abs(memory.model - measured.footprint) <= MOST_OFF * measured.footprint


def test_stored_quantized_and_existing_adapters(tiny: Any, tmp_path: Any) -> None:
    from loadkit.testing.checkpoints import make_adapter, make_prequantized

    stored = make_prequantized(tmp_path / "stored", tiny("mistral"))
    quantized = loadkit.load(stored)
    assert quantized.plan.memory is not None
    assert quantized.plan.memory.quantized > 0
    footprint = quantized.report.measurements.footprint
    assert abs(quantized.plan.memory.model - footprint) <= MOST_OFF * footprint
    adapter = make_adapter(tmp_path / "adapter", tiny("mistral"))
    adapted = loadkit.load(adapter, training=True)
    assert adapted.plan.memory is not None
    footprint = adapted.report.measurements.footprint
    assert abs(adapted.plan.memory.model - footprint) <= MOST_OFF * footprint
    assert adapted.plan.memory.adapters > 0


def test_what_cannot_be_told_is_said(tiny: Any) -> None:
    plan = loadkit.plan(tiny("mistral"), peft_config={"peft_type": "IA3"}, training=True)
    assert plan.memory is not None
    assert plan.memory.unknown == ("adapters",)
    assert "activations and adapters of unknown size on top" in " ".join(str(plan).split())


@pytest.mark.parametrize("name", ["adamw_torch", "sgd", "adafactor", "adagrad", "rmsprop"])
def test_the_state_of_optimizers(tiny: Any, name: str) -> None:
    """Counted in real optimizers after one step."""
    loaded = loadkit.load(tiny("mistral"), "full", optim=name)
    assert loaded.plan.memory is not None
    trained = list(loaded.model.parameters())
    makers: dict[str, Any] = {
        "adamw_torch": lambda p: torch.optim.AdamW(p),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
        "adafactor": lambda p: transformers.Adafactor(p, lr=1e-3, scale_parameter=False, relative_step=False),
        "adagrad": lambda p: torch.optim.Adagrad(p),
        "rmsprop": lambda p: torch.optim.RMSprop(p),
    }
    optimizer = makers[name](trained)
    ids = torch.arange(6, 18)[None]
    loaded.model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    held = sum(
        v.numel() * v.element_size()
        for state in optimizer.state.values()
        for k, v in state.items()
        if torch.is_tensor(v) and v.ndim > 0
    )
    assert loaded.plan.memory.optimizer == pytest.approx(held, rel=MOST_OFF, abs=64)
    assert loaded.plan.memory.optim == name


def test_eight_bit_optimizers_keep_small_tensors_whole() -> None:
    """bitsandbytes: two bytes a value and two float32 scales for each 256, and tensors under 4,096 values in
    float32."""

    def weight(*shape: int) -> Weight:
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        return Weight(name="w", module="", shape=shape, dtype="bfloat16", nbytes=2 * count, kind="linear")

    known = {name: rule for name, (_, rule) in loadkit.PluginManager(environ={}).optimizers.found.items()}
    assert optimizer_bytes([weight(64, 64)], known["adamw_8bit"]) == 64 * 64 * 2 + 2 * 4 * 16
    assert optimizer_bytes([weight(64)], known["adamw_8bit"]) == 64 * 8
    assert optimizer_bytes([weight(64, 64)], known["paged_adamw_32bit"]) == 64 * 64 * 8

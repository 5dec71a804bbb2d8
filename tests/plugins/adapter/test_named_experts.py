"""Targets that are stacks now, or never were layers: the experts that they mean, or a problem of the plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import loadkit

Tiny = Callable[..., Path]
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

USUAL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
OLD = ["q_proj", "w1", "w2", "w3"]
IDS = torch.arange(18).view(2, 9) * 7 % 61 + 6


def adapters(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters() if ".lora_" in name}


def bare(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize(
    ("arch", "more", "names"),
    [
        ("mixtral", {}, OLD),
        ("mixtral", {}, ["w2"]),
        ("qwen3-moe", {"mlp_only_layers": []}, USUAL),
        ("qwen3-moe", {}, USUAL),
        ("qwen3-moe", {}, ["q_proj", "experts.0.gate_proj", "experts.0.up_proj"]),
    ],
)
@pytest.mark.parametrize("profile", ["lora", pytest.param("qlora", marks=pytest.mark.slow)])
def test_names_of_single_experts_mean_the_stacks(
    tmp_path: Path, arch: str, more: dict[str, Any], names: list[str], profile: str
) -> None:
    from loadkit.testing.checkpoints import make_checkpoint

    folder = make_checkpoint(tmp_path / "base", arch, **more)
    wanted = adapters(peft.get_peft_model(bare(folder), peft.LoraConfig(target_modules=names, r=4)))
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": names}
    loaded = loadkit.load(folder, profile, peft_config=config)
    assert adapters(loaded.model) == wanted
    yours = loadkit.load(folder, profile, lora_target_modules=names, lora_r=4, lora_alpha=8)
    beyond = adapters(yours.model).items() - wanted.items()
    dense = arch == "qwen3-moe" and not more and names is USUAL  # which PEFT doesn't reach by these names
    assert {name.split(".")[-4] for name, _ in beyond} == (
        {"gate_proj", "up_proj", "down_proj"} if dense else set()
    )
    passed = {each.value for each in loaded.plan.why("adapter").passed_over}
    assert passed & set(names) == ({"gate_proj", "up_proj", "down_proj"} if dense else set())
    for each in (loaded, yours):
        held = [p for name, p in each.model.named_parameters() if ".lora_" in name]
        assert each.plan.memory.adapters == sum(p.numel() * p.element_size() for p in held)


def test_the_saved_adapter_is_read_by_plain_peft(tiny: Tiny, tmp_path: Path) -> None:
    loaded = loadkit.load(tiny("qwen3-moe"), "lora", dtype="float32", lora_r=4, lora_target_modules=USUAL)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in loaded.model.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    loaded.save_pretrained(tmp_path)
    other = peft.PeftModel.from_pretrained(bare(tiny("qwen3-moe")), tmp_path).eval()
    with torch.no_grad():
        ours, theirs = (model(input_ids=IDS).logits for model in (loaded.model.eval(), other))
    assert float((ours - theirs).abs().max()) < 2e-5 * float(theirs.abs().max())


@pytest.mark.parametrize(
    ("arch", "names", "says", "fix"),
    [
        ("mixtral", ["q_proj", "w1"], "'w1', which is one half of the experts' gate_up_proj", "name w3 too"),
        ("mixtral", ["w3", "w2"], "'w3', which is one half", "name w1 too"),
        ("mixtral", ["experts"], "a MixtralExperts, which holds stacks of experts", "lora_experts=True"),
        ("mixtral", ["q_proj", "down_proj"], "a parameter of MixtralExperts", "lora_experts=True"),
        ("gpt-oss", ["q_proj", "gate_up_proj"], "a parameter of GptOssExperts", "lora_target_parameters"),
        ("gpt-oss", ["router"], "a GptOssTopKRouter, which PEFT has no layer for", "all-linear"),
        ("mistral", ["mlp"], "a MistralMLP, which PEFT has no layer for", "name the linear layers"),
        ("mistral", ["q_proj", "self_attn"], "a MistralAttention, which PEFT has no layer for", "all-linear"),
        ("mistral", ["norm"], "a norm, which PEFT has no layer for", "modules_to_save"),
    ],
)
def test_what_is_no_layer_is_a_problem_of_the_plan(
    tiny: Tiny, arch: str, names: list[str], says: str, fix: str
) -> None:
    with pytest.raises(loadkit.PlanError) as caught:
        loadkit.plan(tiny(arch), "qlora", lora_target_modules=names)
    (problem,) = caught.value.problems
    assert problem.code == "target-cant-be-adapted"
    assert says in problem.message
    assert fix in problem.remedy


@pytest.mark.parametrize(
    ("arch", "names"),
    [
        ("mistral", ["embed_tokens", "lm_head", "q_proj"]),
        ("mixtral", ["gate"]),  # which PEFT adapts as a parameter
        ("qwen3-moe", ["gate_proj"]),  # the dense layer's
        ("gpt2", ["c_attn", "wte"]),
        ("llava", ["fc1", "q_proj"]),
    ],
)
def test_what_is_a_layer_is_adapted(tiny: Tiny, arch: str, names: list[str]) -> None:
    loaded = loadkit.load(tiny(arch), "lora", lora_target_modules=names, lora_vision=True)
    found = {
        name for name in names if any(f".{name}." in path for path in adapters(loaded.model)) or name == "wte"
    }
    embeddings = {
        n for n in names if any(f"{n}.lora_embedding_A" in p for p, _ in loaded.model.named_parameters())
    }
    assert found | embeddings == set(names)


@pytest.mark.parametrize(
    ("arch", "names"), [("mistral", ["q_proj"]), ("mistral", ["mlp"]), ("mixtral", ["experts"])]
)
@pytest.mark.parametrize("profile", ["qlora", pytest.param("qlora-8bit", marks=pytest.mark.slow)])
def test_codes_dont_train_whole(tiny: Tiny, arch: str, names: list[str], profile: str) -> None:
    """And as they are stored they do: the plan says how."""
    about = {"lora_modules_to_save": names, "lora_target_modules": ["v_proj"]}
    with pytest.raises(loadkit.PlanError) as caught:
        loadkit.plan(tiny(arch), profile, **about)
    (problem,) = caught.value.problems
    assert problem.code == "target-cant-be-adapted"
    assert f"skip_modules=[{names[0]!r}]" in problem.remedy
    loaded = loadkit.load(tiny(arch), profile, **about, skip_modules=names)
    assert any(".modules_to_save." in n and p.requires_grad for n, p in loaded.model.named_parameters())


def test_heads_and_embeddings_train_whole(tiny: Tiny) -> None:
    loaded = loadkit.load(tiny("mistral"), "qlora", lora_modules_to_save=["lm_head", "embed_tokens"])
    assert sum(".modules_to_save." in name for name, _ in loaded.model.named_parameters()) == 2


def test_dense_layers_give_way_to_dora_on_a_mixture(tiny: Tiny) -> None:
    """PEFT takes their names for experts', which it adapts without DoRA: they are left out."""
    loaded = loadkit.load(tiny("qwen3-moe"), "qlora", use_dora=True)
    assert {name.split(".")[-4] for name in adapters(loaded.model) if name.endswith("lora_A.default.weight")} == {
        "q_proj", "k_proj", "v_proj", "o_proj",
    }  # fmt: skip


@pytest.mark.parametrize("left_out", [r".*layers\.0\..*", ["q_proj"]])
def test_what_you_leave_out_is_left_out_beside_towers(tiny: Tiny, left_out: Any) -> None:
    loaded = loadkit.load(tiny("llava"), "lora", lora_exclude_modules=left_out)
    names = adapters(loaded.model)
    assert names
    assert not any("vision_tower" in name for name in names)
    word = ".layers.0." if isinstance(left_out, str) else ".q_proj."
    assert not any(word in name for name in names)

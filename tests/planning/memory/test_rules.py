"""Whether a plan fits a machine that isn't here, by the headers of published shapes."""

from __future__ import annotations

import math

import pytest
from examples import (
    A100,
    CPU,
    EIGHT_H100,
    EIGHT_RANKS,
    FSDP,
    MISTRAL,
    MPS,
    T4,
    checkpoint,
    gpu,
    planned,
    problems,
)

import loadkit


def header(*shape: int) -> loadkit.plugins.TensorHeader:
    return loadkit.plugins.TensorHeader("BF16", shape, 2 * math.prod(shape), "model.safetensors")


def mistral_7b(hidden: int = 4096, layers: int = 32) -> dict[str, loadkit.plugins.TensorHeader]:
    """The shapes of Mistral-7B-v0.1."""
    shapes = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (1024, hidden), "self_attn.v_proj": (1024, hidden),
        "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (14336, hidden), "mlp.up_proj": (14336, hidden),
        "mlp.down_proj": (hidden, 14336), "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
    }  # fmt: skip
    tensors = {f"model.layers.{i}.{n}.weight": header(*s) for i in range(layers) for n, s in shapes.items()}
    return {
        "model.embed_tokens.weight": header(32000, hidden),
        **tensors,
        "model.norm.weight": header(hidden),
        "lm_head.weight": header(32000, hidden),
    }


SEVEN_B = checkpoint(MISTRAL, tensors=mistral_7b())


def test_a_published_shape() -> None:
    """Mistral-7B in nf4 with double quantization was measured at 4.0 GB (TRAPS)."""
    memory = planned(SEVEN_B, "inference-4bit", machine=A100).memory
    assert memory is not None
    assert memory.model / 1e9 == pytest.approx(4.0, abs=0.15)
    assert memory.quantized == 32 * (2 * 4096**2 + 2 * 1024 * 4096 + 3 * 4096 * 14336) // 2
    full = planned(SEVEN_B, "inference", machine=A100).memory
    assert full is not None
    assert full.model == SEVEN_B.weight_bytes == 14_483_464_192


@pytest.mark.parametrize(
    ("profile", "machine", "codes"),
    [
        ("inference", T4, []),
        ("inference-4bit", T4, []),
        ("qlora", T4, []),
        ("full", CPU, ["training-does-not-fit"]),
        ("full", A100, []),
        ("inference", MPS, []),
    ],
)
def test_what_fits(profile: str, machine: loadkit.Machine, codes: list[str]) -> None:
    warnings = planned(SEVEN_B, profile, machine=machine, device_map=on(machine)).warnings
    assert [p.code for p in warnings if p.stage == "memory"] == codes


def on(machine: loadkit.Machine) -> dict[str, int | str]:
    return {"": 0} if machine.kind == "cuda" else {"": machine.kind}


def test_what_does_not_fit_is_refused_before_loading() -> None:
    said = problems(SEVEN_B, "inference", machine=T4, dtype="float32", device_map={"": 0})
    assert set(said) == {"does-not-fit"}
    assert "the model takes 26.98 GiB, and Tesla T4 has 15.00 GiB" in said["does-not-fit"]
    assert "load_in_4bit=True" in said["does-not-fit"]
    assert "check_memory=False" in said["does-not-fit"]
    anyhow = planned(
        SEVEN_B, "inference", machine=T4, dtype="float32", device_map={"": 0}, check_memory=False
    )
    assert anyhow.dtype == "float32"


def test_several_devices_hold_it_together() -> None:
    large = checkpoint(MISTRAL, tensors=mistral_7b(layers=400))
    assert "device_map='auto'" in problems(large, machine=EIGHT_H100, device_map={"": 0})["does-not-fit"]
    assert planned(large, machine=EIGHT_H100, device_map="auto").memory is not None


def test_of_weights_that_an_engine_spreads_each_devices_share_must_fit() -> None:
    large = checkpoint(MISTRAL, tensors=mistral_7b(layers=400))
    plan = planned(large, "full", machine=EIGHT_H100, topology=FSDP)
    assert plan.memory is not None
    assert plan.memory.model > plan.memory.room
    assert [p.code for p in plan.warnings if p.stage == "memory"] == ["training-does-not-fit"]
    assert "does-not-fit" in problems(large, "full", machine=EIGHT_H100, topology=EIGHT_RANKS)


def test_an_unknown_optimizer_counts_as_adamw_and_is_told() -> None:
    known = planned(SEVEN_B, "qlora", machine=A100).memory
    plan = planned(SEVEN_B, "qlora", machine=A100, optim="muon")
    assert plan.memory is not None
    assert known is not None
    assert plan.memory.optimizer == known.optimizer
    assert any(p.code == "unknown-optimizer" and "muon" in p.message for p in plan.warnings)
    smaller = planned(SEVEN_B, "qlora", machine=A100, optim="adamw_8bit").memory
    assert smaller is not None
    assert smaller.optimizer < known.optimizer * 0.55


def test_the_bar_names_every_part() -> None:
    text = planned(SEVEN_B, "qlora", machine=gpu("small", (8, 0), 6)).explained()
    line = next(line for line in text.splitlines() if line.startswith("memory"))
    assert line.count("█") > line.count("▓") > 0
    for part in (
        "quantized 3.25 GiB",
        "constants",
        "adapters",
        "gradients",
        "state of adamw_torch",
        "on top: activations",
    ):
        assert part in text


def drawn(memory: loadkit.Memory) -> str:
    return str(memory).split("  ")[0]


def test_the_bar_is_to_the_scale_of_the_machine() -> None:
    wide = len(drawn(planned(SEVEN_B, "inference-4bit", machine=gpu("small", (8, 0), 6)).memory))
    for gib in (6, 8, 16, 80, 640):
        memory = planned(SEVEN_B, "inference-4bit", machine=gpu("one", (8, 0), gib)).memory
        assert memory is not None
        held = len(drawn(memory).rstrip("·"))
        assert len(drawn(memory)) == wide
        assert held == max(1, round(wide * memory.total / memory.room))
    over = planned(SEVEN_B, machine=gpu("small", (8, 0), 8), check_memory=False).memory
    assert over is not None
    assert drawn(over).index("|") == wide * over.room // over.total
    unknown = loadkit.Memory(weights={"float32": 10})
    assert drawn(unknown) == "▓" * wide


@pytest.mark.parametrize(
    ("gib", "profile", "verdict"),
    [
        (80, "qlora", "fits"),
        (4, "qlora", "too tight"),
        (8, "inference", "doesn't fit"),
        (20, "inference", "fits"),
    ],
)
def test_the_verdict_comes_first(gib: int, profile: str, verdict: str) -> None:
    text = str(planned(SEVEN_B, profile, machine=gpu("one", (8, 0), gib), check_memory=False))
    lines = text.split("\n\n")[1].splitlines()
    assert lines[0].startswith(f"{verdict}  ")
    assert f"of the {gib}.00 GiB of one" in lines[0]
    assert "7,241,732,096 parameters" in text or profile == "qlora"
    assert "MistralForCausalLM" in text
    for word in ("bfloat16", "attention"):
        assert word in text

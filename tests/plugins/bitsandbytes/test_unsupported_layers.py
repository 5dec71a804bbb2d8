"""Layers that are kept out of quantization or of LoRA because they couldn't run; what plainly can't be
quantized is refused."""

from __future__ import annotations

import math

import pytest
from examples import A100, CPU, checkpoint, planned, problems

from loadkit.plugins import TensorHeader
from loadkit.schema.adapters import Adapter


def tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, TensorHeader]:
    return {n: TensorHeader("BF16", s, 2 * math.prod(s), "model.safetensors") for n, s in shapes.items()}


FALCON = {
    "transformer.word_embeddings.weight": (320, 64),
    "transformer.h.0.self_attention.query_key_value.weight": (192, 64),
    "transformer.h.0.mlp.dense_h_to_4h.weight": (256, 64),
    "lm_head.weight": (320, 64),
}


@pytest.mark.parametrize("profile", ["qlora", "qlora-8bit", "inference-4bit"])
def test_nothing_to_quantize_is_refused_before_loading(profile: str) -> None:
    """TRAPS 6: what would stay as it is, whatever was asked for."""
    ends = tensors(dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (320, 64)))
    said = problems(checkpoint(tensors=ends), profile)
    assert "MistralForCausalLM has no plain Linear layer" in said["nothing-to-quantize"]
    assert planned(checkpoint(tensors=ends), "lora").memory is not None


@pytest.mark.parametrize(
    ("profile", "data", "beside"), [("qlora", 14_336, 448 + 16), ("qlora-8bit", 28_672, 1_792)]
)
def test_subclasses_of_linear_are_packed(profile: str, data: int, beside: int) -> None:
    """TRAPS 6: falcon's layers are a subclass of Linear, which bitsandbytes passes over."""
    plan = planned(checkpoint({"model_type": "falcon"}, tensors=tensors(FALCON)), profile)
    assert plan.quantization is not None
    assert plan.quantization.options["packed_parameters"] == {"FalconLinear": {"weight": ""}}
    assert plan.memory is not None
    assert (plan.memory.quantized, plan.memory.constants) == (data, beside)
    assert "subclasses of Linear" not in plan.memory.unquantized
    assert "FalconLinear.weight" in plan.why("quantization").because


def test_experts_are_packed_and_what_runs_them_is_decided() -> None:
    names = {"w1": (128, 64), "w3": (128, 64), "w2": (64, 128)}
    shapes = {
        f"model.layers.0.block_sparse_moe.experts.{i}.{n}.weight": s
        for i in range(8)
        for n, s in names.items()
    }
    shapes |= {"model.layers.0.block_sparse_moe.gate.weight": (8, 64), "lm_head.weight": (320, 64)}
    facts = checkpoint({"model_type": "mixtral"}, tensors=tensors(shapes))
    plan = planned(facts, "qlora")
    assert plan.memory is not None
    assert plan.memory.quantized == 8 * 3 * 128 * 64 // 2
    # a scale a block, of a stack's expert one for each 256 of them, and its offset
    assert plan.memory.constants == 8 * (256 + 128) + 8 * (2 * 4 + 2 * 4)
    assert plan.kwargs["experts_implementation"] == "packed"
    assert "unpacked for its tokens" in plan.why("kwargs.experts_implementation").because
    mine = planned(facts, "qlora", model_kwargs={"experts_implementation": "eager"})
    assert mine.kwargs["experts_implementation"] == "eager"
    assert "experts_implementation" not in planned(facts, "lora").kwargs


def test_experts_that_are_skipped_are_told_with_their_bytes() -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "model.layers.0.self_attn.q_proj.weight": (64, 64),
        "lm_head.weight": (320, 64),
    }
    shapes |= {f"model.layers.0.block_sparse_moe.experts.{i}.w1.weight": (128, 64) for i in range(8)}
    facts = checkpoint({"model_type": "mixtral"}, tensors=tensors(shapes))
    plan = planned(facts, "qlora", skip_modules=["experts"])
    said = next(p for p in plan.warnings if p.code == "mostly-unquantized").message
    assert "fused experts 131,072 bytes" in said
    assert plan.memory is not None
    assert plan.memory.unquantized["fused experts"] == 131_072


def test_weights_used_directly_stay_as_they_are() -> None:
    """TRAPS 27."""
    plan = planned(checkpoint({"model_type": "longcat_flash"}), "qlora", machine=A100)
    assert plan.quantization is not None
    assert plan.quantization.skip_modules == ("router.classifier",)
    assert "router.classifier stays as it is" in plan.why("quantization").because
    bloom = planned(checkpoint({"model_type": "bloom"}), "qlora", machine=A100).quantization
    assert bloom is not None
    assert bloom.skip_modules == ()  # it does so only with slow_but_exact


def test_latent_attention_in_eight_bits_off_cuda() -> None:
    """TRAPS 29."""
    facts = checkpoint({"model_type": "deepseek_v3", "kv_lora_rank": 64})
    skipped = {
        (machine.kind, profile): planned(facts, profile, machine=machine).quantization.skip_modules  # type: ignore[union-attr]
        for machine in (CPU, A100)
        for profile in ("qlora", "qlora-8bit")
    }
    assert skipped == {
        ("cpu", "qlora"): (), ("cpu", "qlora-8bit"): ("kv_b_proj",), ("cuda", "qlora"): (), ("cuda", "qlora-8bit"): (),
    }  # fmt: skip


def test_odd_widths_in_four_bits_on_a_cpu() -> None:
    """TRAPS 28: SigLIP's 4,304 isn't a multiple of 64."""
    shapes = {
        "model.layers.0.mlp.up_proj.weight": (128, 64), "model.layers.0.mlp.down_proj.weight": (64, 4304),
        "model.layers.0.self_attn.o_proj.weight": (48, 64), "model.embed_tokens.weight": (320, 48),
    }  # fmt: skip
    facts = checkpoint(tensors=tensors(shapes))
    skipped = {"qlora": ("mlp.down_proj",), "inference-4bit": ("mlp.down_proj", "self_attn.o_proj")}
    for profile, modules in skipped.items():
        four = planned(facts, profile, machine=CPU).quantization
        assert four is not None
        assert four.skip_modules == modules
    for profile, machine in (("qlora-8bit", CPU), ("qlora", A100)):
        other = planned(facts, profile, machine=machine).quantization
        assert other is not None
        assert other.skip_modules == ()


@pytest.mark.parametrize(
    ("model_type", "stored", "skipped"),
    [
        ("kimi_linear", "self_attn.f_a_proj", ("f_a_proj",)),  # in the class: self_attn.forget_gate.f_a_proj
        ("longcat_flash", "self_attn.1.kv_a_proj_with_mqa", ("self_attn.1.kv_a_proj_with_mqa",)),
    ],
)
def test_odd_layers_are_named_as_the_model_has_them(
    model_type: str, stored: str, skipped: tuple[str, ...]
) -> None:
    shapes = {f"model.layers.0.{stored}.weight": (64, 48), "model.layers.0.mlp.up_proj.weight": (128, 64)}
    four = planned(checkpoint({"model_type": model_type}, tensors=tensors(shapes)), "qlora", machine=CPU).quantization  # fmt: skip
    assert four is not None
    assert [name for name in four.skip_modules if "router" not in name] == [*skipped]


@pytest.mark.parametrize(
    ("model_type", "excluded"),
    [("mamba", ["out_proj"]), ("phimoe", ["router"]), ("llama4_text", ["router"]), ("mistral", None)],
)
def test_what_lora_cannot_adapt_is_left_out_in_plain_sight(
    model_type: str, excluded: list[str] | None
) -> None:
    plan = planned(checkpoint({"model_type": model_type}), "lora")
    adapter = plan.adapter
    assert isinstance(adapter, Adapter)
    assert adapter.options.get("exclude_modules") == excluded
    assert [p.value for p in plan.why("adapter").passed_over] == (excluded or [])


def test_a_class_that_is_made_from_a_part_of_the_config_is_refused() -> None:
    """TRAPS 30: transformers gives musicgen's decoder the whole config."""
    said = problems(
        checkpoint({"model_type": "musicgen", "architectures": ["MusicgenForConditionalGeneration"]}),
        "inference",
    )
    assert "made from the decoder part of a MusicgenConfig" in said["class-of-a-part"]
    assert "MusicgenForConditionalGeneration" in said["class-of-a-part"]

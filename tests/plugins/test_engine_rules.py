"""What each engine needs, on facts of launches that aren't here."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from examples import (
    CPU,
    EIGHT_H100,
    EIGHT_RANKS,
    FSDP,
    FSDP2,
    GEMMA3,
    MISTRAL,
    NF4,
    TWO_NODES,
    ZERO3,
    checkpoint,
    gpu,
    planned,
    problems,
)

from loadkit import Checkpoint, Plan, Topology
from loadkit.plugins import TensorHeader

SHARDING = (FSDP, FSDP2, ZERO3)
HEADS = {**MISTRAL, "num_attention_heads": 32, "num_key_value_heads": 8}
STORED_BF16 = {**NF4, "bnb_4bit_quant_storage": "bfloat16"}


def on(topology: Topology, *args: Any, **more: Any) -> Plan:
    return planned(*args, machine=more.pop("machine", EIGHT_H100), topology=topology, **more)


def refused(topology: Topology, *args: Any, **more: Any) -> dict[str, str]:
    return problems(*args, machine=more.pop("machine", EIGHT_H100), topology=topology, **more)


def told(plan: Plan) -> dict[str, str]:
    return {p.code: f"{p.severity}: {p.message} | {p.remedy}" for p in plan.warnings}


def with_(topology: Topology, **changes: Any) -> Topology:
    return msgspec.structs.replace(topology, **changes)


def split_over(size: int, engine: Any = "tensor-parallel") -> Topology:
    return Topology(world_size=8, local_world_size=8, engine=engine, tp_size=size)


# --- DDP


@pytest.mark.parametrize("engine", ["ddp", "zero1", "zero2"])
@pytest.mark.parametrize("profile", ["qlora", "qlora-8bit"])
def test_a_quantized_base_goes_to_the_local_rank(engine: Any, profile: str) -> None:
    plan = on(with_(TWO_NODES, engine=engine), None, profile)
    assert plan.placement.device_map == {"": 3}  # not the global 11, and never "auto"
    assert "number 3 of its node" in plan.why("device_map").because
    assert plan.preparation.float32_norms
    options = plan.quantization.options if plan.quantization else {}
    assert options.get("bnb_4bit_quant_storage", "uint8") == "uint8"
    assert "auto-under-launcher" in refused(with_(TWO_NODES, engine=engine), None, profile, device_map="auto")


def test_two_processes_never_share_a_device() -> None:
    four = gpu("NVIDIA H100 80GB HBM3", (9, 0), 80, count=4)
    for topology in (EIGHT_RANKS, FSDP2, with_(ZERO3, rank=0, local_rank=0)):
        found = refused(with_(topology, rank=0, local_rank=0), machine=four)
        assert "start 4 processes a node" in found["fewer-devices-than-processes"]
    assert not told(on(EIGHT_RANKS)).keys() & {"fewer-devices-than-processes"}
    assert planned(machine=CPU, topology=EIGHT_RANKS).placement.device_map == {"": "cpu"}


# --- FSDP and ZeRO-3


@pytest.mark.parametrize("topology", SHARDING)
def test_sharding_wants_one_dtype(topology: Topology) -> None:
    plan = on(topology, None, "qlora")
    assert plan.quantization is not None
    assert plan.quantization.options["bnb_4bit_quant_storage"] == plan.dtype == "bfloat16"
    assert plan.adapter is not None
    assert plan.adapter.dtype == plan.dtype
    assert plan.preparation.kbit
    assert not plan.preparation.float32_norms
    assert f"{topology.engine} shards parameters of one dtype" in plan.why("preparation").because
    assert plan.placement.device_map is None
    assert plan.memory is not None
    assert set(plan.memory.weights) == {"bfloat16"}
    assert set(on(EIGHT_RANKS, None, "qlora").memory.weights) == {"bfloat16", "float32"}  # type: ignore[union-attr]


@pytest.mark.parametrize("topology", SHARDING)
def test_storage_of_another_dtype_is_refused(topology: Topology) -> None:
    found = refused(topology, None, "qlora", bnb_4bit_quant_storage="uint8")
    assert "bnb_4bit_quant_storage='bfloat16'" in found["storage-dtype-under-fsdp"]


@pytest.mark.parametrize("topology", SHARDING)
def test_8_bit_weights_are_not_sharded(topology: Topology) -> None:
    assert "load_in_4bit" in refused(topology, None, "qlora-8bit")["8bit-with-sharding"]
    stored = checkpoint(
        {**MISTRAL, "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    )
    assert "stored quantized" in refused(topology, stored)["8bit-with-sharding"]


def test_stored_4_bit_weights_under_sharding() -> None:
    as_integers = checkpoint({**MISTRAL, "quantization_config": NF4})
    for topology in (FSDP, ZERO3):
        assert "uint8" in refused(topology, as_integers, "lora")["stored-dtype-under-sharding"]
    assert "warning: " in told(on(FSDP2, as_integers, "lora"))["stored-dtype-under-sharding"]
    as_floats = checkpoint({**MISTRAL, "quantization_config": STORED_BF16})
    for topology in SHARDING:
        assert "stored-dtype-under-sharding" not in told(on(topology, as_floats, "lora"))


@pytest.mark.parametrize("topology", SHARDING)
def test_other_quantizers_are_warned_of(topology: Topology) -> None:
    fp8 = checkpoint({**MISTRAL, "quantization_config": {"quant_method": "fp8"}})
    assert "warning: " in told(on(topology, fp8))["quantized-under-sharding"]
    assert "quantized-under-sharding" not in told(on(EIGHT_RANKS, fp8))


def test_mixed_dtypes() -> None:
    """T5 keeps its "wo" layers in float32 when the others are float16."""
    t5 = Checkpoint(
        source="a/t5",
        location="a/t5",
        kind="hub",
        commit="0123456789abcdef0123456789abcdef01234567",
        config={"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "dtype": "float16"},
        files=checkpoint().files,
        tensors={
            f"encoder.block.0.layer.1.DenseReluDense.{n}.weight": TensorHeader("F16", (64, 64), 8192, "m")
            for n in ("wi", "wo")
        },
        weight_files=("model.safetensors",),
    )
    assert "FSDP2" in refused(FSDP, t5, "full", dtype="float16")["mixed-dtypes-under-fsdp"]
    assert "warning: " in told(on(FSDP2, t5, "full", dtype="float16"))["mixed-dtypes-under-fsdp"]
    assert "mixed-dtypes-under-fsdp" not in told(on(FSDP2, t5, "lora", dtype="float16"))
    assert "mixed-dtypes-under-fsdp" not in told(on(FSDP, t5, "full", dtype="float32"))


def test_reading_once_is_explained() -> None:
    plan = on(with_(FSDP2, reads_once=True))
    assert "rank 0's weights" in told(plan)["read-on-every-rank"]
    assert plan.memory is not None
    assert plan.memory.per_rank is not None
    assert "the engine then takes rank 0's" in plan.memory.per_rank.how
    assert "read-on-every-rank" not in told(on(FSDP2))


def test_zero3_wants_its_config_alive() -> None:
    assert "HfDeepSpeedConfig" in refused(with_(ZERO3, zero3_alive=False))["zero3-config-not-alive"]
    assert "zero3-config-first" in told(on(ZERO3))  # given by hand: nobody can know
    assert not told(on(with_(ZERO3, zero3_alive=True))).keys() & {
        "zero3-config-first",
        "zero3-config-not-alive",
    }


# --- gradient checkpointing


@pytest.mark.parametrize(
    ("topology", "profile", "reentrant"),
    [
        (EIGHT_RANKS, "qlora", False),
        (FSDP, "qlora", False),
        (FSDP2, "lora", False),
        (FSDP2, "full", False),
        (ZERO3, "lora", True),
        (ZERO3, "qlora", True),
        (ZERO3, "full", False),
    ],
)
def test_use_reentrant(topology: Topology, profile: str, reentrant: bool) -> None:
    plan = on(topology, None, profile)
    assert plan.preparation.gradient_checkpointing_kwargs == {"use_reentrant": reentrant}
    assert ("frees frozen parameters" in plan.why("preparation").because) == reentrant
    assert not {c for c in told(plan) if "reentrant" in c}


@pytest.mark.parametrize(
    ("topology", "asked", "code"),
    [
        (EIGHT_RANKS, True, "reentrant-under-ddp"),
        (FSDP, True, "reentrant-under-fsdp"),
        (FSDP2, True, "reentrant-under-fsdp"),
        (ZERO3, False, "not-reentrant-under-zero3"),
    ],
)
def test_a_demand_for_the_other_kind_is_met_and_warned_of(topology: Topology, asked: bool, code: str) -> None:
    plan = on(topology, None, "lora", gradient_checkpointing_kwargs={"use_reentrant": asked})
    assert plan.preparation.gradient_checkpointing_kwargs == {"use_reentrant": asked}
    assert told(plan)[code].startswith("warning: ")


def test_nothing_is_recomputed_twice() -> None:
    both = with_(FSDP2, checkpoints_activations=True)
    assert "gradient_checkpointing=False" in refused(both, None, "lora")["checkpointing-twice"]
    assert "checkpointing-twice" not in told(on(both, None, "lora", gradient_checkpointing=False))


# --- tensor parallelism


def test_layers_are_split_by_the_architectures_plan() -> None:
    plan = on(split_over(8), checkpoint(HEADS), allow_weights=["_proj"])
    assert plan.kwargs["distributed_config"] == {"tp_plan": "auto", "tp_size": 8}
    assert "device_map" not in plan.kwargs
    assert "by 9 rules" in plan.why("distributed_config").because
    beside = on(split_over(4, "fsdp2"), checkpoint(HEADS), allow_weights=["_proj"])
    assert beside.kwargs["distributed_config"] == {"tp_plan": "auto", "tp_size": 4, "fsdp_size": 2}
    assert "distributed_config" not in on(EIGHT_RANKS, checkpoint(HEADS), allow_weights=["_proj"]).kwargs


def test_an_architecture_without_a_plan_is_refused() -> None:
    gpt2 = checkpoint({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "dtype": "bfloat16"})
    assert "FSDP2" in refused(split_over(8), gpt2)["no-tensor-parallel-plan"]
    rules = {"h.*.mlp.c_fc": "colwise", "h.*.mlp.c_proj": "rowwise"}
    assert on(split_over(8), gpt2, tp_plan=rules).kwargs["distributed_config"]["tp_plan"] == rules
    nested = {
        **GEMMA3,
        "text_config": {"model_type": "gemma3_text", "num_attention_heads": 8, "num_key_value_heads": 4},
    }
    assert "rules" in on(split_over(4), checkpoint(nested)).why("distributed_config").because


@pytest.mark.parametrize(
    ("heads", "size", "name"), [((32, 8), 16, "num_key_value_heads"), ((12, 4), 8, "num_attention_heads")]
)
def test_heads_are_not_split(heads: tuple[int, int], size: int, name: str) -> None:
    config = {**MISTRAL, "num_attention_heads": heads[0], "num_key_value_heads": heads[1]}
    topology = Topology(world_size=16, local_world_size=8, engine="tensor-parallel", tp_size=size)
    found = refused(topology, checkpoint(config))
    assert name in found["heads-not-divisible"]
    assert "split over 2, 4" in found["heads-not-divisible"]


@pytest.mark.parametrize("profile", ["inference-4bit", "inference-8bit"])
def test_bitsandbytes_cannot_be_split(profile: str) -> None:
    found = refused(split_over(8), checkpoint(HEADS), profile)
    assert "from their constants" in found["bitsandbytes-with-tensor-parallel"]
    stored = checkpoint({**HEADS, "quantization_config": NF4})
    assert "stored quantized" in refused(split_over(8), stored)["bitsandbytes-with-tensor-parallel"]


def test_other_quantizers_under_tensor_parallelism_are_warned_of() -> None:
    fp8 = checkpoint({**HEADS, "quantization_config": {"quant_method": "fp8", "bits": 8}})
    assert "warning: " in told(on(split_over(8), fp8))["quantized-under-tensor-parallel"]


def test_wrong_rules_and_a_single_process() -> None:
    assert (
        "did you mean 'auto'"
        in refused(split_over(8), checkpoint(HEADS), tp_plan="autos")["tensor-parallel-rules"]
    )
    wrong = refused(split_over(8), checkpoint(HEADS), tp_plan={"lm_head": "colwize"})
    assert "did you mean 'colwise'" in wrong["tensor-parallel-rules"]
    alone = Topology(engine="tensor-parallel")
    assert "torchrun" in refused(alone, checkpoint(HEADS))["tensor-parallel-alone"]


def test_the_keyword_is_not_smuggled_in() -> None:
    found = refused(split_over(8), checkpoint(HEADS), model_kwargs={"tp_plan": "auto"})
    assert "options of their own" in found["owned-kwarg"]


def test_a_device_map_beside_an_engine_is_refused() -> None:
    for topology in (*SHARDING, split_over(8)):
        assert "device-map-under-engine" in refused(topology, checkpoint(HEADS), device_map={"": 0})

"""What each of several processes takes, by engine: on the shape of Mistral-7B."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from examples import CPU, MISTRAL, checkpoint, gpu, planned, problems

from loadkit import Checkpoint, Memory, RankMemory, Topology
from loadkit.plugins import TensorHeader

HIDDEN, INNER, KV, VOCABULARY, LAYERS = 4096, 14336, 1024, 32000, 32
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
    "input_layernorm": (HIDDEN,),
    "post_attention_layernorm": (HIDDEN,),
}
NAMED = {
    "model.embed_tokens": (VOCABULARY, HIDDEN),
    "lm_head": (VOCABULARY, HIDDEN),
    "model.norm": (HIDDEN,),
    **{f"model.layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in SHAPES.items()},
}
TENSORS = {
    f"{name}.weight": TensorHeader("BF16", shape, 2 * math.prod(shape), "m") for name, shape in NAMED.items()
}
NORMS = sum(2 * math.prod(shape) for shape in NAMED.values() if len(shape) == 1)
WHOLE = sum(header.nbytes for header in TENSORS.values())
CONFIG = {**MISTRAL, "num_attention_heads": 32, "num_key_value_heads": 8}
H100 = gpu("NVIDIA H100 80GB HBM3", (9, 0), 80, count=8)


def mistral() -> Checkpoint:
    return checkpoint(CONFIG, tensors=TENSORS)


def topology(engine: Any, nodes: int = 2, each: int = 8, **more: Any) -> Topology:
    return Topology(world_size=nodes * each, local_world_size=each, engine=engine, **more)


def taken(engine: Any, profile: str, machine: Any = H100, **more: Any) -> tuple[Memory, RankMemory]:
    options = more.pop("options", {})
    plan = planned(mistral(), profile, machine=machine, topology=topology(engine, **more), **options)
    assert plan.memory is not None
    assert plan.memory.per_rank is not None
    return plan.memory, plan.memory.per_rank


@pytest.mark.parametrize(
    ("engine", "weights", "gradients", "optimizer"),
    [
        ("ddp", 1, 1, 1),
        ("zero1", 1, 1, 16),
        ("zero2", 1, 16, 16),
        ("zero3", 16, 16, 16),
        ("fsdp", 16, 16, 16),
        ("fsdp2", 16, 16, 16),
    ],
)
def test_what_each_engine_divides(engine: Any, weights: int, gradients: int, optimizer: int) -> None:
    whole, rank = taken(engine, "full")
    assert whole.model == WHOLE == whole.gradients
    assert rank.weights == pytest.approx(WHOLE / weights, abs=16)
    assert rank.gradients == pytest.approx(WHOLE / gradients, abs=16)
    assert rank.optimizer == pytest.approx(2 * WHOLE / optimizer, abs=16)
    assert rank.total == rank.weights + rank.gradients + rank.optimizer
    assert (rank.processes, rank.device) == (8, "NVIDIA H100 80GB HBM3")
    assert rank.loading == rank.weights
    assert (rank.host_shared, rank.host_own) == (WHOLE, 0)


@pytest.mark.parametrize("engine", ["fsdp", "fsdp2", "zero3"])
def test_a_quantized_base_is_whole_on_each_device_while_it_loads(engine: Any) -> None:
    """The constants stay so: they aren't parameters."""
    whole, rank = taken(engine, "qlora")
    assert rank.loading == whole.model - whole.adapters
    assert rank.weights == pytest.approx(whole.constants + (whole.model - whole.constants) / 16, abs=16)
    assert rank.gradients == pytest.approx(whole.gradients / 16, abs=16)
    assert (rank.host_shared, rank.host_own) == (WHOLE, 0)
    assert "divides it" in rank.how


def test_tensor_parallelism_divides_what_the_plan_names() -> None:
    """All but the norms, embedding and head included."""
    whole, rank = taken("tensor-parallel", "inference", nodes=1, tp_size=8)
    assert rank.weights == pytest.approx(NORMS + (WHOLE - NORMS) / 8, abs=16)
    assert whole.model == WHOLE
    beside, both = taken("fsdp2", "full", tp_size=8)
    assert both.weights == pytest.approx(rank.weights / 2, abs=16)
    assert both.gradients == pytest.approx(both.weights, abs=16)
    assert both.optimizer == pytest.approx(2 * both.weights, abs=32)
    assert beside.model == WHOLE


def test_host_memory_is_one_copy_where_the_dtype_is_the_files() -> None:
    _, mapped = taken("fsdp2", "lora")
    assert (mapped.host_shared, mapped.host_own) == (WHOLE, 0)
    _, cast = taken("fsdp2", "lora", options={"dtype": "float32", "check_memory": False})
    assert cast.host_own == 8 * 2 * WHOLE
    _, placed = taken("ddp", "lora", options={"dtype": "float32"})
    assert placed.host_own == 0  # cast on its way to the device, tensor by tensor


def test_on_cpus_the_ranks_of_a_node_share_its_memory() -> None:
    _, lora = taken("ddp", "lora", machine=CPU, nodes=1, each=2)
    assert lora.host_own == 2 * (lora.weights - WHOLE)  # the adapters; the base is mapped
    whole, qlora = taken("ddp", "qlora", machine=CPU, nodes=1, each=2)
    assert qlora.host_own > 2 * whole.quantized
    found = problems(mistral(), "full", machine=CPU, topology=topology("ddp", nodes=1, each=2))
    assert "on a node of 2 processes" in found["does-not-fit"]  # 24 GiB; what trains is copied by each


def test_what_does_not_fit_a_device() -> None:
    small = gpu("NVIDIA L4", (8, 9), 24, count=8)
    plan = planned(mistral(), "full", machine=small, topology=topology("ddp"))
    assert "on each device" in {p.code: p.message for p in plan.warnings}["training-does-not-fit"]
    sharded = planned(mistral(), "full", machine=small, topology=topology("fsdp2"))
    assert not [p for p in sharded.warnings if p.stage == "memory"]
    tiny = gpu("GPU", (8, 0), 3, count=8)
    found = problems(mistral(), "qlora", machine=tiny, topology=topology("fsdp2"))
    assert "on each device" in found["does-not-fit"]  # it is whole there while it loads
    found = problems(mistral(), "full", machine=tiny, topology=topology("ddp"))
    assert "engine='fsdp2'" in found["does-not-fit"]


def test_what_does_not_fit_the_host() -> None:
    host = msgspec.structs.replace(H100, memory=64 * 2**30)
    found = problems(mistral(), "lora", machine=host, topology=topology("fsdp2"), dtype="float32")
    assert "dtype that the files have" in found["host-does-not-fit"]


def test_a_plan_shows_it() -> None:
    plan = planned(mistral(), "qlora", machine=H100, topology=topology("fsdp2"))
    text = " ".join(plan.explained().split())
    assert "16 processes on 2 nodes, fsdp2" in text
    assert "4.15 GiB in all, 365.1 MiB a process of the 80.00 GiB" in text
    assert "each process, on NVIDIA H100 80GB HBM3: 365.1 MiB of the 80.00 GiB there" in text
    assert "while loading, each device: 3.84 GiB" in text
    assert "13.49 GiB mapped once for 8 processes, 0 B of their own" in text
    assert planned(mistral(), "qlora", machine=H100).memory.per_rank is None  # type: ignore[union-attr]

"""tensor-parallel: transformers' own splitting of layers, by the architecture's plan, and what it needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from loadkit import Claim, Context, Plan, Problem, hookimpl
from loadkit.plugins import did_you_mean

_problem = partial(Problem, "engine", "tensor-parallel")

QUERIES = ("q_proj", "qkv_proj", "query_key_value")
KEYS = ("k_proj", "qkv_proj", "query_key_value")
"""Projections whose output holds the heads (transformers 5.23: `get_kv_heads_per_rank`)."""

STYLES = (
    "all_reduce", "colwise", "colwise_gather_output", "colwise_rep", "embedding_colwise", "embedding_rowwise",
    "grouped_gemm", "local_params", "mla_kv_a_proj", "moe_identity_expert", "moe_tp_experts", "packed_colwise",
    "packed_rowwise", "replicate", "replicated_with_grad_allreduce", "rowwise", "rowwise_rep", "rowwise_split_input",
    "sequence_parallel",
)  # fmt: skip
"""transformers 5.23: those that distributed/tensor_parallel.py and expert_parallel.py register."""

SPLITS = ("bitsandbytes", "torchao")
"""Quantizers whose own plugin says what tensor parallelism can do with their weights."""


@hookimpl
def loadkit_contribute_kwargs(context: Context, plan: Plan) -> Mapping[str, Claim[Any]] | None:
    topology = context.topology
    if not topology.splits_layers or not topology.distributed:
        return None
    # Since transformers 5.18 tp_plan and tp_size of from_pretrained are deprecated in favour of this one.
    asked = context.request.value("tp_plan", "auto")
    value = {"tp_plan": asked, "tp_size": topology.tp_size}
    if topology.engine == "fsdp2":
        value["fsdp_size"] = topology.world_size // topology.tp_size
    rules = context.tp_plan(plan.model_class)
    split = sum(not style.startswith(("replicate", "all_reduce", "moe_")) for style in rules.values())
    source = topology.read_from.get("engine", "")
    because = f"layers are split over {topology.tp_size} processes{f' ({source})' if source else ''}"
    because += f", by {split} rules that the architecture has"
    return {"distributed_config": Claim(value=value, because=because)}


@hookimpl
def loadkit_check_plan(context: Context, plan: Plan) -> Sequence[Problem]:
    if not context.topology.splits_layers:
        return []
    return [
        *_single(context),
        *_no_plan(context, plan),
        *_wrong_rules(context),
        *_heads(context, plan),
        *_quantized(plan),
    ]


def _single(context: Context) -> Iterator[Problem]:
    if not context.topology.distributed:
        yield _problem(
            "tensor-parallel-alone",
            "tensor parallelism was asked for in a single process, which has nothing to split layers over",
            "launch with torchrun, one process for each device, or leave tp_plan and tp_size out",
        )


def _no_plan(context: Context, plan: Plan) -> Iterator[Problem]:
    model = plan.model_class
    if context.tp_plan(model):
        return
    if model.implementation != "transformers":
        yield _problem(
            "tensor-parallel-plan-unknown",
            f"{model.model_class} is {model.implementation}: whether it has a plan for tensor parallelism can't be told before loading",
            "give one with tp_plan={path: style}, or launch without tensor parallelism",
            severity="warning",
        )
    else:
        yield _problem(
            "no-tensor-parallel-plan",
            f"tensor parallelism was asked for, and {model.model_class} has no plan for it in transformers {context.library.version}",
            "launch with FSDP2, which needs none, or give rules of your own with tp_plan={path: style}",
        )


def _wrong_rules(context: Context) -> Iterator[Problem]:
    asked = context.request.asked("tp_plan")
    if asked is None:
        return
    if isinstance(asked.value, str):
        if asked.value != "auto":
            yield _problem(
                "tensor-parallel-rules",
                f"{asked.by} gave tp_plan={asked.value!r}{did_you_mean(asked.value, ('auto',))}",
                'give "auto", or a mapping of paths to styles',
            )
        return
    for path, style in asked.value.items():
        if style not in STYLES:
            yield _problem(
                "tensor-parallel-rules",
                f"{asked.by} gave the rule {path!r}: {style!r}, which isn't a style{did_you_mean(str(style), STYLES)}",
                f"the styles are {', '.join(STYLES)}",
            )


def _heads(context: Context, plan: Plan) -> Iterator[Problem]:
    """A head isn't split: each process takes whole ones."""
    size, config = context.topology.tp_size, context.checkpoint.text_config
    rules = context.tp_plan(plan.model_class)

    def split(names: tuple[str, ...]) -> bool:
        return any(p.rpartition(".")[2] in names and style == "colwise" for p, style in rules.items())

    heads = config.get("num_attention_heads")
    counts = {
        "num_attention_heads": heads if split(QUERIES) else None,
        "num_key_value_heads": config.get("num_key_value_heads", heads) if split(KEYS) else None,
    }
    whole = {name: count for name, count in counts.items() if isinstance(count, int)}
    odd = [f"{name} is {count}" for name, count in whole.items() if count % size]
    if odd:
        most = math.gcd(*whole.values())
        divisors = [str(n) for n in range(2, most + 1) if most % n == 0]
        yield _problem(
            "heads-not-divisible",
            f"layers are to be split over {size} processes, and {' and '.join(odd)}: heads can't be shared out evenly",
            f"split over {', '.join(divisors)} (tp_size)" if divisors else "launch with FSDP2",
        )


def _quantized(plan: Plan) -> Iterator[Problem]:
    quantization = plan.quantized
    if quantization is not None and quantization.method not in SPLITS:
        yield _problem(
            "quantized-under-tensor-parallel",
            f"the weights are quantized by {quantization.method}, and layers are split: nobody has told loadkit that the two go together",
            "load the unquantized checkpoint, or try it on a few layers first",
            severity="warning",
        )

"""engines: what DDP, FSDP and DeepSpeed need of a model, checked before it is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from loadkit import Context, Plan, Problem, hookimpl

_problem = partial(Problem, "engine", "engines")

SHARDED = ("bitsandbytes",)
"""Quantizers whose own plugin says what sharding engines can do with their weights."""


@hookimpl
def loadkit_check_plan(context: Context, plan: Plan) -> Sequence[Problem]:
    topology = context.topology
    problems = [*_devices(context), *_checkpointing(context, plan)]
    if topology.engine in ("fsdp", "fsdp2"):
        problems += [*_dtypes(context, plan), *_adapters(context, plan), *_reading(context)]
    if topology.engine == "zero3":
        problems += _alive(context)
    if topology.shards_parameters:
        problems += _quantized(context, plan)
    return problems


def _devices(context: Context) -> Iterator[Problem]:
    """More processes on a node than it has accelerators: two would share one."""
    topology, machine = context.topology, context.machine
    here = len(machine.accelerators)
    if machine.kind in ("cuda", "xpu", "npu") and topology.distributed and topology.local_world_size > here:
        yield _problem(
            "fewer-devices-than-processes",
            f"{topology.local_world_size} processes were launched on a node that has {machine.describe()}: "
            f"there {'is' if here == 1 else 'are'} {here} for them",
            f"start {here} process{'es' if here != 1 else ''} a node, or make more devices visible (CUDA_VISIBLE_DEVICES)",
        )


def _dtypes(context: Context, plan: Plan) -> Iterator[Problem]:
    """Parameters that transformers keeps in float32 beside the others.

    FSDP1 flattens each unit into one parameter of one dtype; FSDP2 wants one dtype of what trains in a unit
    (torch 2.13: `_flat_param.py`, `_fsdp_param_group.py`).
    """
    memory, engine = plan.memory, context.topology.engine
    others = {dtype: n for dtype, n in memory.weights.items() if dtype != plan.dtype and n} if memory else {}
    in_full = plan.preparation.training and plan.adapters is None and plan.quantized is None
    if not others or (engine == "fsdp2" and not in_full):
        return
    said = ", ".join(f"{count:,} bytes in {dtype}" for dtype, count in others.items())
    yield _problem(
        "mixed-dtypes-under-fsdp",
        f"{plan.model_class.model_class} has {said} beside {plan.dtype}, and {engine} wants one dtype in each wrapped unit",
        "load all of it in one dtype (dtype='float32', and mixed precision in the trainer)"
        + ("" if engine == "fsdp2" else ", or launch with FSDP2, which wants it of trained parameters only"),
        severity="error" if engine == "fsdp" else "warning",
    )


def _adapters(context: Context, plan: Plan) -> Iterator[Problem]:
    """Adapters are flattened together with the layers that they adapt."""
    engine, adapters = context.topology.engine, plan.adapters
    if adapters is None or adapters.merge:
        return
    for member in adapters.members:
        if member.dtype != plan.dtype:
            yield _problem(
                "adapter-dtype-under-fsdp",
                f"the adapter {member.name!r} is planned in {member.dtype}, and {engine} shards it with weights in {plan.dtype}",
                "leave the adapter's dtype to loadkit, which takes that of the weights",
                severity="error" if engine == "fsdp" else "warning",
            )


def _reading(context: Context) -> Iterator[Problem]:
    """What accelerate's `cpu_ram_efficient_loading` does, as its name says more than transformers keeps."""
    if context.topology.reads_once:
        yield _problem(
            "read-on-every-rank",
            "cpu_ram_efficient_loading is on: accelerate hands rank 0's weights to the others, but transformers 5.23 maps the files on every "
            "rank all the same, and 4-bit weights aren't handed on (accelerate 1.15)",
            "nothing need be done: mapped files are in memory once a node",
            severity="note",
        )


def _alive(context: Context) -> Iterator[Problem]:
    """transformers divides parameters while loading only where it finds a DeepSpeed config then."""
    if context.topology.zero3_alive is False:
        yield _problem(
            "zero3-config-not-alive",
            "the launch says ZeRO-3, and no DeepSpeed config is alive: every process would load the whole model",
            "make the TrainingArguments with deepspeed=…, the accelerate.Accelerator(), or "
            "transformers.integrations.HfDeepSpeedConfig(config) before the model, and keep it in a variable",
        )
    elif context.topology.zero3_alive is None:
        yield _problem(
            "zero3-config-first",
            "ZeRO-3 divides the model while it loads only where a DeepSpeed config is alive by then",
            "in your program, make the TrainingArguments with deepspeed=… or the accelerate.Accelerator() first, and keep it in a variable",
            severity="note",
        )


def _quantized(context: Context, plan: Plan) -> Iterator[Problem]:
    quantization, engine = plan.quantized, context.topology.engine
    if quantization is None or quantization.method in SHARDED:
        return
    yield _problem(
        "quantized-under-sharding",
        f"the weights are quantized by {quantization.method}, and {engine} shards parameters: nobody has told loadkit that the two go "
        "together",
        "launch with DDP, which keeps every weight whole, or try it on a few layers first",
        severity="warning",
    )


def _checkpointing(context: Context, plan: Plan) -> Iterator[Problem]:
    topology, preparation = context.topology, plan.preparation
    if not preparation.gradient_checkpointing:
        return
    if topology.checkpoints_activations:
        yield _problem(
            "checkpointing-twice",
            f"gradient_checkpointing is planned ({plan.why('preparation').because}), and {topology.engine} recomputes activations too "
            "(fsdp_activation_checkpointing): they would be computed three times, and transformers' trainer refuses",
            "turn one of the two off: gradient_checkpointing=False, or fsdp_activation_checkpointing in accelerate's settings",
        )
    reentrant = bool(preparation.gradient_checkpointing_kwargs.get("use_reentrant"))
    if topology.engine == "ddp" and topology.distributed and reentrant:
        yield _problem(
            "reentrant-under-ddp",
            "gradient checkpointing with use_reentrant=True was asked for under DDP, which then counts parameters twice unless the trainer "
            "sets ddp_find_unused_parameters=False",
            "leave use_reentrant out, or set ddp_find_unused_parameters=False in the trainer",
            severity="warning",
        )
    if topology.engine in ("fsdp", "fsdp2") and reentrant:
        yield _problem(
            "reentrant-under-fsdp",
            f"gradient checkpointing with use_reentrant=True was asked for under {topology.engine}: torch recommends the other kind there",
            "leave use_reentrant out",
            severity="warning",
        )
    frozen = plan.adapters is not None or plan.quantized is not None
    if topology.engine == "zero3" and frozen and not reentrant:
        yield _problem(
            "not-reentrant-under-zero3",
            "gradient checkpointing with use_reentrant=False was asked for over frozen weights under ZeRO-3, which frees them while "
            "activations are recomputed: the backward pass fails (huggingface/transformers#47254)",
            "leave use_reentrant out: it is True there, or use a DeepSpeed that has its pull request 8148",
            severity="warning",
        )

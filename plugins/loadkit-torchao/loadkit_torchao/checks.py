"""What can't work with torchao, found before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from loadkit import Context, Plan, Problem, Quantization
from loadkit_torchao.memory import quantized
from loadkit_torchao.settings import INT4, INT4_CAPABILITY, METHOD, described

__all__ = ["check"]

_problem = partial(Problem, "quantization", METHOD)

ADAPTS = (0, 19)
"""The first PEFT that knows torchao's tensors as they are since torchao 0.16."""

OWN = ("torchao_quant_type", "torchao_group_size")
INT4_GROUPS = (32, 64, 128, 256)
"""Group sizes of torch's int4 kernel."""


def check(context: Context, plan: Plan) -> Sequence[Problem]:
    """Every problem of the plan's quantization that torchao makes."""
    quantization = plan.quantization
    if quantization is None or quantization.method != METHOD or quantization.prequantized:
        return [*_unused(context, quantization), *_other_config(context)]
    return [
        *_package(context),
        *_int4(context, plan, quantization),
        *_groups(context, plan, quantization),
        *_nothing(plan),
        *_training(plan, quantization),
        *_older_peft(context, plan),
        *_engine(context),
    ]


def _older_peft(context: Context, plan: Plan) -> Iterator[Problem]:
    """PEFT 0.18 looks for classes that torchao 0.18 has no more, and takes its layers for plain ones."""
    peft = context.machine.version("peft")
    if plan.adapters is not None and peft is not None and peft[:2] < ADAPTS:
        yield _problem(
            "torchao-needs-peft",
            f"an adapter was asked for over layers that torchao quantizes, which needs peft 0.19, and {'.'.join(map(str, peft))} is installed",
            "pip install 'peft>=0.19', or quantize with bitsandbytes (load_in_4bit=True)",
        )


def _unused(context: Context, decided: Quantization | None) -> Iterator[Problem]:
    """Settings that nobody takes up would be dropped in silence."""
    asked = [a for name in OWN if (a := context.request.asked(name)) and a.demanded]
    if not asked:
        return
    said = ", ".join(f"{a.name}={a.value!r}" for a in asked)
    if decided is not None and decided.prequantized:
        yield _problem(
            "quantized-already",
            f"you asked for {said}, but the checkpoint is stored quantized by {decided.method}",
            "leave it out to load the checkpoint as it is stored, or load the unquantized checkpoint it was made from",
        )
    elif decided is None or all(a.name != "torchao_quant_type" for a in asked):
        how = "isn't quantized" if decided is None else f"is quantized by {decided.method}"
        yield _problem(
            "setting-without-quantization",
            f"you asked for {said}, but the model {how}",
            "add torchao_quant_type=…, or leave it out",
        )


def _other_config(context: Context) -> Iterator[Problem]:
    asked = context.request.asked("quantization_config")
    if asked is None or asked.value.get("quant_method") != METHOD or not asked.demanded:
        return
    found = described(asked.value)
    if isinstance(found, str):
        yield _problem(
            "torchao-config-unknown",
            f"you gave a TorchAoConfig that this plugin can't plan and audit: {found}",
            "give Int8WeightOnlyConfig (a scale a row or a group), or Int4WeightOnlyConfig(int4_packing_format='tile_packed_to_4d')",
        )


def _package(context: Context) -> Iterator[Problem]:
    if context.machine.version("torchao") is None:
        yield _problem(
            "no-torchao",
            "quantizing with torchao was asked for, and torchao isn't installed",
            "pip install torchao",
        )


def _int4(context: Context, plan: Plan, quantization: Quantization) -> Iterator[Problem]:
    if quantization.options["quant_type"] != INT4:
        return
    machine, group = context.machine, quantization.options["group_size"]
    if machine.kind != "cuda":
        yield _problem(
            "int4-needs-cuda",
            f"int4 weights were asked for, and torchao 0.18 packs them on CUDA only; this is {machine.describe()}",
            "choose torchao_quant_type='int8_weight_only', or load_in_4bit=True, which runs here",
        )
    elif machine.capability < INT4_CAPABILITY:
        had = "sm{}{}".format(*machine.capability)
        yield _problem(
            "int4-needs-sm80",
            f"int4 weights were asked for, whose kernel needs sm80 or later, and this machine has {had}",
            "choose torchao_quant_type='int8_weight_only'",
        )
    elif plan.dtype != "bfloat16":
        yield _problem(
            "int4-needs-bfloat16",
            f"int4 weights were asked for with dtype={plan.dtype!r}, and torchao's kernel for them computes in bfloat16 only",
            "give dtype='bfloat16', or leave dtype out",
        )
    if group not in INT4_GROUPS:
        yield _problem(
            "int4-group-size",
            f"torchao_group_size={group!r} was asked for, and the int4 kernel has {', '.join(map(str, INT4_GROUPS))}",
            "choose one of them",
        )


def _groups(context: Context, plan: Plan, quantization: Quantization) -> Iterator[Problem]:
    """Over a row that isn't whole groups torchao fails (int8), or leaves the layer unquantized (int4)."""
    group = quantization.options["group_size"]
    if group is None:
        return
    if group < 1:
        yield _problem("group-size", f"torchao_group_size={group} isn't a number of weights", "leave it out")
        return
    weights = context.weights(plan.model_class)
    odd = [w for w in quantized(context, plan, weights, quantization) if w.shape[1] % group]
    if odd:
        names = sorted({w.module.rpartition(".")[2] for w in odd})
        yield _problem(
            "group-size",
            f"a scale for every {group} weights was asked for, and {len(odd)} layers have rows of {odd[0].shape[1]} "
            f"or other widths that {group} doesn't divide: {', '.join(names)}",
            f"choose a torchao_group_size that does, or leave them out: skip_modules={names!r}",
        )


def _nothing(plan: Plan) -> Iterator[Problem]:
    memory = plan.memory
    if memory is not None and memory.unquantized and not memory.quantized:
        yield _problem(
            "nothing-to-quantize",
            f"quantizing was asked for, and {plan.model_class.model_class} has no linear layer for torchao to quantize",
            "leave out the quantization, or quantize with a method that takes its layers",
        )


def _training(plan: Plan, quantization: Quantization) -> Iterator[Problem]:
    if plan.adapters is not None and plan.adapters.dequantize:
        yield _problem(
            "torchao-no-dequantize",
            "dequantize=True was asked for, and transformers 5.23 can't turn torchao's weights back",
            "merge the adapter into the unquantized base: leave out the quantization",
        )
    if not plan.preparation.training:
        return
    if quantization.options["quant_type"] == INT4:
        yield _problem(
            "int4-training",
            "training over int4 weights was asked for, which PEFT 0.21 and transformers 5.23 refuse for torchao",
            "choose torchao_quant_type='int8_weight_only', or load_in_4bit=True",
        )
    elif plan.adapters is None:
        yield _problem(
            "int8-training-in-full",
            "training was asked for without an adapter, and int8 weights don't train themselves",
            "add adapter=True, or leave out the quantization",
        )


def _engine(context: Context) -> Iterator[Problem]:
    engine = context.topology.engine
    if engine in ("fsdp", "fsdp2", "zero3", "tensor-parallel"):
        yield _problem(
            "torchao-with-sharding",
            f"quantizing with torchao was asked for under {engine}, which would split its tensors; this plugin hasn't been tried so",
            "leave out the quantization, or launch with plain data parallelism",
        )

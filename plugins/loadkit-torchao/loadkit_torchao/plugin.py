"""torchao: int8 and int4 weights with floating-point arithmetic ("weight only"), on torch's own kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadkit import (
    Claim,
    Context,
    Finding,
    ModelClass,
    Opened,
    Option,
    Packed,
    Plan,
    Problem,
    Profile,
    Quantization,
    Weight,
    hookimpl,
    read_profiles,
)
from loadkit_torchao.settings import BITS, INT4, INT4_CAPABILITY, INT8, METHOD, PACKING, wish


@hookimpl
def loadkit_options() -> Sequence[Option]:
    return [
        Option(
            name="torchao_quant_type",
            type="str",
            stage="quantization",
            help="quantize with torchao: the type of the weights",
            choices=tuple(BITS),
        ),
        Option(
            name="torchao_group_size",
            type="int",
            stage="quantization",
            help="torchao: weights of a row that share a scale; by default all for int8, 128 for int4",
        ),
    ]


@hookimpl
def loadkit_profiles() -> Sequence[Profile]:
    return read_profiles(Path(__file__).parent / "profiles")


@hookimpl
def loadkit_choose_dtype(context: Context) -> Claim[str] | None:
    asked = wish(context.request)
    if asked is None or asked.quant_type != INT4 or context.checkpoint.quantization_config:
        return None
    if context.machine.kind == "cuda" and context.machine.capability < INT4_CAPABILITY:
        return None  # it has no bfloat16 either; the check says what is missing
    return Claim(value="bfloat16", because="torchao's int4 kernels compute in bfloat16 only")


@hookimpl
def loadkit_choose_quantization(
    context: Context, architecture: ModelClass, dtype: str
) -> Claim[Quantization | None] | None:
    asked = wish(context.request)
    if asked is None or context.checkpoint.quantization_config:
        return None  # what is stored quantized can't be quantized again; the check says so
    registered = context.registered.skip_modules if context.registered else ()
    options: dict[str, Any] = {"quant_type": asked.quant_type, "group_size": asked.group_size}
    if asked.quant_type == INT4:
        options["int4_packing_format"] = PACKING
    value = Quantization(
        method=METHOD,
        bits=BITS[asked.quant_type],
        options=options,
        skip_modules=tuple(dict.fromkeys((*asked.skip, *registered))),
    )
    spread = "a scale a row" if asked.group_size is None else f"a scale for every {asked.group_size} weights"
    because = f"{asked.because}; {spread}, computes in {dtype}"
    return Claim(value=value, because=because, strength=asked.strength)


@hookimpl
def loadkit_estimate_weights(
    context: Context, plan: Plan, weights: Sequence[Weight]
) -> Mapping[str, Packed] | None:
    from loadkit_torchao.memory import estimate

    return estimate(context, plan, weights)


@hookimpl
def loadkit_check_plan(context: Context, plan: Plan) -> Sequence[Problem]:
    from loadkit_torchao.checks import check

    return check(context, plan)


@hookimpl
def loadkit_build_quantization_config(quantization: Quantization, skip_modules: Sequence[str] | None) -> Any:
    if quantization.method != METHOD:
        return None
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig
    from torchao.quantization.granularity import PerGroup, PerRow
    from transformers import TorchAoConfig

    options = quantization.options
    size = options["group_size"]
    if options["quant_type"] == INT8:
        kind: Any = Int8WeightOnlyConfig(granularity=PerRow() if size is None else PerGroup(size))
    else:
        kind = Int4WeightOnlyConfig(group_size=size, int4_packing_format=options["int4_packing_format"])
    return TorchAoConfig(kind, modules_to_not_convert=None if skip_modules is None else list(skip_modules))


@hookimpl
def loadkit_compare_tensor(parameter: Any, stored: Any) -> str | None:
    from loadkit_torchao.audit import compare

    return compare(parameter, stored)


@hookimpl
def loadkit_open_parameter(parameter: Any) -> Opened | None:
    from loadkit_torchao.audit import opened

    return opened(parameter)


@hookimpl
def loadkit_audit_model(plan: Plan, model: Any) -> Sequence[Finding]:
    from loadkit_torchao.audit import audit

    return audit(plan, model)

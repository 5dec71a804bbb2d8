"""prequantized: a checkpoint that is stored quantized, whatever its method: what it is in memory here, and
whether it can train.

Which method that is, the file says; so this is one rule for all of them, and needs none of the plugins that
quantize. Those look after checkpoints of their own method: what of their options contradicts one, what it
takes, what came of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from loadkit import (
    Claim,
    Context,
    Finding,
    ModelClass,
    Option,
    Packed,
    Plan,
    Problem,
    Quantization,
    Strength,
    Weight,
    hookimpl,
)
from loadkit_plugins.prequantized.settings import method_of, stored, stored_here
from loadkit_plugins.stored_blocks.headers import METHODS, as_floats
from loadkit_plugins.stored_blocks.wishes import quantized_again


@hookimpl
def loadkit_options() -> Sequence[Option]:
    return [
        Option(
            name="dequantize_stored",
            type="list",
            stage="quantization",
            help='stored formats to turn back into floating point while loading, such as "mxfp4"; others stay as they are',
        )
    ]


@hookimpl
def loadkit_choose_dtype(context: Context) -> Claim[str] | None:
    """A method whose kernels compute in some dtypes only, where the checkpoint states another."""
    found = stored(context.checkpoint)
    method = None if found is None else method_of(found)
    if method is None or not method.dtypes or not context.machine.accelerators:
        return None
    if context.checkpoint.config_dtype in method.dtypes:
        return None
    return Claim(
        value=method.dtypes[0],
        because=f"weights stored by {method.name} compute in {' or '.join(method.dtypes)}",
    )


@hookimpl
def loadkit_choose_quantization(
    context: Context, architecture: ModelClass, dtype: str
) -> Claim[Quantization | None] | None:
    already = stored_here(context, dtype)
    if already is None:
        return None
    if already.method == "gguf":
        already = msgspec.structs.replace(already, options={"types": already.options.get("types", [])})
    because = f"the checkpoint is stored quantized ({already.method}); what it fixes can't be chosen again"
    if already.format is not msgspec.UNSET:
        wish = context.request.asked("dequantize") or context.request.asked("dequantize_stored")
        because += f"; {wish.because}" if already.format.asked and wish is not None else ""
        chosen = ", ".join(f"{name}={value}" for name, value in already.settings.items())
        because += f"; {chosen} is set, with which it trains" if chosen else ""
        because += f"; it takes {', '.join(already.format.needs)}" if already.format.needs else ""
    if already.method in METHODS and quantized_again(context) and as_floats(context.checkpoint).able:
        because = f"the checkpoint is stored quantized ({already.method})"
        return Claim(value=already, because=because)
    return Claim(value=already, because=because, strength=Strength.YOU)


@hookimpl
def loadkit_estimate_weights(
    context: Context, plan: Plan, weights: Sequence[Weight]
) -> Mapping[str, Packed] | None:
    from loadkit_plugins.prequantized.memory import estimate

    return estimate(context, plan, weights)


@hookimpl
def loadkit_check_plan(context: Context, plan: Plan) -> Sequence[Problem]:
    from loadkit_plugins.prequantized.checks import check

    return check(context, plan)


@hookimpl
def loadkit_compare_tensor(plan: Plan, parameter: Any, stored: Any) -> str | None:
    from loadkit_plugins.prequantized.audit import compare

    return compare(plan, parameter, stored)


@hookimpl
def loadkit_audit_model(plan: Plan, model: Any) -> Sequence[Finding]:
    from loadkit_plugins.prequantized.audit import audit

    return audit(plan, model)

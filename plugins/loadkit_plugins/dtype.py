"""dtype: the checkpoint's own, as far as the hardware has it; one for weights, compute and adapters."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from loadkit import Claim, Context, Finding, Option, PassedOver, Plan, Problem, Reading, Strength, hookimpl
from loadkit.plugins import FLOATS, SHORT_DTYPES, base_of, canonical_dtype, did_you_mean, is_packed

_problem = partial(Problem, "dtype", "dtype")
_finding = partial(Finding, "dtype", "dtype")

BF16_CAPABILITY = (8, 0)
"""CUDA has bfloat16 arithmetic from sm80 (Ampere) on."""


@hookimpl
def loadkit_options() -> Sequence[Option]:
    return [
        Option(
            name="dtype",
            type="str",
            stage="dtype",
            help='dtype of the weights: "auto" (the checkpoint\'s, as far as the hardware has it) or a name such as "bfloat16"',
            aliases=("torch_dtype",),
        )
    ]


@hookimpl
def loadkit_choose_dtype(context: Context) -> Sequence[Claim[str]]:
    fallback = automatic(context)
    asked = context.request.asked("dtype")
    if asked is None:
        return [fallback]
    name = canonical_dtype(asked.value)
    if name == "auto":
        because = f"{fallback.because} (dtype='auto': {asked.because})"
        return [msgspec.structs.replace(fallback, because=because, strength=asked.strength)]
    reason = missing(name, context)
    if reason and not asked.demanded:
        because = f"{asked.by} prefers {name}, but {reason}; {fallback.because}"
        passed = (PassedOver(name, reason),)
        return [Claim(value=fallback.value, because=because, strength=asked.strength, passed_over=passed)]
    return [Claim(value=name, because=asked.because, strength=asked.strength), fallback]


@hookimpl
def loadkit_check_plan(context: Context, plan: Plan) -> Sequence[Problem]:
    decision = plan.why("dtype")
    by = "you asked for" if decision.strength is Strength.YOU else f"plugin {decision.plugin!r} chose"
    if decision.value not in FLOATS:
        near = did_you_mean(str(decision.value), [*FLOATS, *SHORT_DTYPES, "auto"])
        fix = f"choose auto or one of {', '.join(FLOATS)}"
        return [_problem("unknown-dtype", f"{by} dtype {decision.value!r}{near}", fix)]
    if not (reason := missing(decision.value, context)):
        return []
    fix = f"choose dtype='{automatic(context).value}', or leave dtype out"
    return [_problem("dtype-unavailable", f"{by} {decision.value}, but {reason}", fix)]


@hookimpl
def loadkit_read_back(plan: Plan, model: Any) -> Sequence[Reading]:
    """The config's, which `save_pretrained` writes; the parameters' own are looked at one by one."""
    stated = getattr(base_of(model).config, "dtype", None)
    if stated is None or (plan.quantization is not None and plan.quantization.prequantized):
        return []
    return [
        Reading(
            stage="dtype",
            names=("dtype",),
            where="config.dtype",
            planned=plan.dtype,
            effective=str(stated).removeprefix("torch."),
            verbatim=False,  # "auto" and "bf16" stand for others
        )
    ]


@hookimpl
def loadkit_audit_model(plan: Plan, model: Any) -> Sequence[Finding]:
    """Every floating parameter has the planned dtype, but for what the model or the plan keeps in another."""
    if plan.quantized is not None and plan.quantized.prequantized:
        return []
    base = base_of(model)
    kept_in_float32 = (*base._keep_in_fp32_modules, *base._keep_in_fp32_modules_strict)
    patterns = [pattern.replace("*", ".*") for pattern in kept_in_float32]
    stray: dict[str, str] = {}
    adapters = {adapter.name for adapter in plan.adapters.members} if plan.adapters else set()
    for name, parameter in base.named_parameters():
        found = str(parameter.dtype).removeprefix("torch.")
        if found == plan.dtype or not parameter.is_floating_point() or "lora_" in name:
            continue
        if adapters & {*name.split(".")} and "modules_to_save" not in name:
            continue  # the adapter's own, whose dtype its plugin looks at
        if parameter.requires_grad and found == _of_training(plan):
            continue
        norm = plan.preparation.kbit and plan.preparation.float32_norms and _is_norm(base, name)
        if not (norm or is_packed(parameter) or any(re.search(p, name) for p in patterns)):
            stray[name] = found
    own = _made_so(base, plan.dtype) if stray else {}
    kept = [name for name, found in stray.items() if own.get(name.replace(".base_layer", "")) == found]
    wrong = {name: found for name, found in stray.items() if name not in kept}
    return [*_kept_so(base, kept, stray), *_wrong(plan, wrong)]


def _of_training(plan: Plan) -> str:
    """The dtype of what trains, beside LoRA's own weights: of the base, or of modules that an adapter trains
    whole."""
    active = plan.adapter
    return active.dtype if active is not None else plan.preparation.trainable_dtype


def _is_norm(base: Any, parameter: str) -> bool:
    return type(base.get_submodule(parameter.rpartition(".")[0])).__name__.endswith("Norm")


def _made_so(base: Any, dtype: str) -> dict[str, str]:
    """The dtype that the class itself gives each parameter: the model is built once more, without weights."""
    import copy

    import torch

    with torch.device("meta"):
        fresh = type(base)._from_config(copy.deepcopy(base.config), dtype=getattr(torch, dtype))
    return {name: str(p.dtype).removeprefix("torch.") for name, p in fresh.named_parameters()}


def _kept_so(base: Any, kept: Sequence[str], found: Mapping[str, str]) -> Iterator[Finding]:
    if kept:
        yield _finding(
            "own-dtype",
            f"{len(kept)} parameters are {found[kept[0]]}, such as {kept[0]}: {type(base).__name__} makes them so whatever dtype is asked for",
            severity="note",
        )


def _wrong(plan: Plan, wrong: Mapping[str, str]) -> Iterator[Finding]:
    if wrong:
        counts = Counter(wrong.values())
        yield _finding(
            "dtype",
            f"{len(wrong)} parameters have another dtype, such as {next(iter(wrong))}",
            plan.dtype,
            ", ".join(f"{count} of {name}" for name, count in sorted(counts.items())),
        )


def automatic(context: Context) -> Claim[str]:
    """The dtype nobody has to ask for: the files', else the config's, adjusted to the hardware."""
    checkpoint = context.checkpoint
    stored, stated = checkpoint.stored_dtype, checkpoint.config_dtype
    if checkpoint.quantization_config and stated:
        wanted, source = stated, "the config of the quantized checkpoint states it"
    elif stored in FLOATS:
        wanted, source = stored, "the checkpoint's files have it"
        if stated and stated != stored:
            source += f" (its config says {stated})"
    elif stated in FLOATS:
        wanted, source = stated, "the checkpoint's config states it"
    else:
        return _adjusted("float32", "neither the checkpoint's files nor its config name a dtype", context)
    return _adjusted(wanted, source, context)


def _adjusted(wanted: str, source: str, context: Context) -> Claim[str]:
    reason = missing(wanted, context)
    if reason:
        instead = "float16" if context.machine.kind == "cuda" else "float32"
    elif wanted == "float16" and context.machine.kind == "cpu":
        reason = "float16 has no fast arithmetic on a CPU; float32 holds the same values exactly"
        instead = "float32"
    elif wanted == "float64":
        reason, instead = "float64 brings nothing to a language model", "float32"
    else:
        return Claim(value=wanted, because=source, strength=Strength.FALLBACK)
    return Claim(
        value=instead,
        because=f"{source}: {wanted}, but {reason}",
        strength=Strength.FALLBACK,
        passed_over=(PassedOver(wanted, reason),),
    )


def missing(name: str, context: Context) -> str:
    """Why this machine can't have the dtype; "" where it can."""
    machine = context.machine
    if name == "bfloat16" and machine.kind == "cuda" and machine.capability < BF16_CAPABILITY:
        first = min((a for a in machine.accelerators if a.kind == "cuda"), key=lambda a: a.capability)
        return f"{first.name} is sm{first.capability[0]}{first.capability[1]}, and bfloat16 needs sm80"
    if name == "float64" and machine.kind == "mps":
        return "Apple's GPUs have no float64"
    return ""

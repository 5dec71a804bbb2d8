"""Whether a new LoRA adapts the experts of a mixture, by which parameters, and that it leaves routers alone.

A stack of experts is a parameter, and PEFT adapts it as one (`target_parameters`). Their factors are most of
what would train: of Qwen3-30B-A3B at rank 16, 629 million values beside 13 in the attention. So they are
adapted where somebody asks for it, and by default not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from loadkit import Adapter, Context, ModelClass, PassedOver, Plan, Problem
from loadkit_plugins.adapter.fields import Fields
from loadkit_plugins.adapter.named_experts import check_halves, stacks_of_names
from loadkit_plugins.adapter.no_layers import check_modules
from loadkit_plugins.adapter.targets import EVERY_LINEAR, RENAMED, renamed_way

__all__ = [
    "about_experts",
    "check_experts",
    "choose_experts",
    "expert_stacks",
    "leave_routers",
    "routers",
]

STACK, SINGLE = "0", ""
"""How facts of a class say that a parameter's first axis counts its matrices, and that it is but one."""

PAIR = "gate_up_proj"
"""Two of an expert's matrices in one: PEFT 0.21 gives it the rank of both, if "all-linear" stands for it."""

NEVER = "routers aren't adapted: a small change to one sends tokens to other experts"

WITHOUT_PARAMETERS = ("use_dora", "lora_bias", "fan_in_fan_out", "velora_config", "kasa_config")
"""Fields that PEFT 0.21's layer over a parameter refuses."""

_problem = partial(Problem, "adapter", "adapter")


def expert_stacks(context: Context, architecture: ModelClass) -> list[str]:
    """The parameters that are stacks of experts, by the ends of their paths: "experts.down_proj".

    Of code that isn't transformers' own nothing is known.
    """
    return sorted(set(_stacks(context, architecture, flat=False)))


def _stacks(context: Context, architecture: ModelClass, *, flat: bool) -> Iterator[str]:
    if architecture.implementation != "transformers":
        return
    weights = context.weights(architecture)
    held = {weight.multiplied for weight in weights if weight.multiplied}
    stored = {".".join(weight.name.split(".")[-2:]) for weight in weights}
    for family in context.library.families.values():
        for class_name, facts in family.modules.items():
            for name, units in facts.packable.items():
                wanted = units not in (STACK, SINGLE) if flat else units == STACK
                known = not held or f"{class_name}.{name}" in held  # files may call them otherwise
                for home in _homes(family.modules, class_name) if wanted else ():
                    if known or f"{home}.{name}" in stored:
                        yield f"{home}.{name}"


def _homes(modules: Mapping[str, Any], class_name: str) -> list[str]:
    """The attributes under which modules of a class are found."""
    found = (
        attribute
        for facts in modules.values()
        for attribute, classes in facts.members.items()
        if class_name in classes
    )
    return list(dict.fromkeys(found))


def routers(context: Context) -> list[str]:
    """The plain linear layers that choose experts, by the ends of their paths: "gate.wg"."""
    return sorted(
        {
            f"{home}.{member}"
            for family in context.library.families.values()
            for class_name, facts in family.modules.items()
            for member in facts.routers
            for home in _homes(family.modules, class_name)
        }
    )


def choose_experts(fields: Fields, context: Context, architecture: ModelClass) -> list[PassedOver]:
    """Name the stacks where experts are to be adapted, and linear layers alone where all of them were asked
    for.

    PEFT 0.21 takes "all-linear" on models like Mixtral and Qwen2-MoE for the stacks and the router too, and
    leaves out dense layers whose names single experts had. Whoever speaks to PEFT itself, by a config of its
    own or a trainer's recipe, gets the experts so; whoever speaks to loadkit, what the words say.

    Parameters:
        fields: their options are changed.

    Returns:
        What gave way.
    """
    options, request = fields.options, context.request
    asked, stacks = request.asked("lora_experts"), expert_stacks(context, architecture)
    wide = options.get("target_modules") == "all-linear"
    adapts = asked is not None and bool(asked.value)
    passed: list[PassedOver] = []
    if wide and (stacks or _renames(context) or routers(context)):
        options["target_modules"] = EVERY_LINEAR
        as_peft = asked is None and _to_peft(fields) and _renames(context) and bool(stacks)
        reason = f"PEFT 0.21 would have it adapt the router too: {NEVER}"
        if not as_peft and not adapts:
            reason = "PEFT 0.21 would have it adapt the experts and the router; lora_experts=True adapts the experts"
        if _renames(context):
            passed.append(PassedOver("all-linear", reason))
        if as_peft:
            adapts = True
            _pair_ranks(options, stacks)
    if isinstance(options.get("target_modules"), list):
        passed += stacks_of_names(options, context, architecture, stacks, as_peft=_to_peft(fields))
    if adapts:
        given = options.get("target_parameters") or []
        more = [each for each in stacks if each not in given]
        options |= {"target_parameters": [*given, *more]} if given or more else {}
    if adapts and not stacks:
        passed.append(
            PassedOver("lora_experts=True", "the model has no stacks of experts that are known here")
        )
    passed += _without_parameters(options, context)
    return passed


def _renames(context: Context) -> bool:
    return bool(RENAMED.get(renamed_way(context)))


def _to_peft(fields: Fields) -> bool:
    """Whether the targets were given in PEFT's own words: in its config, or by a trainer's recipe."""
    by = fields.by.get("target_modules")
    return by is not None and (by.name == "peft_config" or not (by.demanded or by.by.startswith("profile")))


def _pair_ranks(options: dict[str, Any], stacks: list[str]) -> None:
    """Twice the rank for pairs, at the same scale, as PEFT has it."""
    for end in (each for each in stacks if each.endswith(PAIR)):
        for pattern, field, usual in (("rank_pattern", "r", 8), ("alpha_pattern", "lora_alpha", 8)):
            options[pattern] = {end: 2 * options.get(field, usual), **(options.get(pattern) or {})}


def _without_parameters(options: dict[str, Any], context: Context) -> list[PassedOver]:
    """Leave dense layers with the names of experts out, where PEFT couldn't load what was trained of them."""
    names = [name for name in RENAMED.get(renamed_way(context), ()) if name != "gate"]
    refused = [field for field in WITHOUT_PARAMETERS if options.get(field)]
    if not names or not refused or not _every(options) or isinstance(options.get("exclude_modules"), str):
        return []
    options["exclude_modules"] = [*(options.get("exclude_modules") or ()), *names]
    reason = f"PEFT 0.21 takes the name for an expert's, which it adapts without {refused[0]}"
    return [PassedOver(name, reason) for name in names]


def _every(options: Mapping[str, Any]) -> bool:
    given = options.get("target_modules")
    return EVERY_LINEAR in ([given] if isinstance(given, str) else given or ())


def leave_routers(options: dict[str, Any], context: Context) -> list[PassedOver]:
    """Keep routers that are plain linear layers out of a list of all linear layers."""
    found = routers(context) if _every(options) else []
    if not found:
        return []
    given = options.get("exclude_modules") or []
    if isinstance(given, str):
        ends = "|".join(map(re.escape, found))
        options["exclude_modules"] = rf"({given})|(.*\.)?({ends})"
    else:
        options["exclude_modules"] = [*given, *(each for each in found if each not in given)]
    return [PassedOver(each, NEVER) for each in found]


def about_experts(options: Mapping[str, Any], context: Context, architecture: ModelClass) -> str:
    """What a plan says of experts; "" of a model that has none."""
    stacks = expert_stacks(context, architecture)
    if not stacks:
        return ""
    adapted = [each for each in stacks if _named(each, options.get("target_parameters") or ())]
    if not adapted:
        return "; the experts stay as they are (lora_experts=True adapts them)"
    said = f"; {', '.join(adapted)} are adapted expert by expert, in the activations"
    if options.get("lora_dropout"):
        said += "; the saved config says lora_dropout=0, as PEFT loads no other with adapted parameters"
    return said


def _named(end: str, parameters: Sequence[str]) -> bool:
    return any(end == each or end.endswith(f".{each}") or each.endswith(f".{end}") for each in parameters)


def check_experts(context: Context, plan: Plan, adapter: Adapter) -> Iterator[Problem]:
    """What can't be asked of experts."""
    asked = context.request.asked("lora_experts")
    stacks = set(expert_stacks(context, plan.model_class))
    if adapter.peft_type == "LORA":
        yield from check_halves(context, plan, adapter)
    yield from check_modules(context, plan, adapter)
    if asked is not None and asked.value and asked.demanded:
        if adapter.peft_type != "LORA":
            yield _problem(
                "no-experts",
                f"lora_experts=True was asked for, and the adapter is one of {adapter.peft_type}",
                "leave one of the two out: experts are adapted by LoRA",
            )
            return
        if not stacks:
            flat = sorted(_stacks(context, plan.model_class, flat=True))
            why = "has no stacks of experts that are known here"
            if flat:
                why = f"keeps its experts in {flat[0]}, which another module reads: PEFT 0.21's layer would hide it"
            yield _problem(
                "no-experts",
                f"lora_experts=True was asked for, and {context.checkpoint.model_type} {why}",
                "leave it out: attention and dense layers are adapted without it",
            )
    given = adapter.options.get("target_parameters") or ()
    targeted = [each for each in stacks if _named(each, given)]
    if not targeted:
        return
    if asked is not None and asked.demanded and not asked.value:
        yield _problem(
            "fields-contradict",
            f"lora_experts=False was asked for, and the adapter is for {targeted[0]}, which is a stack of experts",
            "take one of the two back",
        )
    refused = [field for field in WITHOUT_PARAMETERS if adapter.options.get(field)]
    init = adapter.options.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in ("gaussian", "eva"):
        refused.append("init_lora_weights")
    for field in refused:
        yield _problem(
            "experts-refuse",
            f"{field}={adapter.options[field]!r} was asked for, and the adapter is for {min(targeted)} too: PEFT 0.21 adapts stacks "
            "of experts without it",
            f"leave {field} out, or the experts",
        )

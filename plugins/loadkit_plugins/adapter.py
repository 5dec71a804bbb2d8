"""adapter: a new LoRA by plain options or any PEFT config, or an existing adapter; in the planned dtype."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from loadkit import (
    Adapter,
    Claim,
    Context,
    Finding,
    LoadError,
    ModelClass,
    Option,
    PassedOver,
    Plan,
    Problem,
    Request,
    Strength,
    hookimpl,
)

LORA_OPTIONS: Mapping[str, str] = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
    "lora_modules_to_save": "modules_to_save",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
"""Option to field of PEFT's LoraConfig."""

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""Config fields that tell how many experts a layer has."""

TASK_TYPES: Mapping[str, str] = {
    "causal-lm": "CAUSAL_LM",
    "seq2seq-lm": "SEQ_2_SEQ_LM",
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
}
"""Task to PEFT's task type; one left out has none in PEFT."""


@hookimpl
def loadkit_options() -> Sequence[Option]:
    def option(name: str, kind: str, line: str) -> Option:
        return Option(name=name, type=kind, help=line, stage="adapter")

    return [
        option("adapter", "bool", "attach a new LoRA adapter; false leaves the base bare"),
        option("peft_config", "mapping", "a PEFT config object, or its fields, for the new adapter"),
        option("lora_r", "int", "rank of a new LoRA adapter"),
        option("lora_alpha", "float", "scale of a new LoRA adapter"),
        option("lora_dropout", "float", "dropout of a new LoRA adapter"),
        option("lora_target_modules", "list or str", 'modules to adapt: a list, a pattern, or "all-linear"'),
        option("lora_modules_to_save", "list", "modules to train whole and save beside the adapter"),
        option("use_rslora", "bool", "rank-stabilized LoRA"),
        option("use_dora", "bool", "weight-decomposed LoRA (DoRA)"),
    ]


@hookimpl
def loadkit_choose_adapter(
    context: Context, architecture: ModelClass, dtype: str
) -> Sequence[Claim[Adapter | None]]:
    request, existing = context.request, context.checkpoint.adapter
    switch = request.asked("adapter")
    if switch is not None and switch.demanded and not switch.value:
        return [Claim(value=None, because=switch.because, strength=switch.strength)]
    if existing is not None:
        value = Adapter(
            peft_type=str(existing.config.get("peft_type", "LORA")),
            source=existing.location,
            revision=existing.commit,
            trainable=bool(request.value("training", False)),
            dtype=dtype,
        )
        return [
            Claim(
                value=value, because="what you asked for is an adapter, and this is it", strength=Strength.YOU
            )
        ]
    whole = request.asked("peft_config")
    asked = whole or (switch if switch is not None and switch.value else None)
    if asked is None:
        return [Claim(value=None, because="nobody asked for an adapter", strength=Strength.FALLBACK)]
    fields = {k: v for k, v in (whole.value if whole else {}).items() if v is not None}
    peft_type = str(fields.pop("peft_type", "LORA"))
    options = {**fields, **_lora(request, context)} if peft_type == "LORA" else fields
    passed = _without_dropout(options, context)
    if architecture.task in TASK_TYPES:
        options.setdefault("task_type", TASK_TYPES[architecture.task])
    value = Adapter(peft_type=peft_type, options=options, dtype=dtype)
    return [Claim(value=value, because=asked.because, strength=asked.strength, passed_over=passed)]


@hookimpl
def loadkit_check_plan(context: Context, plan: Plan) -> Sequence[Problem]:
    demanded = [name for name in LORA_OPTIONS if (a := context.request.asked(name)) and a.demanded]
    problems = []
    if plan.adapter is None and demanded:
        problems.append(
            _problem(
                "lora-option-unused",
                f"you asked for {', '.join(demanded)}, but no adapter is attached",
                "add adapter=True, or leave them out",
            )
        )
    if (
        plan.adapter is not None
        and plan.adapter.source
        and (demanded or context.request.asked("peft_config"))
    ):
        problems.append(
            _problem(
                "adapter-exists",
                f"you asked for {', '.join(demanded) or 'a peft_config'}, but {plan.checkpoint.source} is an adapter with settings of its own",
                "leave them out to go on with that adapter, or name its base to start a new one",
            )
        )
    if plan.adapter is not None and context.machine.version("peft") is None:
        problems.append(
            _problem("no-peft", "an adapter was asked for, and peft isn't installed", "pip install peft")
        )
    return problems


@hookimpl
def loadkit_attach_adapter(plan: Plan, model: Any, adapter: Adapter) -> Any:
    import peft

    if adapter.source:
        return peft.PeftModel.from_pretrained(
            model,
            adapter.source,
            adapter_name=adapter.name,
            is_trainable=adapter.trainable,
            autocast_adapter_dtype=False,
            revision=adapter.revision or None,
        )
    options = dict(adapter.options)
    if adapter.exclude_vision and "exclude_modules" not in options and (towers := _towers(model)):
        options["exclude_modules"] = rf"(^|.*\.)({'|'.join(map(re.escape, towers))})\..*"
    if "fan_in_fan_out" not in options and any(type(m).__name__ == "Conv1D" for m in model.modules()):
        options["fan_in_fan_out"] = True  # GPT-2's layers hold their weights transposed
    try:
        config = peft.get_peft_config({"peft_type": adapter.peft_type, **options})
        attached = peft.get_peft_model(model, config, adapter_name=adapter.name, autocast_adapter_dtype=False)
    except (ValueError, TypeError, KeyError) as error:
        raise LoadError(
            f"PEFT couldn't attach the {adapter.peft_type} adapter with {options!r}: {error} "
            f"(asked for because {plan.why('adapter').because})"
        ) from error
    return _cast(attached, adapter.dtype)


@hookimpl
def loadkit_audit_model(plan: Plan, model: Any) -> Sequence[Finding]:
    adapter = plan.adapter
    config = getattr(model, "peft_config", None) or {}
    if adapter is None or adapter.name not in config:
        there = bool(config)
        if there == (adapter is not None):
            return []
        return [_finding("adapter", "an adapter" if adapter else "none", ", ".join(config) or "none")]
    wanted = adapter.dtype
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    dtypes = {str(p.dtype).removeprefix("torch.") for n, p in trained if "lora_" in n}
    findings = (
        [_finding("adapter-dtype", wanted, ", ".join(sorted(dtypes)))]
        if dtypes - {wanted} and not adapter.source
        else []
    )
    if adapter.trainable != bool(trained):
        findings.append(
            _finding("trainable", f"trainable: {adapter.trainable}", f"{len(trained)} trainable tensors")
        )
    return findings


def _lora(request: Request, context: Context) -> dict[str, Any]:
    """The plain options, over the architecture's own targets, over all linear layers."""
    given = {field: request.value(name) for name, field in LORA_OPTIONS.items() if request.asked(name)}
    registered = context.registered
    targets = request.asked("lora_target_modules")
    if registered and registered.lora_target_modules and not (targets and targets.demanded):
        given["target_modules"] = list(registered.lora_target_modules)
    if not request.asked("peft_config"):
        given.setdefault("target_modules", "all-linear")
    return given


def _without_dropout(options: dict[str, Any], context: Context) -> tuple[PassedOver, ...]:
    """Leave a profile's dropout out where the experts are adapted as fused parameters, over which PEFT has none."""
    asked = context.request.asked("lora_dropout")
    config = context.checkpoint.config.get("text_config") or context.checkpoint.config
    experts = any(isinstance(config.get(key), int) and config[key] > 1 for key in EXPERTS)
    if not experts or asked is None or asked.demanded or not options.get("lora_dropout"):
        return ()
    wanted = options.pop("lora_dropout")
    reason = "the model has experts, whose weights are fused, and PEFT has no dropout over fused weights"
    return (PassedOver(f"lora_dropout={wanted:g}", reason),)


def _towers(model: Any) -> list[str]:
    """Names of the submodels beside the text one: vision and audio towers, which LoRA leaves alone."""
    text = model.config.get_text_config()
    if text is model.config:
        return []
    others = [
        c
        for key in model.config.sub_configs
        if (c := getattr(model.config, key, None)) is not None and c is not text
    ]
    return [
        name
        for name, module in model.named_modules()
        if name and any(getattr(module, "config", None) is c for c in others)
    ]


def _cast(model: Any, dtype: str) -> Any:
    import torch

    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.is_floating_point() and "lora_" in name:
            parameter.data = parameter.data.to(getattr(torch, dtype))
    return model


def _problem(code: str, message: str, remedy: str) -> Problem:
    return Problem(stage="adapter", plugin="adapter", code=code, message=message, remedy=remedy)


def _finding(code: str, planned: str, effective: str) -> Finding:
    return Finding(
        stage="adapter",
        plugin="adapter",
        code=code,
        message="the adapter isn't as planned",
        planned=planned,
        effective=effective,
    )

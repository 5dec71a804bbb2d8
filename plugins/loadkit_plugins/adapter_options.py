"""A new adapter's settings, from plain options and a PEFT config, each field by whoever asks most strongly. Not a plugin itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from loadkit import Asked, Context, PassedOver, Request

__all__ = ["LORA_OPTIONS", "Settled", "settle"]

LORA_OPTIONS: Mapping[str, str] = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
    "lora_target_parameters": "target_parameters",
    "lora_modules_to_save": "modules_to_save",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
    "init_lora_weights": "init_lora_weights",
}
"""Option to field of PEFT's LoraConfig."""

DEFAULTS: Mapping[str, Any] = {
    "r": 8,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "target_modules": None,
    "target_parameters": None,
    "modules_to_save": None,
    "use_rslora": False,
    "use_dora": False,
    "init_lora_weights": True,
}
"""What those fields are in a LoraConfig that says nothing of them: an object can't tell a default from a wish."""

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""Config fields that tell how many experts a layer has."""

IN_EXPERTS = ("w1", "w2", "w3", "gate", "gate_proj", "up_proj", "down_proj")
"""Names that PEFT takes for the parts of fused experts, as they were called before transformers 5 fused them."""


class Settled(NamedTuple):
    """What became of the settings.

    Parameters:
        peft_type: "LORA" or another of PEFT's types.
        fields: fields of its config.
        asked: field to who asked for it.
        passed_over: weaker wishes that had to give way.
        clashes: plain options that contradict a config of equal strength.
        strange: plain LoRA options that were demanded for an adapter of another type.
    """

    peft_type: str
    fields: dict[str, Any]
    asked: dict[str, Asked]
    passed_over: tuple[PassedOver, ...] = ()
    clashes: tuple[str, ...] = ()
    strange: tuple[str, ...] = ()


def settle(context: Context) -> Settled:
    """Work out the settings of a new adapter.

    A field of the PEFT config and a plain option for the same field are two wishes: the stronger wins. Of two equally
    strong ones the option refines what the config leaves at PEFT's default, and clashes with anything else.
    """
    request = context.request
    whole = request.asked("peft_config")
    given: dict[str, Any] = dict(whole.value) if whole else {}
    peft_type = str(given.pop("peft_type", None) or "LORA")
    if not given.get("target_modules") and not given.get("target_parameters"):
        given.pop(
            "target_modules", None
        )  # PEFT then chooses by model type, unless somebody here knows better
    fields = {name: value for name, value in given.items() if value is not None}
    asked = {} if whole is None else dict.fromkeys(given, whole)
    wishes = {option: a for option in LORA_OPTIONS if (a := request.asked(option))}
    if peft_type != "LORA":
        return _another_type(peft_type, fields, asked, wishes)
    passed: list[PassedOver] = []
    clashes: list[str] = []
    for option, wish in wishes.items():
        field = LORA_OPTIONS[option]
        if field in given and whole is not None and not _same(wish.value, given[field]):
            if wish.strength.rank < whole.strength.rank:
                said = f"the peft_config says {given[field]!r}, and {whole.because}"
                passed.append(PassedOver(f"{option}={wish.value!r}", said))
                continue
            default = _same(given[field], DEFAULTS[field])
            if wish.strength is whole.strength and wish.demanded and not default:
                clashes.append(f"{option}={wish.value!r} against {field}={given[field]!r}")
                continue
        fields[field], asked[field] = wish.value, wish
    passed += _targets(context, fields, asked)
    passed += _without_dropout(context, request, fields, asked)
    return Settled(peft_type, fields, asked, tuple(passed), tuple(clashes))


def _another_type(
    peft_type: str, fields: dict[str, Any], asked: dict[str, Asked], wishes: Mapping[str, Asked]
) -> Settled:
    """LoRA's options say nothing to another type: a profile's are passed over, the caller's are a mistake."""
    weaker = [f"{option}={a.value!r}" for option, a in wishes.items() if not a.demanded]
    passed = (PassedOver(", ".join(weaker), f"the peft_config is a {peft_type}"),) if weaker else ()
    strange = tuple(option for option, a in wishes.items() if a.demanded)
    return Settled(peft_type, fields, asked, passed, strange=strange)


def _targets(context: Context, fields: dict[str, Any], asked: dict[str, Asked]) -> list[PassedOver]:
    """Demanded targets, else the architecture's own, else those preferred, else all linear layers."""
    wish = asked.get("target_modules")
    parameters = asked.get("target_parameters")
    whole = context.request.asked("peft_config")
    own = context.registered.lora_target_modules if context.registered else ()
    demanded = bool(wish and wish.demanded) or bool(parameters and parameters is whole and whole.demanded)
    passed = []
    if own and not demanded:
        if wish is not None and not _same(fields.get("target_modules"), own):
            reason = f"{context.checkpoint.model_type} has targets of its own, which a plugin registered"
            passed.append(PassedOver(f"target_modules={fields.get('target_modules')!r}", reason))
        fields["target_modules"] = list(own)
    elif whole is None and "target_parameters" not in fields:
        fields.setdefault("target_modules", "all-linear")
    return passed


def _without_dropout(
    context: Context, request: Request, fields: dict[str, Any], asked: dict[str, Asked]
) -> list[PassedOver]:
    """Leave a preferred dropout out where the experts are adapted as fused parameters, over which PEFT has none."""
    wish = asked.get("lora_dropout")
    if not _adapts_experts(context, fields) or wish is None or wish.demanded or not fields["lora_dropout"]:
        return []
    wanted = fields.pop("lora_dropout")
    reason = "the model has experts, whose weights are fused, and PEFT has no dropout over fused weights"
    return [PassedOver(f"lora_dropout={wanted:g}", reason)]


def _adapts_experts(context: Context, fields: Mapping[str, Any]) -> bool:
    config = context.checkpoint.config.get("text_config") or context.checkpoint.config
    if not any(isinstance(config.get(key), int) and config[key] > 1 for key in EXPERTS):
        return False
    targets = fields.get("target_modules")
    if isinstance(targets, list) and not fields.get("target_parameters"):
        return any(str(target).rpartition(".")[2] in IN_EXPERTS for target in targets)
    return True


def _same(one: Any, other: Any) -> bool:
    """Whether two values mean the same: the order of names means nothing."""
    if _is_list(one) and _is_list(other):
        return set(one) == set(other)
    return bool(one == other)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)

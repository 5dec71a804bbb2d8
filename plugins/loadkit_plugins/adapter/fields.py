"""A whole PEFT config beside plain options: which of the two says what a field is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from loadkit import Asked, Context, PassedOver, Request

__all__ = ["LORA_OPTIONS", "Fields", "adapter_type", "contradictions", "merged", "once"]

LORA_OPTIONS: Mapping[str, str] = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
    "lora_target_parameters": "target_parameters",
    "lora_modules_to_save": "modules_to_save",
    "lora_exclude_modules": "exclude_modules",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
    "init_lora_weights": "init_lora_weights",
}
"""Option to field of PEFT's LoraConfig."""

WHOLE = "auto_mapping"
"""A field that nobody writes and every config object has: with it, a config's defaults were given too."""


class Fields(NamedTuple):
    """The fields of a new adapter.

    Parameters:
        options: field to value.
        by: field to who asked for it.
        passed_over: what gave way.
    """

    options: dict[str, Any]
    by: dict[str, Asked]
    passed_over: list[PassedOver]


def adapter_type(request: Request) -> str:
    """The PEFT type that is asked for: LoRA where nobody says otherwise."""
    whole = request.value("peft_config", {})
    return str(whole.get("peft_type") or "LORA").upper()


def merged(context: Context) -> Fields:
    """What the config says, and the plain options where it says nothing or they weigh more."""
    request = context.request
    whole, given = request.asked("peft_config"), _given(request)
    options = dict(given)
    by: dict[str, Asked] = dict.fromkeys(given, whole) if whole else {}
    passed: list[PassedOver] = []
    for name, field, asked in _asked(request):
        if whole is not None and (reason := _unfit(context, asked, field)):
            passed.append(PassedOver(f"{name}={asked.value}", reason))
        elif field not in given or whole is None:
            options[field], by[field] = asked.value, asked
        elif _same(asked.value, given[field]):
            continue
        elif _weighs_more(asked, whole) or _unsaid(context, field, asked, whole):
            options[field], by[field] = asked.value, asked
            passed.append(
                PassedOver(f"peft_config.{field}={given[field]}", f"{name} weighs more: {asked.because}")
            )
        elif not (asked.demanded and whole.demanded):  # that is a contradiction, which the check tells
            reason = f"the peft_config has {field}={given[field]}: {whole.because}"
            passed.append(PassedOver(f"{name}={asked.value} by {asked.by}", reason))
    return Fields(options, by, passed)


def contradictions(context: Context) -> Iterator[tuple[str, str]]:
    """Settings that the caller gave twice with different values, each in its two spellings."""
    whole, given = context.request.asked("peft_config"), _given(context.request)
    for name, field, asked in _asked(context.request):
        if whole is None or field not in given or not (whole.demanded and asked.demanded):
            continue
        if not _same(asked.value, given[field]) and not _unsaid(context, field, asked, whole):
            yield f"peft_config({field}={given[field]!r})", f"{name}={asked.value!r}"


def _asked(request: Request) -> Iterator[tuple[str, str, Asked]]:
    for name, field in LORA_OPTIONS.items():
        if (asked := request.asked(name)) is not None:
            yield name, field, asked


def _given(request: Request) -> dict[str, Any]:
    """The fields that the config sets; None is PEFT's word for "not set"."""
    whole = request.value("peft_config", {})
    return {k: v for k, v in whole.items() if v is not None and k != "peft_type"}


def _unfit(context: Context, asked: Asked, field: str) -> str:
    """Why a LoRA option has no place in a config of another type; "" where it has one."""
    kind = adapter_type(context.request)
    if kind == "LORA" or (asked.demanded and field in context.peft_fields(kind)):
        return ""
    return f"the peft_config is one of {kind}, not of LoRA"


def _weighs_more(asked: Asked, whole: Asked) -> bool:
    """Whether a plain option goes over the config: yours over a recipe's, and that over a profile's."""
    if asked.strength is not whole.strength:
        return asked.strength.rank > whole.strength.rank
    return not asked.demanded and (whole.by.startswith("profile") or not asked.by.startswith("profile"))


def _unsaid(context: Context, field: str, asked: Asked, whole: Asked) -> bool:
    """Whether a config object of yours has PEFT's default where a plain option of yours says something."""
    if not (asked.demanded and whole.demanded) or WHOLE not in whole.value:
        return False
    facts = context.peft_fields(adapter_type(context.request)).get(field)
    return facts is not None and facts.default == whole.value.get(field)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return sorted(map(str, one)) == sorted(map(str, other))
    return bool(one == other)


def once(options: dict[str, Any]) -> None:
    """Names that are given twice are given once: PEFT makes sets of them."""
    for field in ("target_modules", "target_parameters", "modules_to_save", "exclude_modules"):
        if isinstance(given := options.get(field), list) and all(isinstance(each, str) for each in given):
            options[field] = list(dict.fromkeys(given))

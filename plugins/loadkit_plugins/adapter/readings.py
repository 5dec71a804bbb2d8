"""What a model says of its adapters' settings: PEFT's config, the layers that it wrapped, what they hold."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from loadkit import Adapter, Adapters, Plan, Reading
from loadkit.plugins import base_of, plain, towers
from loadkit_plugins.adapter.fields import LORA_OPTIONS
from loadkit_plugins.adapter.layers import (
    WITHOUT_NAME,
    adapted,
    adapted_parameters,
    biases,
    expected,
    expected_parameters,
    free_modules,
    of_layers,
    saved_whole,
)
from loadkit_plugins.adapter.stored_file import file_of
from loadkit_plugins.adapter.targets import BY_TYPE, EVERY_LINEAR

__all__ = ["readings"]

CONFIG = "adapter_config.json"

OF_PEFT = (
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
)
"""Fields that PEFT fills in itself: what they say is read elsewhere, or says nothing of the adapter."""

OF_THE_BASE = ("fan_in_fan_out",)
"""Fields that describe the base's layers; PEFT 0.21 corrects them, with a warning."""

READ_APART = ("target_modules", "exclude_modules", "lora_dropout")
"""Fields that stand for names which only the model tells, or that layers have though the config says 0."""

ADDED_TO = ("modules_to_save", "target_parameters", "rank_pattern", "alpha_pattern")
"""Fields that PEFT adds to: a classifier's head, and for a model whose experts are fused
(`convert_peft_config_for_transformers`)."""

WORDS = ("all-linear", BY_TYPE)

_reading = partial(Reading, stage="adapter")


def readings(plan: Plan, model: Any) -> Iterator[Reading]:
    """Of every adapter that is planned and there: its type, its fields, and what its layers have."""
    adapters = plan.adapters
    if adapters is None:
        return
    configs = getattr(model, "peft_config", None) or {}
    yield _reading(
        names=("merge_adapter",),
        where="the adapters that are attached",
        planned=adapters.merge,
        effective=not configs,
        code="adapter",
    )
    yield from _active(adapters, model)
    for adapter in adapters.members if not adapters.merge else ():
        if adapter.name in configs:
            yield from _of_one(plan, adapter, model, configs[adapter.name])


def _active(adapters: Adapters, model: Any) -> Iterator[Reading]:
    on = getattr(getattr(model, "base_model", None), "active_adapters", None)
    if adapters.merge or not isinstance(on, list) or not getattr(model, "peft_config", None):
        return
    yield _reading(
        names=("active_adapter",),
        where="the active adapter",
        planned=[name for name in (adapters.beneath, adapters.active) if name],
        effective=list(on),
        verbatim=False,  # one beneath a new one is on too
        code="active-adapter",
    )


def _of_one(plan: Plan, adapter: Adapter, model: Any, config: Any) -> Iterator[Reading]:
    about = partial(_reading, where=f"peft_config[{adapter.name!r}]")
    base = base_of(model)
    yield about(
        names=("peft_config.peft_type",),
        planned=adapter.peft_type,
        effective=str(plain(config.peft_type)),
        verbatim=False,
    )
    planned = dict(adapter.options) if not adapter.source else _stored(plan, adapter)
    stacks = set(adapter.options.get("target_parameters") or ())
    for field, value in planned.items():
        if field in (*OF_PEFT, *OF_THE_BASE, *READ_APART) or not hasattr(config, field):
            continue
        yield _reading(
            names=_names(adapter, field),
            where=f"peft_config[{adapter.name!r}].{field}",
            planned=value,
            effective=_same_nothing(value, _held(config, field), field),
            verbatim=not (isinstance(value, Mapping) and set(value) & stacks),  # the ranks of pairs are ours
        )
    yield from _targets(adapter, planned, base, config)
    yield from _modules(plan, adapter, planned, base, config, model)
    for field, (value, found) in of_layers(adapter, planned, base, config).items():
        yield _reading(
            names=_names(adapter, field),
            where=f"{field} of the layers of {adapter.name!r}",
            planned=value,
            effective=found,
        )


def _targets(adapter: Adapter, planned: Mapping[str, Any], base: Any, config: Any) -> Iterator[Reading]:
    """Names or a pattern against the layers that are adapted: PEFT 0.21 shortens long lists in its config.

    A word stands for what the model has, and of fused experts PEFT adapts the parameters instead.
    """
    targets = planned.get("target_modules")
    fused = set(_held(config, "target_parameters") or ()) - set(planned.get("target_parameters") or ())
    words = {targets} if isinstance(targets, str) else {*(targets or ())}
    if not targets or fused or words & {*WORDS, EVERY_LINEAR} or adapter.peft_type in WITHOUT_NAME:
        return
    layers = adapted(base, adapter)
    if isinstance(targets, str):
        strays = [path for path in layers if not re.fullmatch(targets, path)]
        found: Any = targets if layers and not strays else layers
    else:
        there = free_modules(base, config)
        targets = [
            each for each in targets if _ends(each, there)
        ]  # of a recipe's list, PEFT takes what is there
        found = [each for each in targets if _ends(each, layers)]
        found += [path for path in layers if not any(_ends(each, [path]) for each in targets)]
    yield _reading(
        names=_names(adapter, "target_modules"),
        where=f"targets that {adapter.name!r} adapts",
        planned=targets,
        effective=found,
        verbatim=False,  # a family's own list stands for another
    )


def _modules(
    plan: Plan, adapter: Adapter, planned: Mapping[str, Any], base: Any, config: Any, model: Any
) -> Iterator[Reading]:
    """Which layers are adapted, left alone and trained whole."""
    layers = adapted(base, adapter)
    wanted = expected(model, base, config)
    if wanted is not None:
        ends = tuple(f".{each}" for each in _held(config, "target_parameters") or ())
        by_parameter = {path for path in layers if f".{path}.weight".endswith(ends)}
        layers = [path for path in layers if path in wanted or path not in by_parameter]
        yield _reading(
            names=(*_names(adapter, "target_modules"), "adapter"),
            where=f"the layers that {adapter.name!r} adapts",
            planned=wanted,
            effective=layers,
            verbatim=False,
        )
    yield from _parameters(adapter, base, config, plan)
    if isinstance(left := planned.get("exclude_modules"), list) and left:
        yield _reading(
            names=_names(adapter, "exclude_modules"),
            where=f"the modules that {adapter.name!r} leaves alone",
            planned=left,
            effective=[each for each in left if not _ends(each, layers)],
            verbatim=False,  # those that LoRA can't adapt are among them
        )
    if whole := planned.get("modules_to_save"):
        saved, there = saved_whole(base, adapter.name), [path for path, _ in base.named_modules()]
        whole = [each for each in whole if _ends(each, there)]  # PEFT lists every name of a classifier's head
        yield _reading(
            names=_names(adapter, "modules_to_save"),
            where=f"the modules that {adapter.name!r} trains whole",
            planned=whole,
            effective=[each for each in whole if _ends(each, saved)],
            verbatim=False,
        )
    named = list(model.named_parameters())
    if not adapter.source and adapter.trainable and (trained := biases(adapter, named)):
        frozen = {name for name, parameter in named if not parameter.requires_grad}
        yield _reading(
            names=_names(adapter, "bias"),
            where=f"biases that train with {adapter.name!r}",
            planned=len(trained),
            effective=sum(name not in frozen for name in trained),
            verbatim=False,
        )
    if not adapter.source and adapter.peft_type == "LORA":
        beside = tuple(f"{tower}." for tower in towers(base)) if adapter.exclude_vision else ()
        yield _reading(
            names=("lora_vision",),
            where=f"adapted layers of towers, of {adapter.name!r}",
            planned=[],
            effective=[name for name in layers if beside and name.startswith(beside)],
            verbatim=False,
        )


def _parameters(adapter: Adapter, base: Any, config: Any, plan: Plan) -> Iterator[Reading]:
    """Which parameters are adapted, and whether stacks of experts are."""
    found = adapted_parameters(base, adapter.name)
    if adapter.peft_type != "LORA" or not (found or getattr(config, "target_parameters", None)):
        stacks: list[str] = []
    else:
        stacks = [path for path, axes in found.items() if axes > 2]
        yield _reading(
            names=(*_names(adapter, "target_parameters"), "adapter"),
            where=f"the parameters that {adapter.name!r} adapts",
            planned=expected_parameters(base, config),
            effective=sorted(found),
            verbatim=False,
        )
    asked = plan.request.asked("lora_experts")
    if asked is not None and not adapter.source and adapter.peft_type == "LORA":
        yield _reading(
            names=("lora_experts",),
            where=f"whether {adapter.name!r} adapts stacks of experts",
            planned=bool(adapter.options.get("target_parameters")) and bool(asked.value),
            effective=bool(stacks) and bool(asked.value),  # those that are named are adapted all the same
            verbatim=False,
        )


def _stored(plan: Plan, adapter: Adapter) -> dict[str, Any]:
    """The fields that an existing adapter's own config sets; empty where it isn't at hand."""
    path = file_of(adapter, CONFIG, plan.kwargs.get("cache_dir"))
    if path is None:
        return {}
    config = json.loads(Path(path).read_text(encoding="utf-8"))
    return {name: value for name, value in config.items() if value is not None}


def _names(adapter: Adapter, field: str) -> tuple[str, ...]:
    if adapter.source:
        return ()  # nobody asked: its file says so
    return (f"peft_config.{field}", *(option for option, own in LORA_OPTIONS.items() if own == field))


def _held(config: Any, field: str) -> Any:
    value = getattr(config, field, None)
    own = getattr(value, "__dataclass_fields__", None)  # a config within the config
    try:
        return plain({name: getattr(value, name) for name in own} if own else value)
    except TypeError:
        return str(value)


def _same_nothing(planned: Any, found: Any, field: str) -> Any:
    """What is there; for "nothing", in the plan's way of saying so; of fields that PEFT adds to, what was
    planned of them."""
    both = (planned, found)
    if field in ADDED_TO and all(isinstance(each, list) for each in both):
        return [each for each in planned if each in found]  # PEFT writes a name twice, and reads it once
    if field in ADDED_TO and all(isinstance(each, Mapping) for each in both):
        return {key: value for key, value in found.items() if key in planned}
    return planned if planned in ([], {}, "") and found in (None, [], {}, "") else found


def _ends(entry: str, names: list[str]) -> bool:
    return any(name == entry or name.endswith(f".{entry}") for name in names)

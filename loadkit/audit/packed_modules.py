"""Quantized layers, whoever quantized them: whole, of their own shape, none left alone, and enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from loadkit.audit.model_access import base_of, is_packed
from loadkit.errors import Finding
from loadkit.hooks import hookspecs as hooks
from loadkit.hooks.manager import PluginManager
from loadkit.schema.plans import Plan
from loadkit.schema.quantized_weights import Opened
from loadkit.text.suggest import some_of
from loadkit.text.units import size

__all__ = ["packed_findings"]

_finding = partial(Finding, "quantization", "loadkit")

LEAST_SHARE = 0.9
"""Of the bytes that were to be quantized, the share below which too few are."""

TINY = 64
"""Layers of fewer weights aren't held against the plan's bytes: their constants weigh more than they do."""


class Layer(NamedTuple):
    """A module with a quantized parameter."""

    module: Any
    parameter: Any
    opened: Opened


def packed_findings(plan: Plan, model: Any, manager: PluginManager) -> list[Finding]:
    """What is wrong with the quantized layers of a model, as far as their plugin opens them."""
    adapters = plan.adapters
    if plan.quantized is None or (adapters is not None and adapters.dequantize):
        return []
    base = base_of(model)
    layers = dict(_layers(plan, base, manager))
    if not layers:
        return []
    return [
        *_shapes(layers),
        *_hollow(base, layers),
        *_left_alone(plan, layers),
        *_too_few(plan, layers),
    ]


def _layers(plan: Plan, base: Any, manager: PluginManager) -> Iterator[tuple[str, Layer]]:
    hook: Callable[..., Any] = hooks.loadkit_open_parameter
    for name, module in base.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if is_packed(parameter) and not hasattr(parameter, "device_mesh"):
                opened = manager.first(hook, plan=plan, parameter=parameter)
                if opened is not None:
                    yield f"{name}.{key}".removeprefix("."), Layer(module, parameter, opened)


def _shapes(layers: Mapping[str, Layer]) -> Iterator[Finding]:
    """A layer's weights against what its module multiplies with: another config loads garbage otherwise."""
    wrong = {}
    for name, (module, _, opened) in layers.items():
        own = (getattr(module, "out_features", None), getattr(module, "in_features", None))
        if not (name.endswith("weight") and all(isinstance(each, int) for each in own)):
            continue
        if (opened.shape or own) != own or opened.count != math.prod(own):  # type: ignore[arg-type]
            wrong[name] = (own, opened.shape or (opened.count,))
    if wrong:
        name, (own, held) = next(iter(wrong.items()))
        yield _finding(
            "packed-shape",
            f"{len(wrong)} quantized weights have another shape than their layer: {some_of(wrong)}",
            f"{' × '.join(map(str, own))} for {name}",
            " × ".join(map(str, held)),
            remedy="config.json and the weight files don't belong together",
        )


def _hollow(base: Any, layers: Mapping[str, Layer]) -> Iterator[Finding]:
    """A layer of a quantizer's own class whose weight isn't quantized: it computes with something else."""
    kinds = {type(layer.module) for layer in layers.values()}
    own = tuple(kind for kind in kinds if not kind.__module__.startswith(("torch.", "transformers.")))
    full = {id(layer.module) for layer in layers.values()}
    hollow = [
        name
        for name, module in base.named_modules()
        if own and type(module) in own and id(module) not in full and not _split(module)
    ]
    if hollow:
        yield _finding(
            "hollow-layer",
            f"{len(hollow)} quantized layers hold weights that aren't quantized: {some_of(hollow)}",
            "quantized weights",
            "others",
            remedy="load again; if it stays so, tell the quantizer's authors",
        )


def _left_alone(plan: Plan, layers: Mapping[str, Layer]) -> Iterator[Finding]:
    assert plan.quantized is not None
    packed = [
        name
        for name in layers
        if any(f".{skipped}." in f".{name}." for skipped in plan.quantized.skip_modules)
    ]
    if packed:
        yield _finding(
            "skipped-but-packed",
            f"{len(packed)} modules were to stay as they are, and are quantized: {some_of(packed)}",
            ", ".join(plan.quantized.skip_modules),
            "quantized",
        )


def _too_few(plan: Plan, layers: Mapping[str, Layer]) -> Iterator[Finding]:
    memory = plan.memory
    if memory is None or "weights" in memory.unknown or not memory.quantized:
        return
    held = sum(
        layer.opened.data.numel() * layer.opened.data.element_size()
        for layer in layers.values()
        if layer.opened.count >= TINY
    )
    if held < LEAST_SHARE * memory.quantized:
        yield _finding(
            "too-few-quantized",
            f"{size(held)} of weights are quantized, and the plan has {size(memory.quantized)}: {held / memory.quantized:.0%}",
            size(memory.quantized),
            size(held),
            severity="error" if held < memory.quantized / 2 else "warning",
            remedy="count on more memory; `loadkit load` names what stays as it is",
        )


def _split(module: Any) -> bool:
    return any(hasattr(p, "device_mesh") or hasattr(p, "ds_shape") for p in module.parameters(recurse=False))

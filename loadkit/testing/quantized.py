"""What a quantizer's plugin estimated, against what it made."""

from __future__ import annotations

from typing import Any

from loadkit.audit.model_access import base_of, is_packed
from loadkit.hooks import hookspecs
from loadkit.hooks.manager import PluginManager
from loadkit.text.units import size

__all__ = ["estimate_fault"]

TOLERANCE = 0.05
"""The share by which an estimate may be off."""

LEEWAY = 4096
"""Bytes beside that for a model: buffers that a tiny one has."""

ROUNDING = 256
"""Bytes beside that for codes and constants, which are rounded up to whole blocks."""


def estimate_fault(loaded: Any, manager: PluginManager) -> str:
    """How far the estimate is off, in a sentence; "" where it holds.

    Parameters:
        loaded: the `Loaded`.
        manager: the plugins, one of which opens the quantized parameters.
    """
    memory = loaded.plan.memory
    if memory is None or "weights" in memory.unknown:
        return ""
    codes = constants = unopened = 0
    for parameter in base_of(loaded.model).parameters():
        if not is_packed(parameter):
            continue
        opened = manager.first(hookspecs.loadkit_open_parameter, plan=loaded.plan, parameter=parameter)
        if opened is None:
            unopened += 1
            continue
        codes += _bytes(opened.data)
        constants += sum(_bytes(each) for each in opened.constants)
    what = [("the model", memory.model, loaded.report.measurements.footprint, LEEWAY)]
    if not unopened:
        what = [
            ("codes of quantized weights", memory.quantized, codes, ROUNDING),
            ("scales and code books", memory.constants, constants, ROUNDING),
            *what,
        ]
    for name, estimated, there, leeway in what:
        if abs(estimated - there) > max(TOLERANCE * there, leeway):
            return f"the estimate has {size(estimated)} for {name}, and {size(there)} are loaded"
    return ""


def _bytes(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())

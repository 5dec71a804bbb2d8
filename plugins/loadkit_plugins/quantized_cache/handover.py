"""Tell of each tensor of a model as soon as it has its final values, while transformers is still loading."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from loadkit_plugins.quantized_cache.model_state import contiguous_bytes
from loadkit_plugins.quantized_cache.tensor_file import ALIGNMENT, aligned

__all__ = ["SMALL", "Handover"]

SMALL = 2**15
"""Bytes below which a tensor waits for the end: there is nothing to win."""

HEADER = 2**10
"""Bytes of a file's header for one parameter: six tensors with long names."""

DEEP = 2
"""How far below a parameter its further tensors hang, such as bitsandbytes' `quant_state.state2.absmax`."""


class Handover:
    """Hands over what a thread's modules get: each parameter, and the tensors that hang on it.

    torch tells of each parameter that a module gets, and transformers gives a module none before it has read,
    converted and quantized it. What lies on an accelerator isn't handed over, nor what has holes.

    Parameters:
        take: gets each tensor, and the bytes that a header of all takes that the model will have: it was
            built without values before. It may not raise.
    """

    def __init__(self, take: Callable[[Any, int], None]) -> None:
        self._take = take
        self._planned = 0
        self._thread = threading.get_ident()
        self._hook: Any = torch.nn.modules.module.register_module_parameter_registration_hook(
            self._registered
        )

    def end(self) -> None:
        """Hand nothing over any more."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _registered(self, module: Any, name: str, parameter: Any) -> None:
        if parameter is None or threading.get_ident() != self._thread:
            return
        if parameter.is_meta:
            self._planned += 1
            return
        for tensor in _tensors(parameter):
            size = contiguous_bytes(tensor)
            if size >= SMALL and size % ALIGNMENT == 0:
                self._take(tensor, aligned(HEADER * self._planned))


def _tensors(value: Any, depth: int = DEEP) -> Iterator[Any]:
    """A tensor, and those among its attributes and theirs."""
    if isinstance(value, torch.Tensor):
        yield value
    if isinstance(value, (torch.nn.Module, type)) or depth < 0:
        return
    for each in vars(value).values() if hasattr(value, "__dict__") else ():
        yield from _tensors(each, depth - 1)

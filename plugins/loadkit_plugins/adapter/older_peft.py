"""What PEFT 0.18 does otherwise than the later ones.

All of it can go once the floor is peft 0.19, which brings
`peft.utils.transformers_weight_conversion`, notes how a layer over a parameter has it, and asks torchao for
no classes that are gone in torchao 0.18.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

__all__ = ["as_stored", "converts_targets", "is_stack", "swaps_features", "torchao_left_out"]


@cache
def converts_targets() -> bool:
    """Whether PEFT replaces names of single experts by their stacks'; 0.18 takes names as they are."""
    return importlib.util.find_spec("peft.utils.transformers_weight_conversion") is not None


@cache
def as_stored() -> dict[str, bool]:
    """What has `add_adapter` leave dtypes alone; 0.18 can't be told, and they are set afterwards anyway."""
    import peft

    known = "autocast_adapter_dtype" in inspect.signature(peft.PeftModel.add_adapter).parameters
    return {"autocast_adapter_dtype": False} if known else {}


def is_stack(layer: Any) -> bool:
    """Whether a `ParamWrapper` is over a stack of matrices; 0.18 doesn't note it."""
    noted = getattr(layer, "_param_ndim", None)
    return bool((layer.get_param().ndim if noted is None else noted) == 3)


def swaps_features(layer: Any) -> bool:
    """Whether a `ParamWrapper` takes a stack's second dimension for outputs; 0.18 takes it for inputs."""
    return bool(getattr(layer, "_did_swap_in_out_features", False))


@contextmanager
def torchao_left_out() -> Iterator[None]:
    """Let PEFT attach to plain layers where it can't work with the torchao that is installed.

    It asks torchao about every layer that it adapts, whoever needs it. 0.18 asks for classes that torchao has
    no more (`dispatch_torchao`, mended in 0.19); later ones refuse a torchao before 0.16
    (`is_torchao_available`).
    Over layers that torchao quantized, the plan is refused before.
    """
    from peft.tuners.lora import torchao as of_peft

    if _asks_in_vain(of_peft.is_torchao_available):
        before = of_peft.is_torchao_available
        of_peft.is_torchao_available = lambda: False
        try:
            yield
        finally:
            of_peft.is_torchao_available = before
    else:
        yield


def _asks_in_vain(available: Callable[[], bool]) -> bool:
    try:
        if not available() or converts_targets():
            return False
        from torchao.dtypes import AffineQuantizedTensor  # noqa: F401
        from torchao.quantization import LinearActivationQuantizedTensor  # noqa: F401
    except Exception:  # ImportError, or whatever a build for another machine raises
        return True
    return False

"""What PEFT 0.18 does otherwise than the later ones.

All of it can go once the floor is peft 0.19, which brings
`peft.utils.transformers_weight_conversion`, and notes how a layer over a parameter has it.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

__all__ = ["converts_targets", "is_stack", "swaps_features"]


@cache
def converts_targets() -> bool:
    """Whether PEFT replaces names of single experts by their stacks'; 0.18 takes names as they are."""
    return importlib.util.find_spec("peft.utils.transformers_weight_conversion") is not None


def is_stack(layer: Any) -> bool:
    """Whether a `ParamWrapper` is over a stack of matrices; 0.18 doesn't note it."""
    noted = getattr(layer, "_param_ndim", None)
    return bool((layer.get_param().ndim if noted is None else noted) == 3)


def swaps_features(layer: Any) -> bool:
    """Whether a `ParamWrapper` takes a stack's second dimension for outputs; 0.18 takes it for inputs."""
    return bool(getattr(layer, "_did_swap_in_out_features", False))

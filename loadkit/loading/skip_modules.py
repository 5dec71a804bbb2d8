"""Which modules a quantizer leaves alone: the automatic ones and the user's, as full paths.

transformers takes a list of the user's *instead of* the automatic one, so that naming "q_proj" quantizes the
output head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loadkit.errors import LoadError
from loadkit.planning.quantization_checks import asked_to_skip
from loadkit.schema.plans import Plan
from loadkit.schema.values import HEADED_TASKS
from loadkit.text.suggest import did_you_mean

__all__ = ["modules_to_skip"]


def modules_to_skip(plan: Plan, auto_class: Any, config: Any) -> list[str] | None:
    """Full paths of all modules to leave unquantized; None where transformers' automatic list serves."""
    if plan.quantization is not None and plan.quantization.prequantized:
        return None  # the files have it
    entries = plan.quantization.skip_modules if plan.quantization else ()
    # transformers 5.23 means to leave the last module unquantized, and misses one that has a bias, as BERT's
    # classifier: `get_keys_to_not_convert` strips ".weight" only.
    if not entries and plan.model_class.task not in HEADED_TASKS:
        return None
    import copy

    import torch
    from transformers.quantizers.base import get_keys_to_not_convert

    config = copy.deepcopy(config)
    config._experts_implementation = None  # a plugin's may not be registered yet
    with torch.device("meta"):  # takes no memory for weights
        if hasattr(auto_class, "from_config"):
            remote_code = plan.model_class.implementation == "remote code"
            model = auto_class.from_config(config, trust_remote_code=remote_code)
        else:
            model = auto_class(config)
    names = [name for name, _ in model.named_modules() if name]
    matched = {entry: [n for n in names if n == entry or n.endswith(f".{entry}")] for entry in entries}
    _refuse_unmatched([e for e in asked_to_skip(plan.request) if not matched.get(e, names)], names, model)
    automatic = {key.removesuffix(".bias") for key in get_keys_to_not_convert(model)}
    if plan.model_class.task in HEADED_TASKS:  # heads of several layers, of which it knows the last
        automatic |= {name for name, _ in model.named_children() if name != model.base_model_prefix}
    return sorted({*automatic, *(n for found in matched.values() for n in found)})


def _refuse_unmatched(unmatched: Sequence[str], names: Sequence[str], model: Any) -> None:
    if unmatched:
        words = {n.rpartition(".")[2] for n in names}
        raise LoadError(
            f"skip_modules names {', '.join(map(repr, unmatched))}, which no module of {type(model).__name__} is called"
            f"{did_you_mean(unmatched[0].rpartition('.')[2], words)}: it takes a module's path or the last parts of one"
        )

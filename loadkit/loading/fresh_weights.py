"""A model of the checkpoint's class and config, whose weights are initialised anew, on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loadkit.audit.weight_comparison import OTHER_VALUES
from loadkit.errors import Finding
from loadkit.schema.plans import Plan

__all__ = ["BUILT_WITH", "drawn_anew", "initialised", "starts_anew"]

BUILT_WITH = ("allow_all_kernels", "attn_implementation", "dtype", "experts_implementation")
"""Keyword arguments of `from_pretrained` that `from_config` takes too."""


def starts_anew(plan: Plan) -> bool:
    """Whether the plan's weights are initialised rather than read."""
    return bool(plan.request.value("random_weights", False))


def drawn_anew(found: Sequence[Finding], *, compared: bool) -> list[Finding]:
    """What the comparison with the files says of weights that mustn't be theirs.

    Parameters:
        found: what it found.
        compared: whether there are files here to compare with.
    """
    if not compared or any(finding.code == OTHER_VALUES for finding in found):
        return []
    if found:
        return list(found)  # nothing could be compared, which is said there
    return [
        Finding(
            "weights",
            "loadkit",
            "from-the-files",
            "random_weights was asked for, and every compared tensor holds what the files have",
            "other values",
            "the values in the files",
        )
    ]


def initialised(plan: Plan, model_class: Any, config: Any, kwargs: dict[str, Any]) -> Any:
    """Build the model from its config, which initialises every weight with torch's random numbers.

    Parameters:
        plan: one that asks for it.
        model_class: the class, or the Auto class that finds it.
        config: the checkpoint's, with what the request sets in it.
        kwargs: what `from_pretrained` would get.

    Returns:
        The model in evaluation mode, where the plan places it, as `from_pretrained` would give it.
    """
    import transformers

    given = {name: kwargs[name] for name in BUILT_WITH if name in kwargs}
    if issubclass(model_class, transformers.PreTrainedModel):
        model = model_class._from_config(config, **given)
    else:
        model = model_class.from_config(config, trust_remote_code=kwargs["trust_remote_code"], **given)
    device_map = plan.placement.device_map
    if isinstance(device_map, dict):
        model.to(next(iter(device_map.values())))
        model.hf_device_map = dict(device_map)
    if kwargs.get("use_kernels"):
        model.set_use_kernels(True)
    return model.eval()

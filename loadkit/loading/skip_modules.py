"""Which modules a quantizer leaves alone: the automatic ones and the user's, as full paths.

transformers takes a list of the user's *instead of* the automatic one, so that naming "q_proj" quantizes the output head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loadkit.errors import LoadError
from loadkit.text.suggest import did_you_mean

__all__ = ["modules_to_skip"]


def modules_to_skip(
    auto_class: Any, config: Any, entries: Sequence[str], remote_code: bool, *, asked: Sequence[str] = ()
) -> list[str]:
    """Full paths of the automatic exclusions and of every module that an entry names.

    Parameters:
        auto_class: the class whose `from_config` builds the model; no memory is taken for its weights.
        config: the model's config.
        entries: module paths, or the last parts of them ("q_proj", "mlp.down_proj").
        remote_code: whether the checkpoint's own code may run.
        asked: those of the entries that the user asked for.

    Raises:
        LoadError: an entry that was asked for names no module.
    """
    import copy

    import torch
    from transformers.quantizers.base import get_keys_to_not_convert

    with torch.device("meta"):
        if hasattr(auto_class, "from_config"):
            model = auto_class.from_config(copy.deepcopy(config), trust_remote_code=remote_code)
        else:
            model = auto_class(copy.deepcopy(config))
    names = [name for name, _ in model.named_modules() if name]
    matched = {entry: [n for n in names if n == entry or n.endswith(f".{entry}")] for entry in entries}
    unmatched = [entry for entry, found in matched.items() if not found and entry in asked]
    if unmatched:
        words = {n.rpartition(".")[2] for n in names}
        raise LoadError(
            f"skip_modules names {', '.join(map(repr, unmatched))}, which no module of {type(model).__name__} is called"
            f"{did_you_mean(unmatched[0].rpartition('.')[2], words)}: it takes a module's path or the last parts of one"
        )
    automatic = {key.removesuffix(".bias") for key in get_keys_to_not_convert(model)}
    return sorted({*automatic, *(n for found in matched.values() for n in found)})

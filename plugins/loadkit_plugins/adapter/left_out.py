"""Parts of a model that a new adapter leaves alone, in the words that its type's config has for it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from loadkit_plugins.adapter.targets import is_linear, linear_names

__all__ = ["leave_out"]


def leave_out(
    model: Any, peft_type: str, options: dict[str, Any], fields: Collection[str], beside: Sequence[str]
) -> None:
    """Write into an adapter's options that it leaves submodels out.

    Types whose config has no `exclude_modules` (SHiRA, VeRA, RoAd, C3A and others of PEFT 0.21) get the whole
    paths of what is left as targets.

    Parameters:
        model: the bare model.
        peft_type: the adapter's type.
        options: fields of the config, to be changed.
        fields: the names of the fields that the type's config has.
        beside: paths of the submodels.
    """
    if "exclude_modules" in fields:
        ends = options.get("exclude_modules") or ()
        within = rf"({'|'.join(map(re.escape, beside))})(\..*)?"
        more = [f"({ends})"] if isinstance(ends, str) else [rf"(^|.*\.){re.escape(end)}" for end in ends]
        options["exclude_modules"] = "|".join([within, *more])
        return
    given = options.get("target_modules") or _own_targets(model, peft_type)
    if "target_modules" not in fields or not given:
        return
    layers = [
        path
        for path, _ in model.named_modules()
        if path and not any(path == each or path.startswith(f"{each}.") for each in beside)
    ]
    options["target_modules"] = _named(model, layers, given, beside)


def _own_targets(model: Any, peft_type: str) -> Any:
    """What PEFT targets of a model's type where a config names nothing; None where it has no such table."""
    from peft.utils import constants

    own = getattr(constants, f"TRANSFORMERS_MODELS_TO_{peft_type}_TARGET_MODULES_MAPPING", {})
    return own.get(model.config.model_type)


def _named(model: Any, paths: Sequence[str], given: Any, beside: Sequence[str]) -> list[str]:
    """The paths that targets mean."""
    if given == "all-linear":
        ends = linear_names(model, beside)
        return [path for path in _ending(paths, ends) if is_linear(model.get_submodule(path))]
    if isinstance(given, str):
        return [path for path in paths if re.fullmatch(given, path)]
    return _ending(paths, given)


def _ending(paths: Sequence[str], ends: Sequence[str]) -> list[str]:
    return [path for path in paths if any(path == end or path.endswith(f".{end}") for end in ends)]

"""from-pretrained: the keyword arguments that no stage owns: where to cache, and the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loadkit import Claim, Context, hookimpl

PASSED_ON = ("cache_dir", "local_files_only")


@hookimpl
def loadkit_contribute_kwargs(context: Context) -> Mapping[str, list[Claim[Any]]]:
    asked = [a for name in PASSED_ON if (a := context.request.asked(name))]
    kwargs = {a.name: [Claim(value=a.value, because=a.because, strength=a.strength)] for a in asked}
    if given := context.request.asked("model_kwargs"):
        for name, value in given.value.items():
            claim = Claim(value=value, because=f"{given.because} in model_kwargs", strength=given.strength)
            kwargs.setdefault(name, []).append(claim)
    return kwargs

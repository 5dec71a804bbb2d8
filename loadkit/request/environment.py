"""What the environment asks: the variables that change a load, who takes each, and misspelt ones of ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from loadkit.errors import Problem
from loadkit.schema.ledger import Requested
from loadkit.text.suggest import nearest_name

__all__ = ["BY", "CACHES", "OWN", "VARIABLES", "Variable", "is_secret", "misspelt", "variables_set"]

BY = "environment"
"""Who asked, in the ledger."""

SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL")
"""Parts of the names of variables whose values nobody should paste."""

LOGIN = re.compile(r"//[^/@\s]+@")
"""The user, with or without a password, in an address."""

FALSE = ("", "0", "false", "no", "off")


class Variable(NamedTuple):
    """A variable: who takes it, and which of its values change something.

    Parameters:
        taker: the room of loadkit's, or the library that it is left to.
        counts: whether a value changes something.
        hub: whether it matters only where something comes from the Hub.
    """

    taker: str
    counts: Callable[[str], bool] = lambda value: bool(value.strip())
    hub: bool = False

    @property
    def own(self) -> bool:
        """Whether loadkit reads it itself."""
        return self.taker not in ("huggingface_hub", "transformers")


def _on(value: str) -> bool:
    return value.strip().lower() not in FALSE


def _off(value: str) -> bool:
    return value.strip().lower() in FALSE[1:]


OWN: Mapping[str, Variable] = {
    "LOADKIT_CACHE": Variable("cache"),
    "LOADKIT_CACHE_MAX": Variable("cache"),
    "LOADKIT_DISABLE": Variable("plugins"),
    "LOADKIT_PLUGINS": Variable("plugins"),
    "LOADKIT_QUANTIZED_CACHE": Variable("shortcuts", _off),
    "LOADKIT_RANKS_SILENCE": Variable("ranks"),
    "LOADKIT_RANKS_TIMEOUT": Variable("ranks"),
    "LOADKIT_VERIFY": Variable("weights"),
    "LOADKIT_STRICT": Variable("plugins", lambda value: value not in ("", "0")),
}
"""Variables of loadkit's own."""

CACHES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
"""Where the Hub's files are kept, the strongest first (huggingface_hub 1.x: `constants.py`)."""

VARIABLES: Mapping[str, Variable] = {
    **OWN,
    "CUDA_VISIBLE_DEVICES": Variable("machine", lambda value: True),
    **dict.fromkeys(CACHES, Variable("huggingface_hub", hub=True)),
    "HF_ENDPOINT": Variable("huggingface_hub", hub=True),
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": Variable("huggingface_hub", _on, hub=True),
    "HF_HUB_DISABLE_XET": Variable("huggingface_hub", _on, hub=True),
    "HF_HUB_DOWNLOAD_TIMEOUT": Variable("huggingface_hub", hub=True),
    "HF_HUB_ETAG_TIMEOUT": Variable("huggingface_hub", hub=True),
    "HF_HUB_OFFLINE": Variable("huggingface_hub", _on, hub=True),
    "HF_TOKEN": Variable("huggingface_hub", hub=True),
    "HF_TOKEN_PATH": Variable("huggingface_hub", hub=True),
    "HUGGING_FACE_HUB_TOKEN": Variable("huggingface_hub", hub=True),
    "HF_DEACTIVATE_ASYNC_LOAD": Variable("transformers", _on),
    "HF_MODULES_CACHE": Variable("transformers", hub=True),
    "TRANSFORMERS_DISABLE_DEEPGEMM_LINEAR": Variable("transformers", _on),
    "TRANSFORMERS_SDPA_FORCE_GQA": Variable("transformers"),
    "USE_HUB_KERNELS": Variable("transformers"),
    "TRANSFORMERS_OFFLINE": Variable("huggingface_hub", _on, hub=True),
}
"""Every variable that changes a load, but for what launchers set, which the topology names."""


def variables_set(
    env: Mapping[str, str],
    *,
    hub: bool,
    accelerators: bool,
    launch: Mapping[str, str],
    cache_dir_by: str = "",
) -> tuple[Requested, ...]:
    """The variables that are set and change something, each with what became of it.

    Parameters:
        env: the environment.
        hub: whether something of the load comes from the Hub.
        accelerators: whether the machine has any.
        launch: variables of launchers that were read, to the room that they were read for.
        cache_dir_by: who gave the option `cache_dir`, which goes over the environment; "" for nobody.
    """
    found = [*_known(env, hub=hub, accelerators=accelerators, cache_dir_by=cache_dir_by)]
    found += [
        Requested(name=name, value=env[name], by=BY, disposition="decided", where=launch[name])
        for name in sorted(launch.keys() & env.keys())
    ]
    found += [
        Requested(
            name=name,
            value=None,
            by=BY,
            disposition="no counterpart",
            because="loadkit reads no such variable",
        )
        for name in _strangers(env)
    ]
    return tuple(found)


def misspelt(env: Mapping[str, str]) -> list[Problem]:
    """A warning for each variable that looks like one of loadkit's and isn't: environments are shared."""
    return [
        Problem(
            BY,
            "loadkit",
            "unknown-variable",
            f"the environment has {name}, which nothing reads (did you mean {near!r}?)",
            f"call it {near}, or unset it; loadkit reads {', '.join(OWN)}",
            severity="warning",
        )
        for name in _strangers(env)
        if (near := _near(name))
    ]


def is_secret(name: str) -> bool:
    """Whether a variable's value is nobody's business, by its name."""
    return any(word in name.upper() for word in SECRET)


def _known(
    env: Mapping[str, str], *, hub: bool, accelerators: bool, cache_dir_by: str
) -> Iterator[Requested]:
    caches = [name for name in CACHES if env.get(name, "").strip()]
    for name, variable in VARIABLES.items():
        value = env.get(name)
        if value is None or not variable.counts(value) or (variable.hub and not hub):
            continue
        if name == "CUDA_VISIBLE_DEVICES" and not accelerators and value not in ("", "-1"):
            continue
        shown = None if is_secret(name) else LOGIN.sub("//", value)
        about = partial(Requested, name=name, value=shown, by=BY)
        if name in CACHES and cache_dir_by:
            yield about(disposition="overruled", because=f"{cache_dir_by} gave cache_dir")
        elif name in caches[1:]:
            yield about(disposition="overruled", because=f"{caches[0]} is set too")
        elif variable.own:
            yield about(disposition="decided", where=variable.taker)
        else:
            yield about(disposition="passed on", where=variable.taker)


def _strangers(env: Mapping[str, str]) -> list[str]:
    """Variables that are meant for loadkit, by how they begin or by being nearly one of its own."""
    return sorted(name for name in env if name not in VARIABLES and (_ours(name) or _nearly(name)))


def _ours(name: str) -> bool:
    return name.upper().replace("_", "").startswith("LOADKIT")


def _nearly(name: str) -> bool:
    return "KIT" in name.upper() and bool(nearest_name(name, OWN, cutoff=0.88))


def _near(name: str) -> str:
    """The variable of loadkit's that a stranger's own part is near; "" for none."""
    own = {known.removeprefix("LOADKIT_"): known for known in OWN}
    rest = re.sub(r"(?i)^load_?kit_?", "", name).upper()
    found = nearest_name(rest, own) or ""
    return own.get(found, "") or nearest_name(name.upper(), OWN, cutoff=0.88) or ""

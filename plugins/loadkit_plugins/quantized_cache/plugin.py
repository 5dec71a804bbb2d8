"""quantized-cache: keep what is quantized while loading, bit for bit, for the next load of the same base."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from loadkit import Machine, Option, Plan, hookimpl
from loadkit.plugins import Entries, LoadingAid, Shortcut, size, span

NAME = "quantized-cache"

FORMAT = 1
"""Raised when what an entry holds changes its meaning: older entries are then left to be pruned."""

METHODS: Mapping[str, tuple[str, ...]] = {"bitsandbytes": ("bitsandbytes",)}
"""Methods whose stored tensors were proved equal to those made while loading, and their packages."""

VERSIONS = ("torch", "transformers", "safetensors")
"""Packages that make the bytes, whatever the method."""

INDIFFERENT = (
    "attn_implementation", "cache_dir", "device_map", "dtype", "local_files_only", "max_memory",
    "quantization_config", "revision", "use_safetensors",
)  # fmt: skip
"""Keyword arguments that the key has in another form, or that change no bit of the weights."""


class Key(NamedTuple):
    """The name of an entry; or why there is none.

    Parameters:
        name: hexadecimal; "" where the load isn't cached.
        device: torch's type of the device that quantizes.
        reason: why the load isn't cached; "" where there is nothing to cache.
    """

    name: str = ""
    device: str = ""
    reason: str = ""


@hookimpl
def loadkit_options() -> Sequence[Option]:
    return [
        Option(
            name="quantized_cache",
            type="bool",
            stage="quantization",
            help="keep what is quantized while loading for the next load (the default), or quantize anew each time",
        )
    ]


@hookimpl
def loadkit_shortcuts(plan: Plan, identity: str, machine: Machine, entries: Entries) -> Sequence[Shortcut]:
    key = key_of(plan, identity, machine, entries)
    if key.reason:
        return [Shortcut(plugin=NAME, line=f"not cached: {key.reason}", serves=False)]
    if not key.name:
        return []
    if entry := entries.find(key.name):
        line = f"quantized already, {span(entry.age)} ago: {size(entry.bytes)} in the cache ({key.name[:12]})"
        return [Shortcut(plugin=NAME, line=line)]
    if refused := entries.refused(key.name):
        return [Shortcut(plugin=NAME, line=f"not cached: {refused}", serves=False)]
    line = f"quantizes, and keeps it for the next load ({key.name[:12]})"
    return [Shortcut(plugin=NAME, line=line, serves=False)]


@hookimpl
def loadkit_shorten_loading(
    plan: Plan, identity: str, machine: Machine, entries: Entries, progress: Callable[[str], None]
) -> LoadingAid | None:
    key = key_of(plan, identity, machine, entries)
    if not key.name:
        return None
    from loadkit_plugins.quantized_cache.entry import Cached

    about = {
        "source": plan.checkpoint.source,
        "commit": plan.checkpoint.commit,
        "method": plan.quantization.method if plan.quantization else "",
        "dtype": plan.dtype,
        **_versions(plan, machine),
    }
    memory = plan.memory
    expected = sum(memory.weights.values()) + memory.quantized + memory.constants if memory else 0
    return Cached(key.name, key.device, entries, about, expected, progress)


def key_of(plan: Plan, identity: str, machine: Machine, entries: Entries) -> Key:
    """The name under which exactly this quantized base is kept."""
    asked, quantization = plan.request.asked("quantized_cache"), plan.quantization
    if quantization is None or quantization.prequantized:
        return Key()  # nothing to keep, whatever was asked
    if asked is not None and asked.value is False:
        return Key(reason=f"{asked.by} said quantized_cache=False")
    device = _device(plan, machine)
    remote = plan.model_class.implementation == "remote code"
    impossible = {
        entries.off: bool(entries.off),
        f"stored {quantization.method} weights weren't proved equal": quantization.method not in METHODS,
        "its files can't be told from others": not identity,
        "code of its own is only cached at a commit of the Hub": remote and plan.checkpoint.kind != "hub",
        "it is spread over devices of several kinds": not device,
    }
    for reason, holds in impossible.items():
        if holds:
            return Key(reason=reason)
    grounds = {
        "format": FORMAT,
        "identity": identity,
        "class": msgspec.to_builtins(plan.model_class),
        "dtype": plan.dtype,
        "quantization": msgspec.to_builtins(quantization),
        "kwargs": {k: repr(v) for k, v in plan.kwargs.items() if k not in INDIFFERENT},
        "device": device,
        "processor": entries.processor,
        "versions": _versions(plan, machine),
    }
    text = msgspec.json.encode(grounds, order="sorted")
    return Key(hashlib.blake2b(text, digest_size=16).hexdigest(), device)


def _versions(plan: Plan, machine: Machine) -> dict[str, str]:
    method = plan.quantization.method if plan.quantization else ""
    return {name: machine.packages.get(name, "") for name in (*VERSIONS, *METHODS.get(method, ()))}


def _device(plan: Plan, machine: Machine) -> str:
    """torch's type of the device that the weights are quantized on; "" for several."""
    device_map: Any = plan.placement.device_map
    if device_map is None or plan.placement.spreads:
        return machine.kind
    places = {device_map} if isinstance(device_map, str) else set(device_map.values())
    kinds = {machine.kind if isinstance(place, int) else place.partition(":")[0] for place in places}
    return str(kinds.pop()) if len(kinds) == 1 and not kinds & {"disk", "meta"} else ""

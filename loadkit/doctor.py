"""What is here, for a person to read and for a bug report: machine, versions, plugins, caches, what profiles would do."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from loadkit.errors import LoadkitError
from loadkit.facts.cache_folder import cache_folder
from loadkit.facts.machine import Machine, read_machine
from loadkit.facts.topology import Topology, read_topology
from loadkit.manager import PluginInfo, PluginManager

__all__ = ["Cache", "Examination", "KNOWN_TROUBLE", "Outlook", "examine"]

LIBRARIES: Mapping[str, str] = {
    "torch": "2.13",
    "transformers": "5.20",
    "bitsandbytes": "0.50",
    "peft": "0.21",
    "accelerate": "1.15",
    "huggingface-hub": "2.4",
    "safetensors": "0.8",
    "tokenizers": "",
    "trl": "",
}
"""Distribution to the lowest version that loadkit was tested with; "" for none."""

KNOWN_TROUBLE: Mapping[str, Callable[[Machine], bool]] = {
    "the package kernels is installed: bitsandbytes 0.50 then asks the Hub for a kernel of its own on CPUs; HF_HUB_OFFLINE=1 keeps it "
    "from that": lambda machine: machine.kind == "cpu" and machine.version("kernels") is not None,
    "transformers of version 4 is installed: loadkit reads the layout of version 5": lambda machine: (
        (machine.version("transformers") or (5,)) < (5,)
    ),
    "torch is built for the CPU, and there are NVIDIA GPUs": lambda machine: any(
        "built for the CPU only" in n for n in machine.notes
    ),
}
"""What is known to go wrong, to when it does."""

SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")
"""Parts of the names of environment variables whose values nobody should paste."""


class Cache(msgspec.Struct, frozen=True, kw_only=True):
    """A cache: what it is for, where it is, and the bytes that it holds."""

    name: str
    path: str
    size: int


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    """What a profile would do with a plain Mistral here: the values of its decisions, or why it can't."""

    profile: str
    decisions: dict[str, str] = {}
    refused: str = ""


class Examination(msgspec.Struct, frozen=True, kw_only=True):
    """All that was found.

    Parameters:
        loadkit: its version.
        python: Python's version, and the system.
        machine: the machine, in a line, with the notes on it.
        topology: the launch; empty for a single process.
        libraries: distribution to version; "" where it isn't installed.
        old: those older than what loadkit was tested with, a line each.
        trouble: known trouble that applies here.
        environment: variables of loadkit and the Hub that are set; secret ones without their values.
        plugins: every plugin.
        caches: the caches.
        profiles: what each profile would do.
    """

    loadkit: str
    python: str
    machine: tuple[str, ...]
    topology: str
    libraries: dict[str, str]
    old: tuple[str, ...]
    trouble: tuple[str, ...]
    environment: dict[str, str]
    plugins: tuple[PluginInfo, ...]
    caches: tuple[Cache, ...]
    profiles: tuple[Outlook, ...]


def examine(
    manager: PluginManager, *, machine: Machine | None = None, environ: Mapping[str, str] | None = None
) -> Examination:
    """Look at everything. Nothing is loaded, and nothing heavy is imported.

    Parameters:
        manager: the plugins.
        machine: the machine; this one by default.
        environ: the environment; the process's own by default.
    """
    from importlib.metadata import version

    env = os.environ if environ is None else environ
    here = machine or read_machine(env)
    topology = read_topology(env)
    found = {name: here.packages.get(name, "") for name in LIBRARIES}
    return Examination(
        loadkit=version("loadkit"),
        python=f"{platform.python_version()} on {platform.platform()}",
        machine=(here.describe(), *here.notes),
        topology=_launch(topology),
        libraries=found,
        old=tuple(_old(here)),
        trouble=tuple(line for line, applies in KNOWN_TROUBLE.items() if applies(here)),
        environment=_environment(env),
        plugins=manager.plugins,
        caches=tuple(_caches(env)),
        profiles=tuple(_outlook(name, manager, here, topology) for name in sorted(manager.profiles.found)),
    )


def _launch(topology: Topology) -> str:
    if topology.problems:
        return "; ".join(f"{p.message} (fix: {p.remedy})" for p in topology.problems)
    said = topology.describe()
    return f"rank {topology.rank} of {said}" if said else ""


def _old(machine: Machine) -> list[str]:
    lines = []
    for name, floor in LIBRARIES.items():
        has = machine.version(name)
        if floor and has is not None and has < tuple(int(part) for part in floor.split(".")):
            lines.append(
                f"{name} {machine.packages[name]} is older than {floor}, the lowest that loadkit was tested with"
            )
    return lines


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    named = sorted(
        name for name in env if name.startswith(("LOADKIT_", "HF_", "TRANSFORMERS_", "CUDA_VISIBLE"))
    )
    return {name: "(set)" if any(s in name for s in SECRET) else _without_login(env[name]) for name in named}


def _without_login(value: str) -> str:
    """An address without the user and password that it may carry."""
    scheme, separator, rest = value.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if separator else value


def _caches(env: Mapping[str, str]) -> list[Cache]:
    from huggingface_hub import constants

    places = {
        "loadkit's index": cache_folder(env),
        "the Hub's files": Path(constants.HF_HUB_CACHE),
    }
    return [Cache(name=name, path=str(path), size=_size(path)) for name, path in places.items()]


def _size(folder: Path) -> int:
    """Bytes of a folder's files; links, which the Hub's cache has many of, count as nothing."""
    total = 0
    for path, _, files in os.walk(folder):
        for file in files:
            try:
                found = os.lstat(os.path.join(path, file))
            except OSError:  # it went away meanwhile
                continue
            total += 0 if os.path.islink(os.path.join(path, file)) else found.st_size
    return total


def _outlook(profile: str, manager: PluginManager, machine: Machine, topology: Topology) -> Outlook:
    from loadkit.render import value_text
    from loadkit.testing.scenarios import PLAIN, context_of, plan_of

    scenario = msgspec.structs.replace(PLAIN, profile=profile)
    try:
        context = msgspec.structs.replace(context_of(scenario, manager), machine=machine, topology=topology)
        plan = plan_of(scenario, manager, context)
    except LoadkitError as error:
        return Outlook(profile=profile, refused=" ".join(str(error).split()))
    shown = ("dtype", "attention", "quantization", "device_map", "preparation")
    decisions: dict[str, Any] = {d.stage: d.value for d in plan.decisions if d.stage in shown}
    return Outlook(
        profile=profile, decisions={stage: value_text(value) for stage, value in decisions.items()}
    )

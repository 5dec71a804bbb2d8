"""What is here, for a person to read and for a bug report: machine, versions, plugins, caches, what profiles would do."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from loadkit.cache.cache_folder import cache_folder
from loadkit.cli.known_issues import Trouble, known_trouble
from loadkit.errors import LoadkitError
from loadkit.facts.machine.machine import Machine, read_machine
from loadkit.facts.machine.topology import Topology, read_topology
from loadkit.hooks.manager import PluginInfo, PluginManager

__all__ = ["Cache", "Examination", "Outlook", "examine"]

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

SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL")
"""Parts of the names of environment variables whose values nobody should paste."""

SHORTEST = 6
"""Characters of a value from which on it can be told from ordinary text."""

TOKEN = re.compile(r"\b(hf|api|sk|ghp|github_pat)_[A-Za-z0-9_]{8,}")
LOGIN = re.compile(r"//[^/@\s]+@")
"""The user, with or without a password, in an address."""


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
        trouble: combinations known to go wrong that are found here, with remedies.
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
    trouble: tuple[Trouble, ...]
    environment: dict[str, str]
    plugins: tuple[PluginInfo, ...]
    caches: tuple[Cache, ...]
    profiles: tuple[Outlook, ...]


def examine(
    manager: PluginManager, *, machine: Machine | None = None, environ: Mapping[str, str] | None = None
) -> Examination:
    """Look at everything. Nothing is loaded, nothing heavy is imported, and nothing of it is secret.

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
    examined = Examination(
        loadkit=version("loadkit"),
        python=f"{platform.python_version()} on {platform.platform()}",
        machine=(here.describe(), *here.notes),
        topology=_launch(topology),
        libraries=found,
        old=tuple(_old(here)),
        trouble=tuple(known_trouble(here, env)),
        environment=_environment(env),
        plugins=manager.plugins,
        caches=tuple(_caches(env)),
        profiles=tuple(_outlook(name, manager, here, topology) for name in sorted(manager.profiles.found)),
    )
    return msgspec.convert(_shareable(msgspec.to_builtins(examined), _secrets(env)), Examination)


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
    return {name: "(set)" if _is_secret(name) else env[name] for name in named}


def _is_secret(name: str) -> bool:
    return any(word in name.upper() for word in SECRET)


def _secrets(env: Mapping[str, str]) -> dict[str, str]:
    """What must not be in a bug report, wherever it turns up, to what is put there instead."""
    values = {value: "(secret)" for name, value in env.items() if _is_secret(name) and len(value) >= SHORTEST}
    home = os.path.expanduser("~")
    return values | ({home: "~"} if len(home) > 1 else {})


def _shareable(found: Any, secrets: Mapping[str, str]) -> Any:
    """The same without secrets, tokens, logins in addresses, and with the home folder's name shortened."""
    if isinstance(found, dict):
        return {_shareable(key, secrets): _shareable(value, secrets) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [_shareable(item, secrets) for item in found]
    if not isinstance(found, str):
        return found
    for secret in sorted(secrets, key=len, reverse=True):
        found = found.replace(secret, secrets[secret])
    return TOKEN.sub("(token)", LOGIN.sub("//", found))


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
    from loadkit.schema.value_text import value_text
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

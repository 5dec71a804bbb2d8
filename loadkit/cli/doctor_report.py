"""What is here, for a bug report: machine, versions, plugins, caches, and what profiles would do."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import stat
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from loadkit.cache.cache_folder import cache_folder
from loadkit.cli.known_issues import Here, KnownIssue, known_issues
from loadkit.errors import LoadkitError
from loadkit.facts.machine.machine import Machine, read_machine
from loadkit.facts.machine.topology import Topology, read_topology
from loadkit.hooks.manager import PluginInfo, PluginManager
from loadkit.request.environment import is_secret

__all__ = ["Cache", "Examination", "Outlook", "examine"]

LIBRARIES = (
    "torch",
    "transformers",
    "bitsandbytes",
    "peft",
    "accelerate",
    "huggingface-hub",
    "safetensors",
    "tokenizers",
    "trl",
)
"""The distributions whose versions are shown, in this order."""

FLOOR = re.compile(r"([\w.-]+)>=([\d.]+)[^;]*")
"""A requirement of loadkit's without a marker: the distribution, and the lowest version that was tested."""

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
    """All that was found, without secrets.

    Parameters:
        python: Python's version, and the system.
        machine: the machine, in a line, with the notes on it.
        topology: the launch; empty for a single process.
        libraries: distribution to version; "" where it isn't installed.
        old: those older than what loadkit was tested with, a line each.
        issues: combinations known to go wrong that are found here, with remedies.
        environment: variables of loadkit and the Hub that are set; secret ones without their values.
    """

    loadkit: str
    python: str
    machine: tuple[str, ...]
    topology: str
    libraries: dict[str, str]
    old: tuple[str, ...]
    issues: tuple[KnownIssue, ...] = msgspec.field(name="trouble")
    environment: dict[str, str]
    plugins: tuple[PluginInfo, ...]
    caches: tuple[Cache, ...]
    profiles: tuple[Outlook, ...]


def examine(
    manager: PluginManager, *, machine: Machine | None = None, environ: Mapping[str, str] | None = None
) -> Examination:
    """Look at everything here. Nothing is loaded, nothing heavy is imported, and nothing of it is secret."""
    env = os.environ if environ is None else environ
    machine = machine or read_machine(env)
    here = Here(machine, env)
    topology = read_topology(env)
    examined = Examination(
        loadkit=metadata.version("loadkit"),
        python=f"{platform.python_version()} on {platform.platform()}",
        machine=(machine.describe(), *machine.notes),
        topology=_launch(topology),
        libraries={name: machine.packages.get(name, "") for name in LIBRARIES},
        old=tuple(_old(here)),
        issues=tuple(known_issues(here)),
        environment=_environment(env),
        plugins=manager.plugins,
        caches=tuple(_caches(env)),
        profiles=tuple(_outlook(name, manager, machine, topology) for name in sorted(manager.profiles.found)),
    )
    return msgspec.convert(_shareable(msgspec.to_builtins(examined), _secrets(env)), Examination)


def _launch(topology: Topology) -> str:
    if topology.problems:
        return "; ".join(f"{p.message} (fix: {p.remedy})" for p in topology.problems)
    said = topology.describe()
    return f"rank {topology.rank} of {said}" if said else ""


def _old(here: Here) -> Iterator[str]:
    requirements = map(FLOOR.fullmatch, metadata.requires("loadkit") or ())
    floors = {found[1]: found[2] for found in requirements if found}
    for name in LIBRARIES:
        if name in floors and here.has(name, before=floors[name]):
            has = here.machine.packages[name]
            yield f"{name} {has} is older than {floors[name]}, the lowest that loadkit was tested with"


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    shown = ("LOADKIT_", "HF_", "TRANSFORMERS_", "CUDA_VISIBLE")
    return {n: "(set)" if is_secret(n) else env[n] for n in sorted(env) if n.startswith(shown)}


def _secrets(env: Mapping[str, str]) -> dict[str, str]:
    """What must not be in a bug report, wherever it turns up, to what is put there instead."""
    values = {value: "(secret)" for name, value in env.items() if is_secret(name) and len(value) >= SHORTEST}
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

    places = {"loadkit's index": cache_folder(env), "the Hub's files": Path(constants.HF_HUB_CACHE)}
    return [Cache(name=name, path=str(path), size=_size(path)) for name, path in places.items()]


def _size(folder: Path) -> int:
    """Bytes of a folder's files; links, which the Hub's cache has many of, count as nothing."""
    total = 0
    for path, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):  # it went away meanwhile
                found = os.lstat(os.path.join(path, file))
                total += 0 if stat.S_ISLNK(found.st_mode) else found.st_size
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
    decisions = {d.stage: value_text(d.value) for d in plan.decisions if d.stage in shown}
    return Outlook(profile=profile, decisions=decisions)

"""What must be the same on all ranks: the plan, the versions, and what the files begin with."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from loadkit.facts.checkpoint.fingerprint import sample
from loadkit.facts.machine.topology import Topology
from loadkit.manifest.manifest import files_of, library_versions, lines
from loadkit.schema.plans import Plan

__all__ = ["difference", "digest_of", "passport"]

PIECES = 64
"""How many pieces of each file are looked at: it is done once a launch, not at every plan."""

LOCAL, HERE = "the rank's own device", "the rank's own folder"

OF_THE_MACHINE = ("because ", "machine")
"""Lines that say how a machine is, rather than what is loaded."""


def passport(plan: Plan, topology: Topology) -> dict[str, str]:
    """Everything that must be the same, a line each: what it is, to how it is.

    A rank's own device and own folders count as the same: what the folders hold is compared instead.

    Parameters:
        plan: this rank's plan.
        topology: where this rank is.
    """
    found = lines(_without_place(plan, topology))
    kept = {what: how for what, how in found.items() if not what.startswith(OF_THE_MACHINE)}
    for folder in _folders(plan):
        kept = {what: how.replace(folder, HERE) for what, how in kept.items()}
    kept |= {f"library {name}": version for name, version in library_versions(plan).items()}
    kept["python"] = platform.python_version()
    return kept | _files(plan)


def digest_of(lines: Mapping[str, str]) -> str:
    """SHA-256 of a passport, in hexadecimal."""
    return hashlib.sha256(msgspec.json.encode(lines, order="sorted")).hexdigest()


def difference(passports: Sequence[Mapping[str, str]]) -> tuple[list[int], str]:
    """Which ranks would load something else than most, and what, in words.

    Parameters:
        passports: everybody's, by rank.
    """
    told, ranks = [], set()
    for what in sorted({what for one in passports for what in one}):
        values: dict[str, list[int]] = {}
        for rank, one in enumerate(passports):
            values.setdefault(one.get(what, "nothing"), []).append(rank)
        if len(values) == 1:
            continue
        sides = sorted(values.items(), key=lambda item: (-len(item[1]), item[1]))
        ranks |= {rank for _, some in sides[1:] for rank in some}
        told.append(f"  - {what}: " + "; ".join(f"{_named(some)}: {value}" for value, some in sides))
    head = f"the ranks of this launch wouldn't load the same: {len(told)} difference{'s' if len(told) != 1 else ''}"
    fix = "    fix: give every rank the same request, and every node the same packages and files"
    return sorted(ranks), "\n".join([head, *told, fix])


def _named(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _without_place(plan: Plan, topology: Topology) -> Plan:
    """The plan with the rank's own device under one name."""
    decisions = []
    for decision in plan.decisions:
        if decision.stage == "device_map" and decision.value.device_map == {"": topology.local_rank}:
            value = msgspec.structs.replace(decision.value, device_map={"": LOCAL})
            decision = msgspec.structs.replace(decision, value=value)
        decisions.append(decision)
    return msgspec.structs.replace(plan, decisions=tuple(decisions))


def _folders(plan: Plan) -> list[str]:
    """The folders that the plan reads, as it spells them; longest first, since one may lie in another."""
    checkpoint, processing = plan.checkpoint, plan.processing
    named = {"" if checkpoint.commit else checkpoint.location, "" if checkpoint.commit else checkpoint.source}
    named |= {"" if processing.revision or processing.kind == "none" else processing.source}
    if plan.adapters is not None:
        named |= {a.source for a in plan.adapters.members if not a.revision}
    return sorted((name for name in named if name and os.path.isdir(name)), key=len, reverse=True)


def _files(plan: Plan) -> dict[str, str]:
    """Fingerprints of the files in folders. A repository's commit says the same of its files."""
    commits = {"checkpoint": plan.checkpoint.commit, "tokenizer": plan.processing.revision}
    if plan.adapters is not None:
        commits |= {f"adapter {a.name}": a.revision for a in plan.adapters.members}
    return {
        f"file {name}": _fingerprint(path)
        for name, path in files_of(plan).items()
        if not commits.get(name.rpartition("/")[0])
    }


def _fingerprint(path: Path) -> str:
    """A file's size, and a digest of its header and of pieces of it. Not its times: each node may have its own copy."""
    looked_at = sample(path, PIECES)
    return f"{looked_at.stat.st_size} bytes, {looked_at.digest.hex()[:16]}"

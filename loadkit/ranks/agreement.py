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
from loadkit.ranks.rank_names import named
from loadkit.schema.plans import Plan

__all__ = ["difference", "digest_of", "to_agree_on"]

PIECES = 64
"""Pieces of each file that are looked at: more than a plan looks at, since it is once a launch."""

LOCAL, HERE = "the rank's own device", "the rank's own folder"

OF_THE_MACHINE = ("because ", "machine")
"""Lines that say how a machine is, rather than what is loaded."""


def to_agree_on(plan: Plan, topology: Topology) -> dict[str, str]:
    """Everything that must be the same, a line each: what it is, to how it is.

    A rank's own device and own folders count as the same: what the folders hold is compared instead.
    """
    found = lines(_without_place(plan, topology))
    kept = {what: how for what, how in found.items() if not what.startswith(OF_THE_MACHINE)}
    for folder in _folders(plan):
        kept = {what: how.replace(folder, HERE) for what, how in kept.items()}
    kept |= {f"library {name}": version for name, version in library_versions(plan).items()}
    kept["python"] = platform.python_version()
    return kept | _files(plan)


def digest_of(lines: Mapping[str, str]) -> str:
    """SHA-256 of what must be the same, in hexadecimal."""
    return hashlib.sha256(msgspec.json.encode(lines, order="sorted")).hexdigest()


def difference(by_rank: Sequence[Mapping[str, str]]) -> tuple[list[int], str]:
    """Which ranks would load something else than most, and what, in words."""
    rows, ranks = [], set()
    for what in sorted({what for one in by_rank for what in one}):
        values: dict[str, list[int]] = {}
        for rank, one in enumerate(by_rank):
            values.setdefault(one.get(what, "nothing"), []).append(rank)
        if len(values) == 1:
            continue
        sides = sorted(values.items(), key=lambda item: (-len(item[1]), item[1]))
        ranks |= {rank for _, some in sides[1:] for rank in some}
        rows.append(f"  - {what}: " + "; ".join(f"{named(some)}: {value}" for value, some in sides))
    head = f"the ranks of this launch wouldn't load the same: {len(rows)} difference{'s' if len(rows) != 1 else ''}"
    fix = "    fix: give every rank the same request, and every node the same packages and files"
    return sorted(ranks), "\n".join([head, *rows, fix])


def _without_place(plan: Plan, topology: Topology) -> Plan:
    """The plan with the rank's own device under one name."""
    if plan.placement.device_map != {"": topology.local_rank}:
        return plan
    placement = msgspec.structs.replace(plan.placement, device_map={"": LOCAL})
    decisions = {d.stage: d for d in plan.decisions}
    decisions["device_map"] = msgspec.structs.replace(decisions["device_map"], value=placement)
    return msgspec.structs.replace(plan, decisions=tuple(decisions.values()))


def _folders(plan: Plan) -> list[str]:
    """The folders that the plan reads, as it spells them; longest first, since one may lie in another."""
    checkpoint, processing = plan.checkpoint, plan.processing
    names = set() if checkpoint.commit else {checkpoint.location, checkpoint.source}
    if not processing.revision and processing.kind != "none":
        names.add(processing.source)
    if plan.adapters is not None:
        names |= {a.source for a in plan.adapters.members if not a.revision}
    return sorted((name for name in names if name and os.path.isdir(name)), key=len, reverse=True)


def _files(plan: Plan) -> dict[str, str]:
    """Fingerprints of the files in folders; of a repository's files its commit says the same."""
    commits = {"checkpoint": plan.checkpoint.commit, "tokenizer": plan.processing.revision}
    if plan.adapters is not None:
        commits |= {f"adapter {a.name}": a.revision for a in plan.adapters.members}
    return {
        f"file {name}": _fingerprint(path)
        for name, path in files_of(plan).items()
        if not commits.get(name.rpartition("/")[0])
    }


def _fingerprint(path: Path) -> str:
    """A file's size, and a digest of its header and pieces; not its times, since nodes have copies."""
    looked_at = sample(path, PIECES)
    return f"{looked_at.stat.st_size} bytes, {looked_at.digest.hex()[:16]}"

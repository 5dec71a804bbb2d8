"""What planning read and loading needs again; the plan that it goes with stays plain data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from loadkit.facts.checkpoint.fingerprint import fingerprint
from loadkit.facts.checkpoint.source import OpenStore, no_stores
from loadkit.facts.context import Context
from loadkit.facts.local_weight_files import local_weight_files
from loadkit.facts.machine.machine import Machine, this_machine
from loadkit.facts.machine.topology import Topology, read_topology
from loadkit.schema.plans import Plan

__all__ = ["Listings", "LoadFacts", "fingerprint_of", "listings_of", "read_load_facts"]

Listings = Mapping[tuple[str, str], tuple[str, ...]]
"""A repository's id, or an address, and a commit to the names of its files, as they were listed."""


class LoadFacts(NamedTuple):
    """Facts of one load: of this machine and launch, and of the checkpoint as it is here.

    Parameters:
        fingerprint: tells the checkpoint's weights and configs from any others; "" where they can't be told.
        weight_files: the safetensors files that are on this machine; none of what isn't downloaded yet.
        stores: asks the plugins for what lies elsewhere.
    """

    machine: Machine
    topology: Topology
    fingerprint: str
    weight_files: tuple[Path, ...]
    listings: Listings
    stores: OpenStore = no_stores


def read_load_facts(
    plan: Plan,
    topology: Topology | None = None,
    listings: Listings | None = None,
    stores: OpenStore = no_stores,
) -> LoadFacts:
    """Read what a load of the plan needs on this machine, but for what has been read already."""
    return LoadFacts(
        machine=this_machine(),
        topology=topology or read_topology(),
        fingerprint=fingerprint_of(plan),
        weight_files=tuple(local_weight_files(plan)),
        listings=listings or {},
        stores=stores,
    )


def fingerprint_of(plan: Plan) -> str:
    """What tells the weights and configs of the plan's checkpoint, as they are now, from any others."""
    about = plan.checkpoint
    return fingerprint(about.location, about.commit, about.weight_files)


def listings_of(context: Context) -> Listings:
    """The file names of every repository that a request's facts were read from."""
    checkpoint, processing = context.checkpoint, context.processing
    named = {(checkpoint.location, checkpoint.commit): tuple(file.name for file in checkpoint.files)}
    for beside in (processing, *(adapter.processing for adapter in context.beside.adapters.values())):
        named[beside.location, beside.commit] = beside.files
    return {place: names for place, names in named.items() if place[1]}

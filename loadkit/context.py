"""The facts of one request, bundled for the plugins."""

from __future__ import annotations

import msgspec

from loadkit.facts.checkpoint import Checkpoint
from loadkit.facts.library import Library
from loadkit.facts.machine import Machine
from loadkit.facts.request import Request
from loadkit.facts.topology import Topology
from loadkit.values import Architecture

__all__ = ["Context"]


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a plugin may know. It never probes for itself.

    Parameters:
        request: what was asked, and by whom.
        checkpoint: config, files and headers of the checkpoint.
        machine: accelerators, memory, packages.
        topology: processes and the engine that spreads the model over them.
        library: what the installed transformers offers for this checkpoint.
        architectures: what plugins registered, by model type.
    """

    request: Request
    checkpoint: Checkpoint
    machine: Machine
    topology: Topology
    library: Library
    architectures: dict[str, Architecture] = {}

    @property
    def registered(self) -> Architecture | None:
        """The architecture that a plugin registered for this checkpoint's model type, if any."""
        return self.architectures.get(self.checkpoint.model_type)

"""The accelerator of this process, where an engine places the weights and so no device map names it."""

from __future__ import annotations

from loadkit.facts.machine.topology import Topology
from loadkit.schema.plans import Plan

__all__ = ["take_own_device"]


def take_own_device(plan: Plan, topology: Topology) -> None:
    """Make the accelerator with this process's number on its node the current one; one that was chosen stays.

    transformers 5.23 puts a quantized base without a device map on the current CUDA device (its quantizers'
    `validate_environment` and `update_device_map`): number 0 in every process until somebody says otherwise.
    """
    if not topology.distributed or plan.placement.device_map is not None:
        return
    import torch

    cuda = torch.cuda
    # a count of 1: each process sees its own device only, as number 0
    if not cuda.is_available() or not 0 < topology.local_rank < cuda.device_count():
        return
    if cuda.is_initialized() and cuda.current_device():  # type: ignore[no-untyped-call]
        return
    cuda.set_device(topology.local_rank)

"""The same random numbers on every rank, for what a load draws: new rows, heads, adapters."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["random_state", "with_random_state"]


def random_state() -> dict[str, str]:
    """The states of torch's generators for the CPU and for this process's accelerator, in base64."""
    import torch

    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {kind: base64.b64encode(state.numpy().tobytes()).decode() for kind, state in states.items()}


@contextmanager
def with_random_state(state: dict[str, str]) -> Iterator[None]:
    """Draw from another process's generators (its `random_state`), and go on with one's own afterwards."""
    import torch

    tensors = {
        kind: torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
        for kind, text in state.items()
    }
    devices = [torch.cuda.current_device()] if "cuda" in tensors and torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.set_rng_state(tensors["cpu"])
        if devices:
            torch.cuda.set_rng_state(tensors["cuda"])
        yield

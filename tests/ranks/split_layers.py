"""What each process holds of layers that are split, beside what was planned."""

from __future__ import annotations

import torch.distributed as dist
from ranks.launch import report

import loadkit
from loadkit.facts.load_facts import read_load_facts
from loadkit.hooks.manager import default_manager
from loadkit.loading.from_pretrained import load_model

__all__ = ["hold"]


def hold(out: str, *paths: str) -> None:
    """Load each checkpoint; the bytes held, and the planned bytes of this process and of all."""
    found = {}
    for path in paths:
        plan = loadkit.plan(path, tp_plan="auto")
        model = load_model(plan, read_load_facts(plan), default_manager()).model
        parts = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
        held = sum(p.numel() * p.element_size() for p in parts)
        assert plan.memory.per_rank is not None
        found[path] = (held, plan.memory.per_rank.weights, plan.memory.model)
    report(out, found)
    dist.barrier()  # the first process keeps the store that the other's last group still needs
    dist.destroy_process_group()

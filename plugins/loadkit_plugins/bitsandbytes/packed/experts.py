"""How transformers' modules of experts run over packed stacks: every expert that was hit, one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from loadkit_plugins.bitsandbytes.settings import PACKED_EXPERTS

__all__ = ["experts_forward", "register"]


def experts_forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The experts' forward pass, with the sums of transformers' "grouped_mm".

    Parameters:
        self: a module of experts, as `use_experts_implementation` decorates them; its stacks may be packed.
        hidden_states: a row a token.
        top_k_index: the experts of each token; one that isn't there counts for nothing.
        top_k_weights: their weights.
    """
    tokens, taken = top_k_index.shape
    ids, order = torch.sort(top_k_index.reshape(-1), stable=True)
    counts = torch.bincount(ids.clamp(max=self.num_experts), minlength=self.num_experts + 1).tolist()
    up = "gate_up_proj" if self.has_gate else "up_proj"
    stacks = [
        (getattr(self, n), getattr(self, f"{n}_bias") if self.has_bias else None) for n in (up, "down_proj")
    ]
    rows = order // taken
    outputs, start = [], 0
    for expert, count in enumerate(counts[: self.num_experts]):
        if not count:
            continue
        found = _projected(self, hidden_states[rows[start : start + count]], *stacks[0], expert)
        found = self._apply_gate(found) if self.has_gate else self.act_fn(found)
        outputs.append(_projected(self, found, *stacks[1], expert))
        start += count
    if counts[self.num_experts]:  # expert parallelism's mark for experts of other ranks
        outputs.append(hidden_states.new_zeros(counts[self.num_experts], hidden_states.shape[-1]))
    result = torch.cat(outputs) if outputs else hidden_states.new_zeros(0, hidden_states.shape[-1])
    if getattr(self, "has_post_expert_norm", False):
        result = self.post_expert_norm(result)
    result = result * top_k_weights.reshape(-1)[order].unsqueeze(-1)
    places = torch.empty_like(order)
    places[order] = torch.arange(order.numel(), device=order.device)
    result = result[places].view(tokens, taken, -1).sum(dim=1)
    return result.to(hidden_states.dtype)


def _projected(self: Any, x: torch.Tensor, stack: Any, bias: torch.Tensor | None, expert: int) -> Any:
    found = x @ stack[expert] if self.is_transposed else functional.linear(x, stack[expert])
    return found if bias is None else found + bias[expert]


def register() -> None:
    """Have transformers know the implementation by its name."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(PACKED_EXPERTS, experts_forward)

"""Whether the adapters are as planned: there, active, in their dtype, and nothing else training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from loadkit import Adapter, Adapters, Finding, Plan
from loadkit_plugins.adapter.layers import biases, parameters_of
from loadkit_plugins.adapter.stored_file import file_of

__all__ = ["audit"]

WEIGHTS = "adapter_model.safetensors"

SAMPLED = 16
"""How many tensors of an existing adapter are held against its file."""


def audit(plan: Plan, model: Any) -> Sequence[Finding]:
    """Compare the model's adapters with the plan."""
    planned = plan.adapters if plan.adapters is not None and not plan.adapters.merge else None
    found = sorted(getattr(model, "peft_config", None) or {})
    wanted = sorted(a.name for a in planned.members) if planned else []
    if found != wanted:
        return [_finding("adapter", ", ".join(wanted) or "none", ", ".join(found) or "none")]
    cache = plan.kwargs.get("cache_dir")
    return list(_findings(planned, model, cache)) if planned else []


def _findings(planned: Adapters, model: Any, cache: str | None) -> Iterator[Finding]:
    named = list(model.named_parameters())
    for adapter in planned.members:
        own = {*parameters_of(adapter, named)}
        weights = [p for n, p in named if n in own and p.is_floating_point()]
        dtypes = {str(p.dtype).removeprefix("torch.") for p in weights}
        if dtypes - {adapter.dtype}:
            yield _finding("adapter-dtype", adapter.dtype, ", ".join(sorted(dtypes)))
        if adapter.source and (different := _differing(adapter, model, cache)):
            yield _finding("adapter-values", "the tensors of its file", f"others in {different}")
    training = [a.name for a in planned.members if a.trainable and a.name == planned.active]
    active = [a for a in planned.members if a.name in training]
    own = {name for a in active for name in (*parameters_of(a, named), *biases(a, named))}
    strangers = [n for n, p in named if p.requires_grad and n not in own]
    if strangers:
        yield _finding(
            "trainable", "the active adapter trains, and nothing else", f"{strangers[0]} trains too"
        )
    if training and not any(p.requires_grad for _, p in named):
        yield _finding("trainable", "the active adapter trains", "nothing trains")


def _differing(adapter: Adapter, model: Any, cache: str | None) -> str:
    """The first tensor of an existing adapter that isn't what its file has; "" where all of a sample are."""
    import peft
    import torch
    from safetensors import safe_open

    path = file_of(adapter, WEIGHTS, cache)
    if path is None:
        return ""
    state = peft.get_peft_model_state_dict(model, adapter_name=adapter.name, save_embedding_layers=False)
    with safe_open(path, framework="pt") as file:
        names: list[str] = sorted(set(file.keys()) & set(state))
        for name in names[:: max(1, len(names) // SAMPLED)]:
            held = state[name].detach().to("cpu")
            if not torch.equal(held, file.get_tensor(name).to(held.dtype)):
                return name
    return ""


def _finding(code: str, planned: str, effective: str) -> Finding:
    return Finding("adapter", "adapter", code, "the adapter isn't as planned", planned, effective)

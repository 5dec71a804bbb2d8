"""Whether the adapters are as planned: there, active, in their dtype, and nothing else training. Not a plugin itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from loadkit import Adapters, Finding, Plan

__all__ = ["audit"]


def audit(plan: Plan, model: Any) -> Sequence[Finding]:
    """Compare the model's adapters with the plan."""
    planned = plan.adapters if plan.adapters is not None and not plan.adapters.merge else None
    found = sorted(getattr(model, "peft_config", None) or {})
    wanted = sorted(a.name for a in planned.members) if planned else []
    if found != wanted:
        return [_finding("adapter", ", ".join(wanted) or "none", ", ".join(found) or "none")]
    return list(_findings(planned, model)) if planned else []


def _findings(planned: Adapters, model: Any) -> Iterator[Finding]:
    active = model.active_adapter
    if active != planned.active:
        yield _finding("active-adapter", planned.active, str(active))
    named = list(model.named_parameters())
    for adapter in planned.members:
        own = [p for n, p in named if adapter.name in n.split(".") and p.is_floating_point()]
        dtypes = {str(p.dtype).removeprefix("torch.") for p in own}
        if dtypes - {adapter.dtype}:
            yield _finding("adapter-dtype", adapter.dtype, ", ".join(sorted(dtypes)))
    training = [a.name for a in planned.members if a.trainable and a.name == planned.active]
    strangers = [n for n, p in named if p.requires_grad and not set(training) & set(n.split("."))]
    if strangers:
        yield _finding(
            "trainable", "the active adapter trains, and nothing else", f"{strangers[0]} trains too"
        )
    if training and not any(p.requires_grad for _, p in named):
        yield _finding("trainable", "the active adapter trains", "nothing trains")


def _finding(code: str, planned: str, effective: str) -> Finding:
    return Finding(
        stage="adapter",
        plugin="adapter",
        code=code,
        message="the adapter isn't as planned",
        planned=planned,
        effective=effective,
    )

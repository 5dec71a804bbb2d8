"""One forward and one backward pass of a loaded model, and which of its parts took part."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

__all__ = ["Passes", "fused_calls", "ids_of", "logits_of", "train_once"]

ADAPTED = re.compile(r"\.(lora_|ia3_|oft_|boft_|vera_|hada_|lokr_|modules_to_save)")
"""Where an adapter's own parameters begin in the path of what they adapt."""


@dataclass(frozen=True)
class Passes:
    """What a step of training did.

    Parameters:
        trained: how many parameters train.
        reached: whether a gradient reached any of them.
        parts: how many parts have parameters that train: adapted modules, and the layers of a model that
            trains whole.
        left_out: those of them that ran, and that no gradient reached.
        recomputed: whether a layer ran again in the backward pass.
        failure: what it raised; "" where it came to its end.
    """

    trained: int = 0
    reached: bool = False
    parts: int = 0
    left_out: tuple[str, ...] = ()
    recomputed: bool = False
    failure: str = ""


def train_once(model: Any) -> Passes:
    """Run a step, without an optimizer's; gradients are cleared afterwards."""
    layers = {name: module for name, module in model.named_modules() if re.search(r"\.\d+$", name)}
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    # Inside of the layers: transformers checkpoints a layer's `forward`, and leaves its hooks outside.
    inside = {f"{layer}.{name}" for layer, module in layers.items() for name, _ in module.named_children()}
    parts = dict(_parts(trained, layers))
    modules = dict(model.named_modules())
    ran: Counter[str] = Counter()

    def counting(name: str) -> Any:
        return lambda *_: ran.update([name])

    with ExitStack() as stack:
        for name in {*inside, *parts}:
            if name in modules:
                handle = modules[name].register_forward_pre_hook(counting(name))
                stack.callback(handle.remove)
        ids = ids_of(model)
        model.zero_grad(set_to_none=True)
        loss = model(input_ids=ids, labels=ids).loss
        before = Counter(ran)
        loss.backward()
    got = {name for name, p in trained.items() if p.grad is not None and bool(p.grad.any())}
    left_out = [part for part, names in parts.items() if before[part] and not got & names]
    model.zero_grad(set_to_none=True)
    return Passes(
        trained=len(trained),
        reached=bool(got),
        parts=len(parts),
        left_out=tuple(sorted(left_out)),
        recomputed=any(ran[name] > before[name] for name in inside),
    )


def _parts(trained: dict[str, Any], layers: dict[str, Any]) -> Iterator[tuple[str, set[str]]]:
    """The parts of what trains, to the names of their parameters."""
    found: dict[str, set[str]] = {}
    for name in trained:
        adapted = ADAPTED.search(name)
        if adapted:
            found.setdefault(name[: adapted.start()], set()).add(name)
        else:
            for layer in layers:
                if name.startswith(f"{layer}."):
                    found.setdefault(layer, set()).add(name)
    yield from found.items()


def ids_of(model: Any) -> Any:
    """Two short texts."""
    import torch

    return torch.arange(6, 22).reshape(2, 8) % model.config.get_text_config().vocab_size


def logits_of(model: Any) -> Any:
    """What the model computes of them, in evaluation mode."""
    import torch

    mode = model.training
    model.eval()
    with torch.no_grad():
        found = model(input_ids=ids_of(model)).logits
    model.train(mode)
    return found


def fused_calls(model: Any) -> int:
    """How often torch's scaled dot product attention is called in a forward pass."""
    import torch
    from torch.overrides import TorchFunctionMode

    calls: list[Any] = []

    class Counting(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.nn.functional.scaled_dot_product_attention:
                calls.append(func)
            return func(*args, **(kwargs or {}))

    with Counting():
        logits_of(model)
    return len(calls)

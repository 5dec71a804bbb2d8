"""Whether a model's weights still are what they were when it was loaded, whatever has written to them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from loadkit.audit.local_shard import part_of
from loadkit.audit.model_access import is_packed
from loadkit.schema.plans import Plan

__all__ = ["AsLoaded", "Fingerprints", "adds_nothing", "fingerprints", "versions"]

EXACT_BYTES = 256 * 2**20
"""Weights that train are looked at whole up to so many bytes together, which takes some hundredths of a
second; larger ones, as of a model that is trained in full, by a sample."""

SAMPLED_VALUES = 256
"""How many values of a tensor are looked at in a sample, spread over all of it."""

CHUNK = 2**18
"""Words that are weighed at a time."""

NEUTRAL = (None, True, "gaussian")
"""Values of `init_lora_weights` after which a fresh LoRA changes nothing."""


class Fingerprints(NamedTuple):
    """One number for each of several tensors, and whether every value is in it."""

    tensors: tuple[Any, ...]
    numbers: tuple[int, ...]
    exact: bool

    def differs(self) -> bool:
        """Whether any of the tensors isn't what it was. Counts of versions aren't asked: fused optimizers
        don't raise them."""
        return self.numbers != fingerprints(self.tensors, exact=self.exact).numbers


class AsLoaded:
    """What is remembered of a model when it has been loaded.

    Parameters:
        model: the model, with its adapters.
        plan: what it was loaded by.
    """

    def __init__(self, model: Any, plan: Plan) -> None:
        named = [(name, p) for name, p in model.named_parameters() if is_here(p)]
        trains = [p for _, p in named if p.requires_grad and not is_packed(p)]
        exact = sum(p.numel() * p.element_size() for p in trains) <= EXACT_BYTES
        self.trains = fingerprints(trains, exact=exact)
        self.frozen = fingerprints((p for _, p in named if not p.requires_grad and not is_packed(p)))
        self.names = frozenset(name for name, _ in model.named_parameters())
        self.versions = versions(trains)
        self.active = _active(model)
        self.adds_nothing = adds_nothing(plan, model)

    def difference(self, model: Any) -> str:
        """What is otherwise than when the model was loaded; "" for nothing."""
        if not self.trains.exact and versions(self.trains.tensors) != self.versions:
            return "its weights have been trained since"
        if self.trains.differs():
            return "it has been trained since"
        return self.difference_of_the_base(model) or self._other_adapters(model)

    def difference_of_the_base(self, model: Any) -> str:
        """What is otherwise about the weights that don't train; "" for nothing."""
        here = {id(p) for p in model.parameters()}
        if any(id(p) not in here for p in (*self.frozen.tensors, *self.trains.tensors)):
            return "its weights were replaced since, as engines do that split a model"
        return "weights that were frozen have been written to since" if self.frozen.differs() else ""

    def _other_adapters(self, model: Any) -> str:
        if self.active != _active(model) or any(
            getattr(m, "_disable_adapters", False) for m in model.modules()
        ):
            return f"other adapters are on since (as loaded: {', '.join(self.active) or 'none'})"
        idle = set(getattr(model, "peft_config", None) or ()) - set(self.active)
        new = [n for n, _ in model.named_parameters() if n not in self.names and not idle & set(n.split("."))]
        return f"parameters were added since ({new[0]})" if new else ""


def is_here(parameter: Any) -> bool:
    """Whether this process holds a parameter's values, or a part of them."""
    part = part_of(parameter)
    return part is not None and part.tensor.device.type != "meta" and part.tensor.numel() > 0


def versions(tensors: Iterable[Any]) -> int:
    """torch's count of in-place changes, which optimizers that write through raw pointers leave out."""
    return sum(t._version for t in tensors)


def fingerprints(tensors: Iterable[Any], *, exact: bool = False) -> Fingerprints:
    """Take the fingerprints of tensors: of a sample of each, or of every value."""
    import torch

    held = tuple(tensors)
    weights: dict[Any, Any] = {}
    by_device: dict[Any, list[tuple[int, Any]]] = {}
    for place, tensor in enumerate(held):
        part = part_of(tensor)
        assert part is not None
        values = part.tensor.detach().reshape(-1)
        if not exact:
            values = values[:: max(1, len(values) // SAMPLED_VALUES)][:SAMPLED_VALUES]
        device = values.device
        if device not in weights:
            generator = torch.Generator().manual_seed(0)
            weights[device] = torch.randint(-(2**62), 2**62, (CHUNK,), generator=generator).to(device)
        by_device.setdefault(device, []).append((place, _number(values, weights[device])))
    numbers = [0] * len(held)
    for found in by_device.values():
        for (place, _), number in zip(found, torch.stack([n for _, n in found]).tolist(), strict=True):
            numbers[place] = number
    return Fingerprints(held, tuple(numbers), exact)


def _number(values: Any, weights: Any) -> Any:
    """The sum of words of eight bytes, each times a number of its place, so that changes don't cancel out."""
    import torch

    placed = values.clone() if values.storage_offset() else values.contiguous()  # words begin at a word
    octets = placed.view(torch.uint8)
    rest = len(octets) % 8
    if rest:
        octets = torch.cat([octets, octets.new_zeros(8 - rest)])
    words = octets.view(torch.int64)
    total = words.new_zeros(())
    for chunk in words.split(CHUNK):
        total = total * 31 + (chunk * weights[: len(chunk)]).sum()
    return total


def adds_nothing(plan: Plan, model: Any) -> bool:
    """Whether the adapter that a model was loaded with is a fresh LoRA that changes nothing yet, so that the
    model without it is the model as loaded."""
    adapter = plan.adapter
    if adapter is None or adapter.source or adapter.peft_type != "LORA":
        return False
    options = adapter.options
    plain = options.get("bias") in (None, "none") and not options.get("use_dora")
    if not plain or options.get("init_lora_weights", True) not in NEUTRAL:
        return False
    for name, parameter in model.named_parameters():
        second = "lora_B" in name or "lora_embedding_B" in name
        if (
            second
            and adapter.name in name.split(".")
            and is_here(parameter)
            and bool(parameter.detach().any())
        ):
            return False
    whole = [m for m in model.modules() if hasattr(m, "original_module") and hasattr(m, "modules_to_save")]
    return all(
        _dtypes(m.original_module) == _dtypes(m.modules_to_save[adapter.name])
        for m in whole
        if adapter.name in m.modules_to_save
    )


def _dtypes(module: Any) -> list[Any]:
    return [p.dtype for p in module.parameters()]


def _active(model: Any) -> tuple[str, ...]:
    on = getattr(model, "active_adapters", ())
    return () if callable(on) else tuple(on)  # a bare transformers model has a method of that name

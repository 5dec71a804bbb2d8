"""LoRA over parameters, such as stacks of experts: PEFT's layers and files, computed in the activations.

PEFT 0.21 adapts a parameter by `ParamWrapper`, which adds B·A to the whole of it at every forward pass, so
that a packed one would have to be unpacked, and which has no dropout. The layer here is a subclass: what it
holds, and what is saved, is PEFT's own, and plain PEFT loads it. It comes in through the config's table of
layers for classes that PEFT doesn't know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from peft.tuners.lora import LoraModel
from peft.tuners.lora import layer as lora
from peft.tuners.tuners_utils import BaseTunerLayer

from loadkit_plugins.adapter.adapted_weight import AdaptedWeight, Factors
from loadkit_plugins.adapter.older_peft import is_stack, swaps_features

__all__ = ["ParamWrapper", "is_over_parameter", "use_activations"]

DELTAS = "packed_deltas"
"""Where a module that carries packed parameters looks for what goes in a parameter's place."""


class ParamWrapper(lora.ParamWrapper):  # type: ignore[misc]
    """An adapter over a parameter of a module, for the time of the module's forward pass.

    PEFT knows layers over parameters by the name of this class.
    """

    @contextmanager
    def _activate_lora(self, active_adapters: list[str]) -> Iterator[None]:
        base = self.get_base_layer()
        names = [name for name in active_adapters if name in self.lora_A]
        if names and not is_packed(base) and not _plain(base, self.parameter_name):
            with super()._activate_lora(active_adapters):
                yield
            return
        if not names:
            yield
            return
        factors = [self._factors(name) for name in names]
        with _in_place(base, self.parameter_name, factors):
            yield

    def _factors(self, name: str) -> Factors:
        """An adapter's factors, as PEFT lays them out: A by expert and rank, B by rank and expert."""
        first, second = self.lora_A[name].weight, self.lora_B[name].weight
        if is_stack(self):
            first = first.view(self.num_experts, -1, first.shape[-1])
            second = second.view(second.shape[0], -1, self.num_experts).permute(2, 0, 1).contiguous()
            if not swaps_features(self):  # stored with inputs before outputs
                first, second = second.mT, first.mT
        return Factors(second, first, self.scaling[name], self.lora_dropout[name])

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """As PEFT's; refused over packed weights, where most of it would be rounded away."""
        self._refuse_packed("merged into")
        super().merge(safe_merge=safe_merge, adapter_names=adapter_names)

    def unmerge(self) -> None:
        """As PEFT's; refused over packed weights."""
        self._refuse_packed("taken out of")
        super().unmerge()

    def _refuse_packed(self, what: str) -> None:
        base = self.get_base_layer()
        if is_packed(base) and hasattr(self.get_param(), "unpacked"):
            raise ValueError(
                f"an adapter can't be {what} {self.parameter_name} of {type(base).__name__}, whose experts are packed: rounding "
                "again would lose much of what it learned. Merge it into the unquantized base, or load with merge_adapter=True "
                "and dequantize=True"
            )


def is_packed(module: Any) -> bool:
    """Whether some of a module's parameters are packed, and it takes what goes in their place."""
    return DELTAS in vars(module)


def _plain(module: Any, name: str) -> bool:
    """Whether a parameter is one tensor of floating point, held by the module itself."""
    held = vars(module).get(name, module._parameters.get(name))
    dense = isinstance(held, torch.Tensor) and type(held.data) is torch.Tensor and held.is_floating_point()
    return dense and held.ndim > 1 and held.element_size() > 1 and not hasattr(module, "parametrizations")


@contextmanager
def _in_place(module: Any, name: str, factors: list[Factors]) -> Iterator[None]:
    """Have a module's parameter be the adapted one."""

    def adapted(weight: Any) -> AdaptedWeight:
        return AdaptedWeight(weight, factors)

    packed = is_packed(module) and name in module.packed_layouts
    place: dict[str, Any] = getattr(module, DELTAS) if packed else vars(module)
    before = {name: place[name]} if name in place else {}  # FSDP 1 has a view there
    place[name] = adapted if packed else adapted(getattr(module, name))
    try:
        yield
    finally:
        del place[name]
        place.update(before)


def use_activations(config: Any) -> None:
    """Have PEFT make this module's layers for a LoRA config's parameters.

    Parameters:
        config: a `peft.LoraConfig`.
    """
    config._register_custom_module({torch.nn.Module: partial(_layer, config)})


def _layer(
    settings: Any, target: Any, adapter_name: str, *, parameter_name: str | None = None, **given: Any
) -> Any:
    """The layer for a parameter: of a linear layer's weight the one that PEFT has for such layers, which has
    the same tensors, and takes packed weights and dropout; None for modules, which PEFT knows itself."""
    if parameter_name is None:
        return None
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if isinstance(base, torch.nn.Linear) and parameter_name == "weight":
        plain = {name: value for name, value in given.items() if name != "config"}
        table, settings._custom_modules = settings._custom_modules, None
        try:
            made = LoraModel._create_new_module(settings, adapter_name, target, **plain)
        finally:
            settings._custom_modules = table
        own: Any = type(made)
        made.__class__ = _by_parameter(own)
        return made
    return ParamWrapper(target, adapter_name, parameter_name=parameter_name, **given)


@cache
def _by_parameter(layer: Any) -> type:
    """A layer's class under the name by which PEFT finds layers over a parameter again."""

    def reduce(self: Any, protocol: Any) -> Any:
        return _made_again, (layer,), vars(self)

    about = {"parameter_name": "weight", "__module__": layer.__module__, "__reduce_ex__": reduce}
    return type("ParamWrapper", (layer,), about)


def _made_again(layer: type) -> Any:
    return object.__new__(_by_parameter(layer))


def is_over_parameter(layer: Any) -> bool:
    """Whether one of PEFT's layers adapts a parameter as such, not a linear layer."""
    return isinstance(layer, lora.ParamWrapper)

"""Packing while the weights are read: transformers' conversions, one expert at a time where they allow it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter, log_conversion_errors

from loadkit_plugins.bitsandbytes.packed.codec import DATA, pack
from loadkit_plugins.bitsandbytes.packed.layout import Layout

__all__ = ["PackWhileLoading", "unit_by_unit"]


class PackWhileLoading(ConversionOps):  # type: ignore[misc]
    """Quantizes what a conversion made: packed parameters here, linear layers as bitsandbytes' own does.

    Parameters:
        hf_quantizer: knows the layouts.
        layers: what quantizes linear layers.
    """

    def __init__(self, hf_quantizer: Any, layers: Any) -> None:
        self.hf_quantizer, self.layers = hf_quantizer, layers

    def convert(self, input_dict: dict[str, Any], **given: Any) -> dict[str, Any]:
        """The tensors of every parameter by their paths."""
        found: dict[str, Any] = {}
        rest: dict[str, Any] = {}
        for path, value in input_dict.items():
            layout = self.hf_quantizer.layouts.get(path)
            if layout is None:
                rest[path] = value
                continue
            values = value[0] if isinstance(value, list) else value
            found |= tensors_of(path, layout, iter(values.reshape(layout.stacked)), values.device)
        return found | (self.layers.convert(rest, **given) if rest else {})


def tensors_of(path: str, layout: Layout, units: Iterator[torch.Tensor], device: Any) -> dict[str, Any]:
    """Pack a parameter: what is to be set, by path."""
    tensors = pack(units, layout, device)
    beside = {f"{path}_{name}": tensors[name] for name in layout.companions}
    return {path: torch.nn.Parameter(tensors[DATA], requires_grad=False), **beside}


ALONE = ("MergeModulelist", "Concatenate", "Transpose", "Interleave")
"""transformers' operations that do to each expert what they do to all, on the axes behind the first."""


def unit_by_unit(conversion: Any) -> Any:
    """The same conversion, which never holds all experts unpacked, where its operations allow that."""
    if type(conversion) is not WeightConverter:
        return conversion
    operations = [each for each in conversion.operations if not getattr(each, "each_alone", False)]
    kinds = [type(each).__name__ for each in operations]
    merges = kinds[:1] == ["MergeModulelist"] and operations[0].dim == 0
    behind = all(_behind(each) for each in operations[1:])
    stack = not operations and hasattr(conversion.operations[0], "units")
    one_by_one = merges and behind and not set(kinds) - set(ALONE)
    if not (stack or one_by_one) or len(conversion.target_patterns) != 1:
        return conversion
    sources, targets = conversion._original_source_patterns, conversion._original_target_patterns
    made = (_FromStack if stack else _UnitByUnit)(
        list(sources), list(targets), operations=conversion.operations, force_cpu=conversion.force_cpu
    )
    made.scope_prefix, made.base_model_prefix = conversion.scope_prefix, conversion.base_model_prefix
    return made


def _behind(operation: Any) -> bool:
    """Whether an operation leaves the first axis alone."""
    dims = [getattr(operation, name, 1) for name in ("dim", "dim0", "dim1")]
    return all(dim > 0 for dim in dims) and not getattr(operation, "check_dims", False)


class _UnitByUnit(WeightConverter):  # type: ignore[misc]
    """A conversion of experts that are stored one by one, and packed as they are read."""

    __slots__ = ()

    def convert(
        self,
        layer_name: str,
        model: Any = None,
        config: Any = None,
        hf_quantizer: Any = None,
        loading_info: Any = None,
    ) -> Any:
        path = layer_name.replace("*.", "0.")
        layouts = getattr(hf_quantizer, "layouts", {})
        layout = layouts.get(path)
        counts = {len(tensors) for tensors in self.collected_tensors.values()}
        if layout is None or self.quantization_operation is None or counts != {layout.units}:
            return super().convert(layer_name, model, config, hf_quantizer, loading_info)
        stored = {pattern: self.collected_tensors.pop(pattern) for pattern in list(self.collected_tensors)}
        device: list[Any] = []

        def units() -> Iterator[torch.Tensor]:
            for unit in range(layout.units):
                tensors: Any = {pattern: [_read(each[unit])] for pattern, each in stored.items()}
                for operation in self.operations:
                    tensors = operation.convert(
                        tensors, source_patterns=self.source_patterns, target_patterns=self.target_patterns,
                        full_layer_name=layer_name, model=model, config=config, missing_keys=None,
                    )  # fmt: skip
                (values,) = tensors.values()
                yield values[0]

        with log_conversion_errors(
            layer_name, loading_info, (len(stored), layer_name), self.quantization_operation
        ):
            first = units()
            values = next(first)
            device.append(values.device)
            return tensors_of(path, layout, _again(values, first), values.device)


class _FromStack(WeightConverter):  # type: ignore[misc]
    """A conversion that decodes a stack: its experts are packed as they are decoded."""

    __slots__ = ()

    def convert(
        self,
        layer_name: str,
        model: Any = None,
        config: Any = None,
        hf_quantizer: Any = None,
        loading_info: Any = None,
    ) -> Any:
        layout = getattr(hf_quantizer, "layouts", {}).get(layer_name)
        if layout is None or self.quantization_operation is None or layout.units == 1:
            return super().convert(layer_name, model, config, hf_quantizer, loading_info)
        stored = self.materialize_tensors()
        device = next(iter(stored.values()))[0].device
        (operation,) = self.operations
        with log_conversion_errors(layer_name, loading_info, (len(stored), layer_name), operation):
            return tensors_of(layer_name, layout, operation.units(stored, layer_name), device)


def _again(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _read(stored: Any) -> Any:
    """A stored tensor: read now, or by a thread that was started before."""
    return stored() if callable(stored) else stored.result() if hasattr(stored, "result") else stored

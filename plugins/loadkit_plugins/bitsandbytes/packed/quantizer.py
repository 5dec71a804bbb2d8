"""What transformers calls while it loads: bitsandbytes' quantizers, which pack further parameters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import bitsandbytes
import torch
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils.quantization_config import QuantizationMethod

from loadkit_plugins.bitsandbytes.packed import modules
from loadkit_plugins.bitsandbytes.packed.codec import DATA, empty
from loadkit_plugins.bitsandbytes.packed.layout import FIRST_AXIS, Layout
from loadkit_plugins.bitsandbytes.packed.loading import PackWhileLoading, unit_by_unit
from loadkit_plugins.bitsandbytes.settings import PACKED_EXPERTS

__all__ = ["QUANTIZERS", "PackedFourBit", "PackedEightBit", "layouts_of"]


def layouts_of(
    model: Any,
    packed_parameters: Mapping[str, Mapping[str, str]],
    skipped: list[str],
    settings: Mapping[str, Any],
) -> Iterator[tuple[Any, str, str, Layout]]:
    """The parameters of a model that are to be packed: module, its path, the parameter's name, its layout.

    Parameters:
        model: its parameters have the shapes of their values.
        packed_parameters: as `PackedConfig` has them.
        skipped: modules that stay as they are, as transformers reads such lists.
        settings: of every layout.
    """
    for path, module in model.named_modules():
        wanted = packed_parameters.get(type(module).__name__)
        if wanted is None or not should_convert_module(path, skipped):
            continue
        for name, count in wanted.items():
            parameter = module._parameters.get(name)
            if parameter is not None:
                shape = tuple(parameter.shape)
                units = shape[0] if count == FIRST_AXIS else getattr(module, count) if count else 1
                yield module, path, name, Layout(shape=shape, units=units, **settings)


class _Packed:
    """What both widths have in common, beside transformers' own quantizers."""

    quantization_config: Any
    pre_quantized: bool
    modules_to_not_convert: list[str]
    layouts: dict[str, Layout]
    """Every packed parameter by its path."""
    tied: dict[str, str]
    """Parameters that are another's, to that one: only that one is loaded."""

    def _settings(self, dtype: torch.dtype) -> dict[str, Any]:
        raise NotImplementedError

    def _process_model_before_weight_loading(self, model: Any, **given: Any) -> Any:
        super()._process_model_before_weight_loading(model, **given)  # type: ignore[misc]
        model.quantization_method = (
            QuantizationMethod.BITS_AND_BYTES
        )  # by which others know what to leave alone
        settings = self._settings(given.get("dtype") or model.dtype)
        skipped = self.modules_to_not_convert
        wanted = self.quantization_config.packed_parameters
        self.layouts, self.tied = {}, dict(model.all_tied_weights_keys)
        for module, path, name, layout in layouts_of(model, wanted, skipped, settings):
            self.layouts[f"{path}.{name}"] = layout
            tensors = empty(layout, "meta")
            if self.pre_quantized:
                module._parameters[name] = torch.nn.Parameter(tensors[DATA], requires_grad=False)
            for each in () if f"{path}.{name}" in self.tied else layout.companions:
                module.register_buffer(f"{name}_{each}", tensors[each])
        return model

    def param_needs_quantization(self, model: Any, param_name: str, **given: Any) -> bool:
        if param_name in self.layouts:
            return True
        return bool(super().param_needs_quantization(model, param_name, **given))  # type: ignore[misc]

    def get_quantize_ops(self) -> Any:
        return PackWhileLoading(self, super().get_quantize_ops())  # type: ignore[misc]

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
        """Packed parameters are stored under their own names: nothing is converted then. While quantizing,
        experts that are stored one by one are packed one by one."""
        if self.pre_quantized:
            kept = [each for each in weight_conversions if not self._concerns(each)]
        else:
            kept = [unit_by_unit(each) if self._concerns(each) else each for each in weight_conversions]
        return list(super().update_weight_conversions(kept, model))  # type: ignore[misc]

    def _concerns(self, conversion: Any) -> bool:
        """Whether one of transformers' conversions makes, or takes, a packed parameter."""
        if not hasattr(conversion, "operations"):
            return False
        targets = [re.sub(r"\\\d", "", each).lstrip("^").rstrip("$") for each in conversion.target_patterns]
        names = list(self.layouts)
        return any(name.endswith(target) for target in targets for name in names)

    def _process_model_after_weight_loading(self, model: Any, **given: Any) -> Any:
        for path, layout in sorted(self.layouts.items(), key=lambda item: item[0] in self.tied):
            module, name = _home(model, path)
            if (source := self.tied.get(path)) is not None:
                carried, theirs = _home(model, source)
                modules.carry_tied(module, name, carried, theirs)
                continue
            beside = {each: module._buffers[f"{name}_{each}"] for each in layout.companions}
            modules.carry(module, {name: (layout, {DATA: module._parameters[name], **beside})})
        model._weight_conversions = [
            each for each in getattr(model, "_weight_conversions", None) or [] if not self._concerns(each)
        ]
        return super()._process_model_after_weight_loading(model, **given)  # type: ignore[misc]

    def update_attn_implementation(self, config: Any) -> Any:
        """Packed experts run as such, where nothing else was asked for."""
        config = super().update_attn_implementation(config)  # type: ignore[misc]
        if self.quantization_config.packed_parameters and config._experts_implementation is None:
            config._experts_implementation = PACKED_EXPERTS
        return config

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        for module in list(model.modules()):
            if modules.is_carrier(module):
                modules.uncarry(module, dtype)
        if not any(
            isinstance(module, bitsandbytes.nn.Linear4bit | bitsandbytes.nn.Linear8bitLt)
            for module in model.modules()
        ):
            return model  # transformers 5.23 fails over a model without quantized layers
        return super()._dequantize(model, dtype)  # type: ignore[misc]


class PackedFourBit(_Packed, Bnb4BitHfQuantizer):  # type: ignore[misc]
    """Four bits."""

    def _settings(self, dtype: torch.dtype) -> dict[str, Any]:
        config = self.quantization_config
        compute = _name(config.bnb_4bit_compute_dtype)
        return {
            "bits": 4,
            "dtype": _name(dtype),
            "compute_dtype": "" if compute == _name(dtype) else compute,
            "quant_type": config.bnb_4bit_quant_type,
            "nested": config.bnb_4bit_use_double_quant,
            "storage": _name(config.bnb_4bit_quant_storage),
        }


class PackedEightBit(_Packed, Bnb8BitHfQuantizer):  # type: ignore[misc]
    """Eight bits: rows of integers, each with its scale. Activations stay in their dtype."""

    def _settings(self, dtype: torch.dtype) -> dict[str, Any]:
        return {"bits": 8, "dtype": _name(dtype)}


QUANTIZERS: Mapping[int, type] = {4: PackedFourBit, 8: PackedEightBit}


def _home(model: Any, path: str) -> tuple[Any, str]:
    home, _, name = path.rpartition(".")
    return model.get_submodule(home), name


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

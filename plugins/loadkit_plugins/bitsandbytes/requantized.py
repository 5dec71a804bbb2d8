"""Quantizing what is stored in another format: each tensor is decoded, and quantized at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import BitsAndBytesConfig
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    AutoHfQuantizer,
    register_quantization_config,
    register_quantizer,
)

from loadkit_plugins.bitsandbytes.packed.config import PackedConfig
from loadkit_plugins.bitsandbytes.packed.config import register as register_packed
from loadkit_plugins.bitsandbytes.packed.quantizer import PackedEightBit, PackedFourBit
from loadkit_plugins.stored_blocks.decoding import is_coded
from loadkit_plugins.stored_blocks.loading import reader_of

__all__ = ["RequantizedConfig", "register"]

METHODS = {4: "loadkit_requantized_4bit", 8: "loadkit_requantized_8bit"}
"""What transformers looks the quantizers up by, while it loads; nothing is stored under these names."""


class RequantizedConfig(PackedConfig):
    """A config of bitsandbytes' for a checkpoint that is stored in another format.

    Parameters:
        stored: how it is stored, as `stored_blocks.headers.fields_of` gives it.
        packed_parameters, options: as `PackedConfig` takes them.
    """

    def __init__(
        self,
        stored: Mapping[str, Any],
        packed_parameters: Mapping[str, Mapping[str, str]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(packed_parameters=packed_parameters, **options)
        self.stored, self.options = dict(stored), dict(options)
        self.quant_method = METHODS[4 if self.load_in_4bit else 8]

    @property
    def result(self) -> Any:
        """The config of the model that comes out: it doesn't tell what the model was made from."""
        if self.packed_parameters:
            return PackedConfig(packed_parameters=self.packed_parameters, **self.options)
        return BitsAndBytesConfig(**self.options)

    def to_dict(self) -> dict[str, Any]:
        """As it is stored."""
        found: dict[str, Any] = self.result.to_dict()
        return found


class QuantizeDecoded(ConversionOps):  # type: ignore[misc]
    """Quantizes values in the dtype of the load, and no codes.

    Parameters:
        reader: knows the dtypes.
        quantizing: what quantizes.
    """

    def __init__(self, reader: Any, quantizing: Any) -> None:
        self.reader, self.quantizing = reader, quantizing

    def convert(self, input_dict: dict[str, Any], **given: Any) -> dict[str, Any]:
        """The quantized tensors by their paths."""
        values = {}
        for path, value in input_dict.items():
            tensor = value[0] if isinstance(value, list) else value
            if is_coded(tensor):
                raise ValueError(f"{path} is stored in codes ({tensor.dtype}), and nothing decodes it")
            values[path] = tensor.to(self.reader.dtype_of(path))
        found: dict[str, Any] = self.quantizing.convert(values, **given)
        return found


class _Requantizing:
    """What both widths have in common."""

    quantization_config: RequantizedConfig
    modules_to_not_convert: list[str]
    layouts: dict[str, Any]

    def __init__(self, quantization_config: RequantizedConfig, **given: Any) -> None:
        super().__init__(quantization_config, **given)  # type: ignore[call-arg]
        self.reader = reader_of(quantization_config.stored)

    def _process_model_before_weight_loading(self, model: Any, **given: Any) -> Any:
        model = super()._process_model_before_weight_loading(model, **given)  # type: ignore[misc]
        dtype = given.get("dtype") or model.dtype
        needs = super().param_needs_quantization  # type: ignore[misc]
        self.reader.begin(model, dtype, lambda path: path in self.reader._dtypes and needs(model, path))
        return model

    def get_quantize_ops(self) -> Any:
        return QuantizeDecoded(self.reader, super().get_quantize_ops())  # type: ignore[misc]

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
        decoding = self.reader.update_weight_conversions(weight_conversions, model)
        return list(super().update_weight_conversions(decoding, model))  # type: ignore[misc]

    def _process_model_after_weight_loading(self, model: Any, **given: Any) -> Any:
        """Leave the model as one that was quantized from floating point."""
        self.reader.finish(model)
        model = super()._process_model_after_weight_loading(model, **given)  # type: ignore[misc]
        result = self.quantization_config.result
        quantizer = AutoHfQuantizer.from_config(result, pre_quantized=False)
        quantizer.modules_to_not_convert = self.modules_to_not_convert
        if self.layouts:
            quantizer.layouts = self.layouts
        model.hf_quantizer, model.config.quantization_config = quantizer, result
        return model


class RequantizingFourBit(_Requantizing, PackedFourBit):
    """Four bits."""


class RequantizingEightBit(_Requantizing, PackedEightBit):
    """Eight bits."""


def register() -> None:
    """Have transformers know the config and its quantizers. Once is enough."""
    register_packed()
    for bits, quantizer in {4: RequantizingFourBit, 8: RequantizingEightBit}.items():
        if METHODS[bits] not in AUTO_QUANTIZATION_CONFIG_MAPPING:
            register_quantization_config(METHODS[bits])(RequantizedConfig)
        if METHODS[bits] not in AUTO_QUANTIZER_MAPPING:
            register_quantizer(METHODS[bits])(quantizer)

"""The quantization config of models with packed parameters: bitsandbytes' own, and which those are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import BitsAndBytesConfig
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)

from loadkit_plugins.bitsandbytes.settings import PACKED_METHODS, PACKED_PARAMETERS

__all__ = ["PackedConfig", "register"]


class PackedConfig(BitsAndBytesConfig):  # type: ignore[misc]
    """A config of bitsandbytes' that says which parameters are packed beside the linear layers.

    It is stored under a quantization method of its own: transformers without loadkit says that it doesn't
    know it, instead of taking codes for values.

    Parameters:
        packed_parameters: a module's class to its parameters, each to where the number of its units stands:
            "0" for its first axis, an attribute of the module's for flat stacks, "" for a single matrix.
        options: as `BitsAndBytesConfig` takes them.
    """

    def __init__(
        self, packed_parameters: Mapping[str, Mapping[str, str]] | None = None, **options: Any
    ) -> None:
        known = {"load_in_4bit", "load_in_8bit"}
        for name in known:
            options.setdefault(name, options.pop(f"_{name}", False))
        options.pop("quant_method", None)
        super().__init__(**options)
        self.quant_method = PACKED_METHODS[4 if self.load_in_4bit else 8]
        self.packed_parameters = {name: dict(each) for name, each in (packed_parameters or {}).items()}

    def to_dict(self) -> dict[str, Any]:
        """As it is stored: without the switches by which transformers would take it for its own."""
        found: dict[str, Any] = super().to_dict()
        return {name: value for name, value in found.items() if not name.startswith("load_in_")}

    def to_diff_dict(self) -> dict[str, Any]:
        """What differs from bitsandbytes' defaults."""
        usual = BitsAndBytesConfig().to_dict()
        return {
            name: value
            for name, value in self.to_dict().items()
            if value != usual.get(name, PACKED_PARAMETERS)
        }


def register() -> None:
    """Have transformers know the config, its quantizers and how packed experts run. Once is enough."""
    from loadkit_plugins.bitsandbytes.packed import experts, quantizer

    experts.register()
    for bits, method in PACKED_METHODS.items():
        if method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
            register_quantization_config(method)(PackedConfig)
        if method not in AUTO_QUANTIZER_MAPPING:
            register_quantizer(method)(quantizer.QUANTIZERS[bits])

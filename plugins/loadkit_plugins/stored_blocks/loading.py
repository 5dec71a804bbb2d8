"""How transformers' `from_pretrained` decodes tensors while it reads them, whatever becomes of the values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import FineGrainedFP8Config, Mxfp4Config
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer
from transformers.quantizers.quantizer_mxfp4 import Mxfp4HfQuantizer

from loadkit_plugins.stored_blocks.decoding import decode, decode_blocks, is_coded

__all__ = ["Decoding", "Reader", "reader_of"]

SCALE = "_scale_inv"


class Reader:
    """What knows how a checkpoint's weights are stored: it adds operations that decode them to the
    conversions that transformers has for the model.

    transformers casts every tensor that it reads to the dtype of its parameter, if it isn't of a quantized
    checkpoint's: scales would lose their bits. So tensors that may be codes, or scales, are left as they are
    stored, and get their dtype once they are decoded.
    """

    quantization_config: Any
    block: Any = None
    uncast: tuple[str, ...] = ()
    """Ends of the names of parameters that are read as they are stored."""
    _plan: Sequence[tuple[Any, torch.dtype]]
    stacks: Sequence[str] = ()
    """The names of parameters of more than two axes."""

    def begin(self, model: Any, dtype: torch.dtype, quantized: Callable[[str], bool]) -> None:
        """Prepare for reading.

        Parameters:
            model: on the meta device.
            dtype: of the load.
            quantized: whether a parameter is to be quantized: it has `dtype` before.
        """
        own = dict(model._get_dtype_plan(dtype))
        self._plan = [(re.compile(glob.replace("*", ".*")), found) for glob, found in own.items()]
        self._dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        self._dtype, self._quantized = dtype, quantized
        stacks = {n.rpartition(".")[2] for n, p in model.named_parameters() if p.ndim > 2}
        self.stacks = sorted(stacks - {"weight"})
        ends = (*self.uncast, *self.stacks)
        model._get_dtype_plan = lambda _: {**own, **{rf"(?:^|\.){re.escape(end)}$": None for end in ends}}

    def dtype_of(self, path: str) -> torch.dtype:
        """The dtype that a parameter's values are read in."""
        path = path.replace("*.", "0.")
        if planned := [dtype for pattern, dtype in self._plan if pattern.search(path)]:
            return planned[0]
        if self._quantized(path):
            return self._dtype
        found: torch.dtype = self._dtypes.get(path, self._dtype)
        return found if found.is_floating_point else self._dtype

    def finish(self, model: Any) -> None:
        """Leave nothing behind: no operation that decodes, and no weight in the dtype of the files."""
        del model._get_dtype_plan
        model._weight_conversions = [
            each for known in model._weight_conversions or () if (each := _own(known)) is not None
        ]
        for name, parameter in model.named_parameters():
            if type(parameter) is torch.nn.Parameter and not is_coded(parameter):
                dtype = self.dtype_of(name)
                if parameter.dtype != dtype and not self._quantized(name):
                    parameter.data = parameter.data.to(dtype)


def _own(conversion: Any) -> Any | None:
    """A conversion as a checkpoint in floating point has it; None for one that only decodes."""
    if isinstance(conversion, WeightRenaming):
        scales = any(SCALE in each for each in conversion._original_target_patterns)
        return None if scales else conversion
    operations = getattr(conversion, "operations", ())
    own = [each for each in operations if not isinstance(each, Decoding)]
    if not own or len(own) == len(operations):
        return conversion if own else None
    decoding = next(each for each in operations if isinstance(each, Decoding))
    sources = [each for each in conversion._original_source_patterns if not decoding.is_beside(each)]
    made = conversion.copy(sources, conversion._original_target_patterns, operations=own)
    made._was_used = conversion._was_used
    return made


class Decoding(ConversionOps):  # type: ignore[misc]
    """An operation that decodes; it is one for all tensors.

    Parameters:
        hf_quantizer: the reader.
    """

    each_alone = True
    """What it does to several tensors it does to each."""

    def __init__(self, hf_quantizer: Any) -> None:
        self.hf_quantizer = hf_quantizer

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def is_beside(self, pattern: str) -> bool:
        """Whether what a conversion collects under a pattern isn't weights, but their scales."""
        raise NotImplementedError


class DecodeEach(Decoding):
    """fp8 and mxfp8: matrices, experts one by one or in stacks."""

    def is_beside(self, pattern: str) -> bool:
        return SCALE in pattern or "activation_scale" in pattern

    def convert(self, input_dict: dict[str, Any], full_layer_name: str = "", **given: Any) -> dict[str, Any]:
        """Values under the names of their codes. A tensor in floating point gets the parameter's dtype."""
        dtype, found = self.hf_quantizer.dtype_of(full_layer_name), {}
        for pattern, value in input_dict.items():
            if not self.is_beside(pattern):
                tensors, scales = _listed(value), _listed(input_dict.get(pattern + SCALE) or ())
                found[pattern] = [*self._decoded(pattern, tensors, scales, dtype)]
        return found

    def units(self, input_dict: dict[str, Any], full_layer_name: str) -> Iterator[torch.Tensor]:
        """The experts of a stack, one at a time."""
        (pattern,) = [each for each in input_dict if not self.is_beside(each)]
        (stack,), scales = _listed(input_dict[pattern]), _listed(input_dict.get(pattern + SCALE) or ())
        several = [scales[0][at] for at in range(len(stack))] if scales else []
        yield from self._decoded(pattern, list(stack), several, self.hf_quantizer.dtype_of(full_layer_name))

    def _decoded(
        self, pattern: str, tensors: list[Any], scales: list[Any], dtype: torch.dtype
    ) -> Iterator[torch.Tensor]:
        if not scales:
            if any(is_coded(tensor) for tensor in tensors):
                raise ValueError(f"{pattern} is stored in codes, and its scales aren't there")
            yield from (tensor.to(dtype) for tensor in tensors)
            return
        if len(scales) != len(tensors):
            raise ValueError(f"{len(tensors)} tensors of {pattern}, and {len(scales)} of their scales")
        for codes, its_scales in zip(tensors, scales, strict=True):
            yield decode(codes, its_scales, self.hf_quantizer.block, dtype)


class DecodeAlone(DecodeEach):
    """The same, where nothing else is done to a tensor."""

    def convert(self, input_dict: dict[str, Any], full_layer_name: str = "", **given: Any) -> dict[str, Any]:
        """The values under their path."""
        ((value,),) = super().convert(input_dict, full_layer_name, **given).values()
        return {full_layer_name: value}


class DecodeStack(Decoding):
    """mxfp4: stacks of experts."""

    def is_beside(self, pattern: str) -> bool:
        return pattern.endswith("_scales")

    def convert(self, input_dict: dict[str, Any], full_layer_name: str = "", **given: Any) -> dict[str, Any]:
        """The values under their path."""
        return {full_layer_name: torch.stack([*self.units(input_dict, full_layer_name)])}

    def units(self, input_dict: dict[str, Any], full_layer_name: str) -> Iterator[torch.Tensor]:
        """The experts, one at a time."""
        parts = {pattern.rpartition("_")[2]: _listed(value) for pattern, value in input_dict.items()}
        missing = {"blocks", "scales"} - parts.keys()
        if missing:
            raise ValueError(f"{full_layer_name} has no {' and no '.join(sorted(missing))}")
        (blocks,), (scales,) = parts["blocks"], parts["scales"]
        yield from decode_blocks(blocks, scales, self.hf_quantizer.dtype_of(full_layer_name))


def _listed(value: Any) -> list[Any]:
    return [*value] if isinstance(value, list | tuple) else [value]


class _Fp8(Reader, FineGrainedFP8HfQuantizer):  # type: ignore[misc]
    """transformers 5.23 decodes what is called "weight": stacks of experts that are stored whole, as
    "experts.gate_up_proj", it only reads in codes."""

    uncast = ("weight",)

    def begin(self, model: Any, dtype: torch.dtype, quantized: Callable[[str], bool]) -> None:
        super().begin(model, dtype, quantized)
        known = FineGrainedFP8HfQuantizer.serialized_names
        self.serialized_names = {**known, **{name: [name, name + SCALE] for name in self.stacks}}

    def get_weight_conversions(self) -> list[Any]:
        """What reads whatever the model's own conversions don't."""
        alone, names = DecodeAlone(self), self.serialized_names
        return [
            *(
                WeightConverter([f"experts.{each}" for each in names[stack]], f"experts.{stack}", [alone])
                for stack in self.stacks
            ),
            WeightConverter(names["weight"], "weight", [alone]),
        ]

    def get_load_operations(self) -> dict[str, Any]:
        return {"dequantize": DecodeEach}


class _Mxfp4(Reader, Mxfp4HfQuantizer):  # type: ignore[misc]
    def get_load_operations(self) -> dict[str, Any]:
        return {"dequantize": DecodeStack}


def reader_of(stored: Mapping[str, Any]) -> Any:
    """The reader of a checkpoint that is stored so.

    Parameters:
        stored: of its quantization config, what `headers.fields_of` gives.
    """
    if stored["quant_method"] == "mxfp4":
        return _Mxfp4(Mxfp4Config(dequantize=True), pre_quantized=True)
    block = stored.get("weight_block_size")
    config = FineGrainedFP8Config(dequantize=True, weight_block_size=block)
    reader = _Fp8(config, pre_quantized=True)
    reader.block = block
    return reader

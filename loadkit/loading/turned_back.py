"""Models whose stored format transformers turns back into floating point: asked for, and made whole
afterwards."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from loadkit.audit.model_access import configs

__all__ = ["finish_turning_back", "forget_stored", "gguf_in_floating_point", "saved_as_stored", "set_stored"]


def set_stored(config: Any, settings: Mapping[str, Any]) -> None:
    """Set fields of the checkpoint's own quantization config, such as `dequantize`: given as an argument, a
    second config would take the place of some of its settings (transformers 5.23:
    `merge_quantization_configs`)."""
    for each in {id(c): c for c in (config, config.get_text_config(decoder=True))}.values():
        own = getattr(each, "quantization_config", None)
        if own is not None:
            each.quantization_config = {**(own if isinstance(own, dict) else own.to_dict()), **settings}


def forget_stored(config: Any) -> None:
    """Take the checkpoint's own quantization config off, as its weights get another: transformers 5.23 takes
    no second one (`merge_quantization_configs`), and would save the first in nested configs."""
    for each in {id(c): c for c in (config, *(nested for _, nested in configs(config)))}.values():
        if getattr(each, "quantization_config", None) is not None:
            del each.quantization_config


def gguf_in_floating_point() -> dict[str, Any]:
    """The argument by which a GGUF file isn't kept in blocks, where transformers could (5.23 on)."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def finish_turning_back(model: Any, dtype: Any) -> None:
    """Give every weight the planned dtype, and have the model saved as the plain one that it is."""
    _cast(model, dtype)
    _forget_format(model)


def saved_as_stored(model: Any) -> None:
    """Have a model whose weights stay as they are stored be saved so: transformers 5.23 wants to undo each
    operation of loading, and has no way back for those that make packed weights of their parts, which the
    model's own `state_dict` takes apart (`revert_weight_conversion`)."""
    known = getattr(model, "_weight_conversions", None)
    if known is not None:
        model._weight_conversions = [c for c in known if all(map(_undone, getattr(c, "operations", ())))]


def _undone(operation: Any) -> bool:
    try:
        return operation.reverse_op is not None
    except NotImplementedError:
        return getattr(operation, "hf_quantizer", None) is None


def _cast(model: Any, dtype: Any) -> None:
    """transformers 5.23 leaves weights that weren't packed in the dtype of the file
    (`HfQuantizer.get_new_dtype`)."""
    kept = (*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ()))
    patterns = [re.compile(pattern.replace("*", ".*")) for pattern in kept]
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point() or parameter.element_size() == 1 or parameter.dtype == dtype:
            continue
        if not any(pattern.search(name) for pattern in patterns):
            parameter.data = parameter.data.to(dtype)


def _forget_format(model: Any) -> None:
    """transformers 5.23 would pack the weights again when it saves them, without a config that says so: the
    saved model would load as noise (`revert_weight_conversion`)."""
    known = getattr(model, "_weight_conversions", None)
    if known is None:
        return  # those of the class serve
    conversions = []
    for conversion in known:
        operations = getattr(conversion, "operations", ())
        own = [op for op in operations if getattr(op, "hf_quantizer", None) is None]
        if len(own) == len(operations):
            conversions.append(conversion)
        elif own:
            (quantizer,) = {
                id(op.hf_quantizer): op.hf_quantizer for op in operations if op not in own
            }.values()
            names = quantizer.serialized_names
            sources = [s for s in conversion._original_source_patterns if s.rpartition(".")[2] in names]
            conversions.append(conversion.copy(sources, conversion._original_target_patterns, operations=own))
    model._weight_conversions = conversions

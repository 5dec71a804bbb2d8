"""Fusions of a model's modules, which transformers would keep for every later load of the process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = ["for_one_load"]


@contextmanager
def for_one_load(config: Any, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Take back what a fusion registers.

    transformers 5.23 registers classes and weight conversions for a model type, and nothing takes them back:
    a model that is loaded later would be fused too, though nobody asked. A loaded model keeps its own
    conversions.

    Parameters:
        config: the model's config, which may ask for fusions.
        kwargs: `from_pretrained`'s, which go over it.
    """
    asked = kwargs.get("fusion_config", getattr(config, "fusion_config", None))
    if not asked:
        yield
        return
    try:
        from transformers import conversion_mapping as conversions
        from transformers import monkey_patching as patches
    except ImportError:  # a transformers without fusions
        yield
        return
    kind = config.model_type
    classes, before = patches.get_patch_mapping(), conversions.get_checkpoint_conversion_mapping(kind)
    try:
        yield
    finally:
        patches.clear_patch_mapping()
        patches.register_patch_mapping(classes)
        conversions.register_checkpoint_conversion_mapping(kind, before or [], overwrite=True)

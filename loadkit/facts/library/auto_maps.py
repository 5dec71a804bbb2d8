"""The maps of transformers' auto classes: which classes there are for each model type."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from loadkit.facts.library.keywords import read_keywords
from loadkit.facts.library.library import Library
from loadkit.facts.library.literals import known, text_items
from loadkit.facts.library.source_tree import SourceTree

__all__ = ["read_maps"]


def read_maps(tree: SourceTree, version: str) -> Library:
    """The maps of models/auto, without families; empty ones where it has none that can be read."""
    auto = f"{tree.root.name}.models.auto"
    names = tree.namespace(f"{auto}.configuration_auto")
    config_classes = _dictionary(names, "CONFIG_MAPPING_NAMES")
    auto_classes = _auto_classes(tree, f"{auto}.modeling_auto")
    special = _dictionary(names, "SPECIAL_MODEL_TYPE_TO_MODULE_NAME")
    deprecated = names.get("DEPRECATED_MODELS", ())
    model_types = dict.fromkeys(
        [*config_classes, *(key for classes in auto_classes.values() for key in classes)]
    )
    modules = {key: special.get(key, key.replace("-", "_")) for key in model_types}

    def classes(module: str, name: str) -> dict[str, tuple[str, ...]]:
        return _class_names(_dictionary(tree.namespace(f"{auto}.{module}"), name))

    return Library(
        version=version,
        auto_classes=auto_classes,
        config_classes=config_classes,
        modules={k: f"deprecated.{name}" if name in deprecated else name for k, name in modules.items()},
        tokenizer_classes=classes("tokenization_auto", "TOKENIZER_MAPPING_NAMES"),
        processor_classes=classes("processing_auto", "PROCESSOR_MAPPING_NAMES"),
        image_processor_classes=classes("image_processing_auto", "IMAGE_PROCESSOR_MAPPING_NAMES"),
        conversions=_conversions(tree),
        keywords=read_keywords(tree),
    )


def _auto_classes(tree: SourceTree, module: str) -> dict[str, dict[str, tuple[str, ...]]]:
    names = tree.namespace(module)
    parsed = tree.module(module)
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for source in parsed.classes.values() if parsed else ():
        mapping = known(source.values.get("_model_mapping"), names)
        if isinstance(mapping, dict):
            found[source.name] = _class_names(mapping)
    return found


def _conversions(tree: SourceTree) -> dict[str, str]:
    """The table that one module of transformers begins with; the rest of it isn't read."""
    module = tree.module(f"{tree.root.name}.conversion_mapping")
    for statement in module.body if module else ():
        match statement:
            case ast.Assign(targets=[ast.Name(id="_MODEL_TO_CONVERSION_PATTERN"), *_], value=value):
                return text_items(known(value))
    return {}


def _dictionary(names: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = names.get(name)
    return value if isinstance(value, dict) else {}


def _class_names(mapping: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Model type to class names, out of a name, several names, or a dictionary of backends."""
    found: dict[str, tuple[str, ...]] = {}
    for key, value in mapping.items():
        if isinstance(value, dict):
            value = [
                value[backend] for backend in sorted(value, key=lambda backend: backend != "torchvision")
            ]
        names = [value] if isinstance(value, str) else value or ()
        if kept := tuple(name for name in names if isinstance(name, str)):
            found[key] = kept
    return found

"""What transformers' source says: the maps of its auto classes, what its models and configs declare."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadkit.facts.library.library import ConfigFacts, Library, ModelFacts, ModuleFacts
from loadkit.facts.library.literals import evaluate
from loadkit.facts.library.source_tree import ClassSource, SourceTree

__all__ = ["Reader"]

_MODEL_ROOT = "PreTrainedModel"
_CONFIG_ROOT = "PreTrainedConfig"


class Reader:
    """Reads one installed transformers.

    Parameters:
        root: its folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._package = root.name
        self._tree = SourceTree(
            root,
            roots={
                _MODEL_ROOT: f"{self._package}.modeling_utils",
                _CONFIG_ROOT: f"{self._package}.configuration_utils",
                "PretrainedConfig": f"{self._package}.configuration_utils",  # the older spelling, an alias
            },
            # `_LazyAutoMapping(config map, model map)` is the model map, keyed by config class.
            functions={"_LazyAutoMapping": lambda configs, models: models},
        )

    def maps(self, version: str) -> Library:
        """The maps of models/auto, without families; empty ones where it has none that can be read."""
        auto = f"{self._package}.models.auto"
        names = self._tree.namespace(f"{auto}.configuration_auto")
        config_classes = _dictionary(names, "CONFIG_MAPPING_NAMES")
        auto_classes = self._auto_classes(f"{auto}.modeling_auto")
        special = _dictionary(names, "SPECIAL_MODEL_TYPE_TO_MODULE_NAME")
        deprecated = names.get("DEPRECATED_MODELS", ())
        model_types = dict.fromkeys(
            [*config_classes, *(key for classes in auto_classes.values() for key in classes)]
        )
        modules = {key: special.get(key, key.replace("-", "_")) for key in model_types}
        return Library(
            version=version,
            auto_classes=auto_classes,
            config_classes=config_classes,
            modules={
                key: f"deprecated.{name}" if name in deprecated else name for key, name in modules.items()
            },
            tokenizer_classes=self._classes(f"{auto}.tokenization_auto", "TOKENIZER_MAPPING_NAMES"),
            processor_classes=self._classes(f"{auto}.processing_auto", "PROCESSOR_MAPPING_NAMES"),
            image_processor_classes=self._classes(
                f"{auto}.image_processing_auto", "IMAGE_PROCESSOR_MAPPING_NAMES"
            ),
            conversions=self._conversions(),
        )

    def _conversions(self) -> dict[str, str]:
        """The table that one module of transformers begins with; the rest of it isn't read."""
        module = self._tree.module(f"{self._package}.conversion_mapping")
        name = "_MODEL_TO_CONVERSION_PATTERN"
        for statement in module.body if module else ():
            if isinstance(statement, ast.Assign) and _class_name(statement.targets[0]) == name:
                return _text_items(_value(statement.value))
        return {}

    def folder(
        self, name: str
    ) -> tuple[dict[str, ConfigFacts], dict[str, ModelFacts], dict[str, ModuleFacts], set[Path]]:
        """The config, model and module classes of a folder below models, by name, and every file it was read from."""
        self._tree.start()
        configs = [self._config_facts(mro) for mro in self._derived(name, "configuration_*.py", _CONFIG_ROOT)]
        models = [_model_facts(mro) for mro in self._derived(name, "modeling_*.py", _MODEL_ROOT)]
        keys = frozenset(key for config in configs for key in config.sub_configs)
        modules = {
            mro[0].name: found
            for mro in self._orders(name, "modeling_*.py")
            if (found := _module_facts(mro, keys)) != ModuleFacts()
        }
        visited = set(self._tree.visited)
        return {c.name: c for c in configs}, {m.name: m for m in models}, modules, visited

    def _auto_classes(self, module: str) -> dict[str, dict[str, tuple[str, ...]]]:
        names = self._tree.namespace(module)
        parsed = self._tree.module(module)
        found: dict[str, dict[str, tuple[str, ...]]] = {}
        for source in parsed.classes.values() if parsed else ():
            mapping = _value(source.values.get("_model_mapping"), names)
            if isinstance(mapping, dict):
                found[source.name] = _class_names(mapping)
        return found

    def _classes(self, module: str, name: str) -> dict[str, tuple[str, ...]]:
        return _class_names(_dictionary(self._tree.namespace(module), name))

    def _derived(self, folder: str, pattern: str, root: str) -> list[list[ClassSource]]:
        """The resolution orders of a folder's classes that derive from the root."""
        return [
            order for order in self._orders(folder, pattern) if any(each.name == root for each in order[1:])
        ]

    def _orders(self, folder: str, pattern: str) -> list[list[ClassSource]]:
        """The resolution orders of a folder's classes."""
        parts = folder.split(".")
        prefix = ".".join([self._package, "models", *parts])
        paths = sorted(self._root.joinpath("models", *parts).glob(pattern))
        modules = [module for path in paths if (module := self._tree.module(f"{prefix}.{path.stem}"))]
        return [self._tree.mro(source) for module in modules for source in module.classes.values()]

    def _config_facts(self, mro: list[ClassSource]) -> ConfigFacts:
        sub_configs, sub_config_classes = self._sub_configs(mro)
        return ConfigFacts(
            name=mro[0].name,
            module=mro[0].module,
            model_type=_text(_nearest(mro, "model_type")),
            sub_configs=sub_configs,
            sub_config_classes=sub_config_classes,
            fields=self._fields(mro),
            attribute_map=_text_items(_nearest(mro, "attribute_map")),
            tp_plan=_text_items(_nearest(mro, "base_model_tp_plan")),
        )

    def _fields(self, mro: list[ClassSource]) -> dict[str, Any]:
        """A dataclass's rule: annotated attributes of all bases that are dataclasses, nearest first."""
        found: dict[str, Any] = {}
        for source in reversed(mro):
            if not any(each.name == _CONFIG_ROOT for each in self._tree.mro(source)):
                continue  # a mixin isn't a dataclass
            for name, annotation in source.annotations.items():
                if "ClassVar" not in ast.dump(annotation):
                    found[name] = _plain(_value(_default(source.values.get(name))))
        return found

    def _sub_configs(self, mro: list[ClassSource]) -> tuple[dict[str, str], dict[str, str]]:
        """Nested configs: attribute to default model type, and to class.

        `sub_configs_defaults` maps to a class or a `SubConfigSpec`; the older `sub_configs`, which a few
        classes still set and which then counts, maps to classes only.
        """
        declared = [
            (each, name)
            for name in ("sub_configs", "sub_configs_defaults")
            for each in mro
            if name in each.values
        ]
        types: dict[str, str] = {}
        classes: dict[str, str] = {}
        for source, name in declared[:1]:
            node = source.values[name]
            for key, value in zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ():
                attribute = _text(_value(key))
                class_node, type_node = _specification(value)
                if not attribute or not isinstance(class_node, ast.Name):
                    continue
                found = (
                    None if class_node.id == "AutoConfig" else self._tree.find(source.module, class_node.id)
                )
                inherited = _text(_nearest(self._tree.mro(found), "model_type")) if found else ""
                types[attribute] = _text(_value(type_node)) or inherited
                classes[attribute] = found.name if found else class_node.id
        return types, classes


def _model_facts(mro: list[ClassSource]) -> ModelFacts:
    def flag(attribute: str) -> bool:
        return _nearest(mro, attribute) is True

    def names(attribute: str) -> tuple[str, ...]:
        found = _plain(_nearest(mro, attribute))
        return tuple(name for name in found if isinstance(name, str)) if isinstance(found, list) else ()

    return ModelFacts(
        name=mro[0].name,
        module=mro[0].module,
        supports_sdpa=flag("_supports_sdpa"),
        supports_flash_attn=flag("_supports_flash_attn"),
        supports_flex_attn=flag("_supports_flex_attn"),
        supports_attention_backend=flag("_supports_attention_backend"),
        supports_gradient_checkpointing=flag("supports_gradient_checkpointing"),
        config_class=_config_class(mro),
        no_split_modules=names("_no_split_modules"),
        keep_in_fp32_modules=names("_keep_in_fp32_modules"),
        keep_in_fp32_modules_strict=names("_keep_in_fp32_modules_strict"),
        compatible_flash_implementations=names("_compatible_flash_implementations"),
        tp_plan=_text_items(_nearest(mro, "_tp_plan")),
    )


def _module_facts(mro: list[ClassSource], sub_configs: frozenset[str]) -> ModuleFacts:
    members: dict[str, tuple[str, ...]] = {}
    given: dict[str, str] = {}
    for source in reversed(mro):
        members |= source.members
        kept = {name: key for name, key in source.given.items() if sub_configs and key in (*sub_configs, "")}
        given = {name: key for name, key in given.items() if name not in source.members} | kept
    return ModuleFacts(
        members=members,
        given=given,
        linear=any("Linear" in source.kin for source in mro),
        head=next((source.head for source in mro if source.head), ""),
        direct=tuple(dict.fromkeys(name for source in mro for name in source.direct)),
    )


def _config_class(mro: list[ClassSource]) -> str | None:
    """`config_class = X` before `config: X`, nearest class first (PreTrainedModel.__init_subclass__)."""
    for source in mro:
        for node in (source.values.get("config_class"), source.annotations.get("config")):
            if node is not None and (name := _class_name(node)):
                return name
    return None


def _class_name(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Constant(value=str(name)):
            return name
        case ast.BinOp(left=left, right=right):
            return " | ".join(name for side in (left, right) if (name := _class_name(side)))
    return ""


def _specification(node: ast.expr) -> tuple[ast.expr, ast.expr | None]:
    """The class and model type a nested config is declared with: X, or SubConfigSpec(X, model type)."""
    if not isinstance(node, ast.Call):
        return node, None
    given = dict(zip(("config_class", "model_type"), node.args, strict=False))
    given.update({keyword.arg: keyword.value for keyword in node.keywords if keyword.arg})
    return given.get("config_class", node), given.get("model_type")


def _default(node: ast.expr | None) -> ast.expr | None:
    """A field's default: the value, or what it is called with: `field(default=0.02)`."""
    keywords = node.keywords if isinstance(node, ast.Call) else []
    return next((keyword.value for keyword in keywords if keyword.arg == "default"), node)


def _nearest(mro: list[ClassSource], attribute: str) -> Any:
    return next((_value(each.values[attribute]) for each in mro if attribute in each.values), None)


def _value(node: ast.expr | None, names: Mapping[str, Any] | None = None) -> Any:
    if node is None:
        return None
    try:
        return evaluate(node, names)
    except ValueError:
        return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _text_items(value: Any) -> dict[str, str]:
    return {_text(key): _text(each) for key, each in value.items()} if isinstance(value, dict) else {}


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


def _plain(value: Any) -> Any:
    """The value as JSON has it; None for what JSON hasn't."""
    match value:
        case None | bool() | str():
            return value
        case int():
            return value if abs(value) < 2**63 else None
        case float():
            return value if math.isfinite(value) else None
        case list() | tuple():
            return [_plain(each) for each in value]
        case set() | frozenset():
            return sorted((_plain(each) for each in value), key=repr)
        case dict():
            return {str(key): _plain(each) for key, each in value.items()}
    return None

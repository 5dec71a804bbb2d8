"""What the model folders of transformers declare: their config classes, model classes and modules."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path
from typing import Any

from loadkit.facts.library.class_source import ClassSource
from loadkit.facts.library.library import ConfigFacts, ModelFacts, ModuleFacts
from loadkit.facts.library.literals import known, text, text_items
from loadkit.facts.library.multiplied import EXPERTS, FIRST_AXIS, expert_counts, routers
from loadkit.facts.library.source_tree import SourceTree

__all__ = ["read_folder", "source_of"]

_MODEL_ROOT = "PreTrainedModel"
_CONFIG_ROOT = "PreTrainedConfig"


def source_of(root: Path) -> SourceTree:
    """The source of the transformers that is installed in a folder."""
    return SourceTree(
        root,
        roots={
            _MODEL_ROOT: f"{root.name}.modeling_utils",
            _CONFIG_ROOT: f"{root.name}.configuration_utils",
            "PretrainedConfig": f"{root.name}.configuration_utils",  # the older spelling, an alias
        },
        # `_LazyAutoMapping(config map, model map)` is the model map, keyed by config class.
        functions={"_LazyAutoMapping": lambda configs, models: models},
    )


def read_folder(
    tree: SourceTree, name: str
) -> tuple[dict[str, ConfigFacts], dict[str, ModelFacts], dict[str, ModuleFacts], set[Path]]:
    """The config, model and module classes of a folder below models, and every file they were read from."""
    tree.start()
    configs = [_config_facts(tree, mro) for mro in _derived(tree, name, "configuration_*.py", _CONFIG_ROOT)]
    models = [_model_facts(mro) for mro in _derived(tree, name, "modeling_*.py", _MODEL_ROOT)]
    sub_configs = frozenset(key for config in configs for key in config.sub_configs)
    modules = {
        mro[0].name: found
        for mro in _orders(tree, name, "modeling_*.py")
        if (found := _module_facts(mro, sub_configs)) != ModuleFacts()
    }
    return {c.name: c for c in configs}, {m.name: m for m in models}, modules, set(tree.visited)


def _derived(tree: SourceTree, folder: str, pattern: str, root: str) -> list[list[ClassSource]]:
    """The resolution orders of a folder's classes that derive from the root."""
    orders = _orders(tree, folder, pattern)
    return [order for order in orders if any(each.name == root for each in order[1:])]


def _orders(tree: SourceTree, folder: str, pattern: str) -> list[list[ClassSource]]:
    """The resolution orders of a folder's classes."""
    parts = folder.split(".")
    prefix = ".".join([tree.root.name, "models", *parts])
    paths = sorted(tree.root.joinpath("models", *parts).glob(pattern))
    modules = [module for path in paths if (module := tree.module(f"{prefix}.{path.stem}"))]
    return [tree.mro(source) for module in modules for source in module.classes.values()]


def _config_facts(tree: SourceTree, mro: list[ClassSource]) -> ConfigFacts:
    sub_configs, sub_config_classes = _sub_configs(tree, mro)
    return ConfigFacts(
        name=mro[0].name,
        module=mro[0].module,
        model_type=text(_nearest(mro, "model_type")),
        sub_configs=sub_configs,
        sub_config_classes=sub_config_classes,
        fields=_fields(tree, mro),
        attribute_map=text_items(_nearest(mro, "attribute_map")),
        tp_plan=text_items(_nearest(mro, "base_model_tp_plan")),
        types=_types(tree, mro),
        settable=tuple(dict.fromkeys(name for source in mro for name in source.settable)),
    )


def _types(tree: SourceTree, mro: list[ClassSource]) -> dict[str, str]:
    """The annotations that values are held against: those that the nearest class declared `strict` knows.

    transformers' own base class postpones its annotations, which `strict` then doesn't read; what they say
    counts here all the same.
    """
    strict = next((i for i, source in enumerate(mro) if "strict" in source.decorators), len(mro))
    found: dict[str, str] = {}
    for source in reversed(mro[strict:]):
        if any(each.name == _CONFIG_ROOT for each in tree.mro(source)):
            found |= {name: ast.unparse(each) for name, each in source.annotations.items()}
    return {name: text for name, text in found.items() if "ClassVar" not in text}


def _fields(tree: SourceTree, mro: list[ClassSource]) -> dict[str, Any]:
    """A dataclass's rule: annotated attributes of all bases that are dataclasses, nearest first."""
    found: dict[str, Any] = {}
    for source in reversed(mro):
        if not any(each.name == _CONFIG_ROOT for each in tree.mro(source)):
            continue  # a mixin isn't a dataclass
        for name, annotation in source.annotations.items():
            if "ClassVar" not in ast.dump(annotation):
                found[name] = _plain(known(_default(source.values.get(name))))
    return found


def _sub_configs(tree: SourceTree, mro: list[ClassSource]) -> tuple[dict[str, str], dict[str, str]]:
    """Nested configs: attribute to default model type, and to class.

    `sub_configs_defaults` maps to a class or a `SubConfigSpec`; the older `sub_configs`, which a few classes
    still set and which then counts, maps to classes only.
    """
    attributes = ("sub_configs", "sub_configs_defaults")
    declared = [(each, name) for name in attributes for each in mro if name in each.values]
    types: dict[str, str] = {}
    classes: dict[str, str] = {}
    for source, name in declared[:1]:
        node = source.values[name]
        for key, value in zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ():
            attribute = text(known(key))
            class_node, type_node = _specification(value)
            if not attribute or not isinstance(class_node, ast.Name):
                continue
            found = None if class_node.id == "AutoConfig" else tree.find(source.module, class_node.id)
            inherited = text(_nearest(tree.mro(found), "model_type")) if found else ""
            types[attribute] = text(known(type_node)) or inherited
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
        ignored=names("_keys_to_ignore_on_load_unexpected"),
        compatible_flash_implementations=names("_compatible_flash_implementations"),
        tp_plan=text_items(_nearest(mro, "_tp_plan")),
        arguments=next((each.arguments for each in mro if each.arguments is not None), ())[1:],
    )


def _module_facts(mro: list[ClassSource], sub_configs: frozenset[str]) -> ModuleFacts:
    """What a class is made of; which config it hands on counts where its family has sub-configs."""
    members: dict[str, tuple[str, ...]] = {}
    given: dict[str, str] = {}
    shapes: dict[str, tuple[tuple[str, ...], ...]] = {}
    values: dict[str, tuple[str, ...]] = {}
    for source in reversed(mro):
        members |= source.members
        shapes = {name: each for name, each in shapes.items() if name not in source.members} | source.shapes
        values |= source.values_of_self
        given = {name: key for name, key in given.items() if name not in source.members} | source.given
    return ModuleFacts(
        members=members,
        given={name: key for name, key in given.items() if sub_configs and key in (*sub_configs, "")},
        linear=any("Linear" in source.kin for source in mro),
        head=next((source.head for source in mro if source.head), ""),
        direct=tuple(dict.fromkeys(name for source in mro for name in source.direct)),
        shapes=shapes,
        values=_named(shapes, values),
        packable=_packable(mro, members, shapes),
        experts=any(source.experts for source in mro),
        routers=routers(shapes, members),
    )


OTHERS = re.compile(r"Router|Gate$|Gating|Embedding")
"""Classes that choose experts, and those that look something up."""

LOOKED_UP = re.compile(r"emb|gate$")
"""Parameters that are no layer's weights, though they are multiplied with."""

STACKS = ("gate_up_proj", "up_proj", "down_proj")
"""What transformers' own functions for experts multiply with."""


def _packable(
    mro: list[ClassSource],
    members: dict[str, tuple[str, ...]],
    shapes: dict[str, tuple[tuple[str, ...], ...]],
) -> dict[str, str]:
    """Parameters that a class only multiplies with, as its own or its nearest methods tell."""
    if any(OTHERS.search(source.name) for source in mro):
        return {}
    own = {name for name, classes in members.items() if "Parameter" in classes}
    flat = expert_counts({name: shape for name, shape in shapes.items() if name in own})
    if any(source.experts for source in mro):
        return dict.fromkeys(filter(own.__contains__, STACKS), FIRST_AXIS)
    linear = [source for source in mro if "Linear" in source.kin]
    multiplied = {n for source in mro for n in source.multiplied if n in own and not LOOKED_UP.search(n)}
    if linear and all("weight" not in source.direct for source in mro):
        multiplied |= {"weight"}
    return {name: _units(shapes.get(name, ())) for name in sorted(multiplied)} | flat


def _units(shapes: tuple[tuple[str, ...], ...]) -> str:
    """Where a parameter has how many matrices it consists of: experts, if any, come first."""
    stacked = bool(shapes) and all(len(axes) > 2 and EXPERTS.fullmatch(axes[0]) for axes in shapes)
    return FIRST_AXIS if stacked else ""


def _named(
    shapes: dict[str, tuple[tuple[str, ...], ...]], values: dict[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """The attributes that the expressions of shapes name, and those that these name in turn."""
    kept: dict[str, tuple[str, ...]] = {}
    waiting = [axis for several in shapes.values() for axes in several for axis in axes]
    while waiting:
        for name in re.findall(r"\bself\.(\w+)", waiting.pop()):
            if name in values and name not in kept:
                kept[name] = values[name]
                waiting += values[name]
    return kept


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
    return next((known(each.values[attribute]) for each in mro if attribute in each.values), None)


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

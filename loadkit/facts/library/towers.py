"""The towers of a model: its parts for images and sound, known by the config that each is made from.

At load time such a part is a submodule whose `config` is a sub-config other than the text one. Here the
source of transformers tells the same: from the model's class down, which attribute is made from which
sub-config.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from loadkit.facts.library.library import Library, ModuleFacts
from loadkit.schema.values import ModelClass

__all__ = ["Towers", "is_projector", "read_towers", "tower_keys"]

PROJECTOR = re.compile(
    r"(^|\.)((multi_?modal|mm|vision|visual|image|audio|speech)_(projector|adapter|connector)|merger|connector|aligner|resampler|"
    r"embed_(vision|audio)|mlp_AR)(\.|$)"
)
"""What the part between a tower and the language model is called."""

NAME = re.compile(r"(vision|visual|image|audio|speech)(?!\w*(projector|adapter))|(^|\.)(vit|sam_model)(\.|$)")
"""What towers are called where no source tells: classes from elsewhere, files with names of their own."""

NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)")

TEXT = ("text_config", "decoder", "generator", "text_encoder")
"""Attributes by which transformers finds a config's text part (5.23: `get_text_config`)."""

LISTS = frozenset({"ModuleList", "ModuleDict"})


class Towers(msgspec.Struct, frozen=True):
    """Where the towers of a model class are.

    Parameters:
        paths: their paths in the model, "*" for a number; a part that the checkpoint's config leaves out may
            be among them.
        others: the paths of what stands beside them, down to where they part; empty where no source tells.
        known: whether the source of the class is known; if not, names tell.
    """

    paths: tuple[str, ...] = ()
    others: frozenset[str] = frozenset()
    known: bool = True

    def holds(self, path: str) -> bool:
        """Whether a module is in a tower.

        Parameters:
            path: as the model or a file spells it; files may leave the base model's name out.
        """
        if self.known and not self.paths:
            return False
        path = NUMBER.sub("*", path)
        bases = dict.fromkeys(first for tower in self.paths if (first := tower.partition(".")[0]) != tower)
        for spelled in (path, *(f"{base}.{path}" for base in bases)):
            if _within(spelled, self.paths):
                return True
            if _within(spelled, self.others) or any(_within(tower, [spelled]) for tower in self.paths):
                return False
        return NAME.search(path) is not None


def is_projector(path: str) -> bool:
    """Whether a module of a multimodal model stands between a tower and the language model."""
    return PROJECTOR.search(path) is not None


def tower_keys(sub_configs: Iterable[str], text: str) -> frozenset[str]:
    """Of a config's attributes that are configs, those that towers are made from.

    Parameters:
        sub_configs: the attributes.
        text: the one for the text part; "" where the config itself describes the language model (git): the
            names tell then.
    """
    return frozenset(key for key in sub_configs if key != text and (text or NAME.search(key)))


def read_towers(library: Library, config: Mapping[str, Any], model: ModelClass) -> Towers:
    """The towers of the class that loads a checkpoint.

    Parameters:
        library: the source of transformers, as far as it is the checkpoint's.
        config: config.json.
        model: the class.
    """
    family = library.families.get(library.model_type_of(config))
    if model.implementation != "transformers" or family is None:
        return Towers(known=False)
    sub_configs = family.config.sub_configs
    keys = tower_keys(sub_configs, next((key for key in TEXT if key in sub_configs), ""))
    if model.config_key or not keys:
        return Towers()
    walk = _Walk(library, keys)
    paths = walk.towers(model.model_class, "")
    return Towers(paths, frozenset(walk.others(model.model_class, paths)))


class _Walk:
    """Follows the members of classes.

    Parameters:
        library: the source.
        keys: attributes of the whole config that towers are made from.
    """

    def __init__(self, library: Library, keys: frozenset[str]) -> None:
        self._library = library
        self._keys = keys
        families = library.families.values()
        self._modules = {name: facts for family in families for name, facts in family.modules.items()}
        self._found: dict[tuple[str, str], tuple[str, ...]] = {}

    def towers(self, class_name: str, config: str) -> tuple[str, ...]:
        """Paths of the towers in a class.

        Parameters:
            class_name: the class.
            config: what it is made from: an attribute of the whole config, "" for all of it.
        """
        if (class_name, config) not in self._found:
            self._found[class_name, config] = ()  # for a class that holds itself
            found = dict.fromkeys(self._below(class_name, config))
            self._found[class_name, config] = tuple(found)
        return self._found[class_name, config]

    def _below(self, class_name: str, config: str) -> Iterator[str]:
        facts = self._facts(class_name)
        for member, classes in facts.members.items():
            own = facts.given.get(member, "")
            given = f"{config}.{own}" if config and own else own or config
            path = f"{member}.*" if LISTS & set(classes) else member
            unread = bool(own) and not any(each in self._modules for each in classes)
            if given in self._keys and (unread or any(self._keeps_config(each) for each in classes)):
                yield path
            else:
                yield from (f"{path}.{inner}" for each in classes for inner in self.towers(each, given))

    def others(self, class_name: str, towers: tuple[str, ...], prefix: str = "") -> Iterator[str]:
        """Paths of members that hold no tower, as far down as some beside them do."""
        for member, classes in self._facts(class_name).members.items():
            path = prefix + (f"{member}.*" if LISTS & set(classes) else member)
            if path in towers:
                continue
            if any(tower.startswith(f"{path}.") for tower in towers):
                for each in classes:
                    yield from self.others(each, towers, f"{path}.")
            else:
                yield path

    def _facts(self, class_name: str) -> ModuleFacts:
        return self._modules.get(class_name, ModuleFacts())

    def _keeps_config(self, class_name: str) -> bool:
        """Whether a class has its config as an attribute: models do, and modules that take it over."""
        model = class_name.startswith("Auto") or self._library.class_facts(class_name) is not None
        return model or "config" in self._facts(class_name).given


def _within(path: str, prefixes: Iterable[str]) -> bool:
    return any(path == prefix or path.startswith(f"{prefix}.") for prefix in prefixes)

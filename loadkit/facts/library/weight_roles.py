"""What a checkpoint's tensors are in the model: linear layers, embeddings, norms, fused experts, the head.

Read off the headers' names and the source of the installed transformers: a path such as
"model.layers.0.mlp.gate.weight" is followed through the classes whose constructors make "model", then
"layers", then "mlp", then "gate".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from loadkit.facts.checkpoint.checkpoint import Checkpoint, TensorHeader
from loadkit.facts.library.library import Library, ModuleFacts
from loadkit.schema.dtypes import SAFETENSORS_NAMES
from loadkit.schema.values import ModelClass

__all__ = ["Kind", "Weight", "read_weights"]

Kind = Literal["linear", "linear subclass", "head", "embedding", "norm", "experts", "other"]

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")
NORM = re.compile(r"Norm(\d+d)?$")
EXPERT = re.compile(r"\w+_projs?|w\d|weight\d|(gate|up|down)\w*")
"""Names of parameters that hold the weights of several experts."""

TORCH: Mapping[str, ModuleFacts] = {
    "MultiheadAttention": ModuleFacts(members={"out_proj": ("NonDynamicallyQuantizableLinear",)}),
    "NonDynamicallyQuantizableLinear": ModuleFacts(linear=True),
}
"""What torch's own modules are made of, where that isn't plain."""

BY_NAME: tuple[tuple[str, Kind], ...] = (
    (r"(^|\.)(lm_head|embed_out|output_projection|score|classifier)\.\w+$", "head"),
    (r"emb|(^|\.)(wte|wpe|shared)\.", "embedding"),
    (r"norm|(^|\.)ln_", "norm"),
    (r"\.experts\.", "experts"),
)
"""What a name says where no source tells more: remote code, a plugin's classes."""


class Weight(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of the checkpoint and what becomes of it.

    Parameters:
        name: in the file.
        module: the path of the module that holds it, as the file spells it.
        shape: its shape, a linear layer's outputs before its inputs (GPT-2's files have them the other way
            round).
        dtype: its dtype in the file, by torch's name.
        nbytes: its bytes in the file.
        kind: what it is: "linear" is the weight or bias of a plain `torch.nn.Linear` (or GPT-2's Conv1D).
    """

    name: str
    module: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    kind: Kind

    @property
    def count(self) -> int:
        """How many values it holds."""
        found = 1
        for size in self.shape:
            found *= size
        return found


def read_weights(checkpoint: Checkpoint, library: Library, model: ModelClass) -> tuple[Weight, ...]:
    """Every tensor of the files that the model will hold: of towers, those that are loaded.

    An output head that is stored beside the embedding counts, as transformers 5 ties the two only where they
    are equal.

    Parameters:
        checkpoint: its headers are read, not its weights.
        library: the source of transformers, as far as it is the model's.
        model: the class that loads it.
    """
    native = model.implementation == "transformers"
    modules = {**TORCH, **_modules(library)} if native and library.families else {}
    head = _head(modules, model.model_class)
    kinds: dict[tuple[str, int], tuple[Kind, bool]] = {}
    found = []
    for name, header in _taken(checkpoint, model).items():
        pattern = (NUMBER.sub("*", name), len(header.shape))
        if pattern not in kinds:
            kinds[pattern] = _kind(name, header, modules, head)
        kind, turned = kinds[pattern]
        found.append(
            Weight(
                name=name,
                module=name.rpartition(".")[0],
                shape=header.shape[::-1] if turned else header.shape,
                dtype=SAFETENSORS_NAMES.get(header.dtype, header.dtype.lower()),
                nbytes=header.nbytes,
                kind=kind,
            )
        )
    return tuple(found)


def _taken(checkpoint: Checkpoint, model: ModelClass) -> Mapping[str, TensorHeader]:
    """The tensors that the class has a place for: all, or those that its key mapping renames."""
    if not model.config_key:
        return checkpoint.tensors
    patterns = [re.compile(pattern) for pattern in model.key_mapping]
    return {
        name: header
        for name, header in checkpoint.tensors.items()
        if any(p.match(name) for p in patterns) or re.search(r"(^|\.)lm_head\.", name)
    }


def _modules(library: Library) -> dict[str, ModuleFacts]:
    return {name: facts for family in library.families.values() for name, facts in family.modules.items()}


def _head(modules: Mapping[str, ModuleFacts], model_class: str) -> str:
    """Where the class has its output head; "" where it has none."""
    facts = modules.get(model_class)
    if facts is None:
        return ""
    return facts.head or ("lm_head" if "lm_head" in facts.members else "")


def _kind(
    name: str, header: TensorHeader, modules: Mapping[str, ModuleFacts], head: str
) -> tuple[Kind, bool]:
    """What a tensor is, and whether it is stored with a linear layer's inputs first."""
    module, _, parameter = name.rpartition(".")
    if head and (module == head or module.endswith(f".{head}")):
        return "head", False
    names = [part for part in module.split(".") if not part.isdigit()]
    classes = _followed(names, modules) if modules else None
    if classes is None:
        return _by_name(name, header), False
    if "Conv1D" in classes and "Linear" not in classes:
        return "linear", True
    if "Linear" in classes and not head and len(names) == 1:
        return "head", False  # a classifier's
    return _of_classes(classes, header, parameter, modules), False


def _of_classes(
    classes: frozenset[str], header: TensorHeader, parameter: str, modules: Mapping[str, ModuleFacts]
) -> Kind:
    if classes == EXPERTS:
        return "experts"
    facts = [modules[c] for c in classes if c in modules]
    if "Linear" in classes:
        return "linear"
    if any(f.linear for f in facts):
        return "linear subclass"
    if any("Embedding" in c for c in classes):
        return "embedding"
    if any(NORM.search(c) for c in classes):
        return "norm"
    if len(header.shape) > 2 and any("Parameter" in f.members.get(parameter, ()) for f in facts):
        return "experts"
    return "other"


EXPERTS = frozenset({"(fused experts)"})
"""Stands for tensors of single experts that transformers stacks while loading."""


PARAMETER = frozenset({"Parameter"})


def _followed(names: list[str], modules: Mapping[str, ModuleFacts]) -> frozenset[str] | None:
    """The classes that a module at the end of a path may have; None where nothing is known of it."""
    here: frozenset[str] = frozenset()
    for name in names:
        below = _members(name, (modules[c] for c in here if c in modules))
        whole = below <= PARAMETER  # no module: files that have one there hold the experts one by one
        if whole and any(_stacked(modules[c]) for c in here if c in modules):
            return EXPERTS
        here = below or _members(
            name, modules.values()
        )  # renamed, or made in a way that the source doesn't show
    return here or None


def _members(name: str, facts: Iterable[ModuleFacts]) -> frozenset[str]:
    return frozenset(c for f in facts for c in f.members.get(name, ()))


def _stacked(facts: ModuleFacts) -> bool:
    """Whether a class keeps the weights of several experts in parameters of its own."""
    own = [name for name, classes in facts.members.items() if "Parameter" in classes]
    return any(EXPERT.fullmatch(name) for name in own)


def _by_name(name: str, header: TensorHeader) -> Kind:
    for pattern, kind in BY_NAME:
        if re.search(pattern, name):
            return kind
    return "linear" if len(header.shape) == 2 or name.endswith(".bias") else "other"

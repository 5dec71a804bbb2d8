"""What a checkpoint's tensors are in the model: linear layers, embeddings, norms, fused experts, the head.

Read off the headers' names and the source of the installed transformers: a path such as
"model.layers.0.mlp.gate.weight" is followed through the classes whose constructors make "model", then
"layers", then "mlp", then "gate".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from loadkit.facts.checkpoint.checkpoint import Checkpoint, TensorHeader
from loadkit.facts.library.library import Library, ModuleFacts
from loadkit.facts.library.multiplied import FIRST_AXIS
from loadkit.schema.dtypes import SAFETENSORS_NAMES
from loadkit.schema.values import ModelClass

__all__ = ["Kind", "Weight", "read_weights"]

Kind = Literal["linear", "linear subclass", "head", "embedding", "norm", "experts", "other"]

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")
LAYER, MTP = re.compile(r"(?:^|\.)layers\.(\d+)\."), re.compile(r"(?:^|\.)mtp\w*\.")
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
        home: the path of the module that has it in the model, of a packable parameter whose file has another;
            else the same.
        shape: its shape, a linear layer's outputs before its inputs (GPT-2's files have them the other way
            round).
        dtype: its dtype in the file, by torch's name.
        nbytes: its bytes in the file.
        kind: what it is: "linear" is the weight or bias of a plain `torch.nn.Linear` (or GPT-2's Conv1D).
        multiplied: where the model only multiplies with it, and it is no plain linear layer's: the parameter
            that it becomes, or a part of, by class and name ("MixtralExperts.gate_up_proj"); "" elsewhere.
        units: how many matrices of such a parameter it holds; a stored expert holds one, or a part of it.
        turned: whether the file and the model have it with its inputs first: a Conv1D's.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    kind: Kind
    multiplied: str = ""
    units: int = 1
    home: str = ""
    turned: bool = False

    def __post_init__(self) -> None:
        if not self.home:
            msgspec.structs.force_setattr(self, "home", self.module)

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
    kinds: dict[tuple[str, int], _Role] = {}
    found = []
    ignored = _ignored(checkpoint, library, model) if native else ()
    for name, header in _taken(checkpoint, model).items():
        if ignored and _is_beyond(name, checkpoint, ignored):
            continue
        pattern = (NUMBER.sub("*", name), len(header.shape))
        if pattern not in kinds:
            kinds[pattern] = _kind(name, header, modules, head)
        kind, turned, multiplied, units = kinds[pattern]
        count = _count(units, header, checkpoint)
        found.append(
            Weight(
                name=name,
                module=name.rpartition(".")[0],
                shape=header.shape[::-1] if turned else header.shape,
                dtype=SAFETENSORS_NAMES.get(header.dtype, header.dtype.lower()),
                nbytes=header.nbytes,
                kind=kind,
                multiplied=multiplied if count else "",
                units=count or 1,
                home=_home(name, multiplied, modules) if count else "",
                turned=turned,
            )
        )
    return tuple(found)


def _home(name: str, multiplied: str, modules: Mapping[str, ModuleFacts]) -> str:
    """Where the model has a packable parameter: the numbered layer of the file's name, and from there on the
    members that lead to its class; "" where the source doesn't show a way."""
    layer = NUMBER.search(name)
    if not multiplied or layer is None or not layer.start():
        return ""
    layers, below = name[: layer.start() - 1].rpartition(".")[2], name[layer.end() + 1 :].split(".")
    ways: list[tuple[tuple[str, ...], str]] = [((), multiplied.partition(".")[0])]
    for members, owner in ways:  # upwards, the shortest way first
        for class_name, facts in modules.items():
            for member in (each for each, classes in facts.members.items() if owner in classes):
                if member == layers:
                    return ".".join((name[: layer.end()], *members))
                if len(members) < DEEPEST:
                    ways.append(((member, *members), class_name))
    for members, _ in ways[1:]:  # what holds it isn't known, and the file calls it as the class does
        if members[0] in below:
            at = below.index(members[0])
            return ".".join((name[: layer.end()], *below[:at], *members))
    return ""


DEEPEST = 4
"""How many members lead from a layer to a stack of its experts, at most."""


class _Role(NamedTuple):
    """What a tensor is, whether it is stored with a linear layer's inputs first, the packable parameter that
    it belongs to, and where the number of its matrices stands."""

    kind: Kind
    turned: bool = False
    multiplied: str = ""
    units: str = ""


def _count(units: str, header: TensorHeader, checkpoint: Checkpoint) -> int:
    """How many matrices a tensor holds; 0 where that isn't known."""
    if not units:
        return 1
    if units == FIRST_AXIS:
        return header.shape[0]
    found = next(_within(checkpoint.config, units), 0)
    return found if found and header.shape[0] % found == 0 else 0


def _within(config: Mapping[str, Any], name: str) -> Iterator[int]:
    """A number of the config, or of one that is nested in it."""
    if isinstance(config.get(name), int):
        yield config[name]
    for value in config.values():
        if isinstance(value, Mapping):
            yield from _within(value, name)


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


def _ignored(checkpoint: Checkpoint, library: Library, model: ModelClass) -> tuple[re.Pattern[str], ...]:
    facts = library.class_facts(model.model_class)
    return tuple(map(re.compile, facts.ignored)) if facts else ()


def _is_beyond(name: str, checkpoint: Checkpoint, ignored: tuple[re.Pattern[str], ...]) -> bool:
    """Whether a tensor is of a layer after the last one, which predicts further tokens, and the class leaves
    it out. Its patterns count for nothing else: they may match tensors that it has a place for."""
    layers, found = checkpoint.text_config.get("num_hidden_layers"), LAYER.search(name)
    after = isinstance(layers, int) and found is not None and int(found[1]) >= layers
    return (after or bool(MTP.search(name))) and any(pattern.search(name) for pattern in ignored)


def _modules(library: Library) -> dict[str, ModuleFacts]:
    return {name: facts for family in library.families.values() for name, facts in family.modules.items()}


def _head(modules: Mapping[str, ModuleFacts], model_class: str) -> str:
    """Where the class has its output head; "" where it has none."""
    facts = modules.get(model_class)
    if facts is None:
        return ""
    return facts.head or ("lm_head" if "lm_head" in facts.members else "")


def _kind(name: str, header: TensorHeader, modules: Mapping[str, ModuleFacts], head: str) -> _Role:
    module, _, parameter = name.rpartition(".")
    if head and (module == head or module.endswith(f".{head}")):
        return _Role("head")
    names = [part for part in module.split(".") if not part.isdigit()]
    classes = _followed(names, modules) if modules else None
    own = {member for c in classes or () if c in modules for member in modules[c].members}
    if classes is None or "Linear" in classes or parameter not in own:
        stack = _renamed_stack(name, header, parameter, modules)
        if stack:
            return _Role("experts", False, stack, FIRST_AXIS)
    if classes is None:
        return _Role(_by_name(name, header))
    if "Conv1D" in classes and "Linear" not in classes:
        return _Role("linear", turned=True)
    if "Linear" in classes and not head and len(names) == 1:
        return _Role("head")  # a classifier's
    kind = _of_classes(classes, header, parameter, modules)
    return _Role(kind, False, *_multiplied(classes, header, names, parameter, kind, modules))


def _renamed_stack(
    name: str, header: TensorHeader, parameter: str, modules: Mapping[str, ModuleFacts]
) -> str:
    """A stack under a name of older releases, as granitemoe's "input_linear.weight": three axes, of which
    none is that of a convolution, in a family whose experts are such stacks; "" for any other tensor."""
    owners = [each for each, facts in modules.items() if [*facts.packable.values()].count(FIRST_AXIS) > 1]
    matrices = len(header.shape) == 3 and min(header.shape[1:]) > 4 and parameter.endswith("weight")
    if not owners or not matrices or re.search(r"conv|emb|norm", name):
        return ""
    leaf = name.split(".")[-2] if parameter == "weight" else parameter.removesuffix("_weight")
    down = leaf in DOWN or "down" in leaf
    wanted = [n for n in modules[owners[0]].packable if ("down" in n) is down]
    return f"{owners[0]}.{wanted[0]}" if wanted else ""


def _multiplied(
    classes: frozenset[str],
    header: TensorHeader,
    names: list[str],
    parameter: str,
    kind: Kind,
    modules: Mapping[str, ModuleFacts],
) -> tuple[str, str]:
    """The packable parameter that a tensor becomes, or a part of, and where its number of matrices stands."""
    if kind in ("linear", "embedding", "norm", "head") or len(header.shape) < 2:
        return "", ""
    alone = classes >= EXPERTS  # a single expert's
    for owner in sorted(classes - EXPERTS):
        packable = modules[owner].packable if owner in modules else {}
        if alone and packable:
            down = names[-1] in DOWN or "down" in names[-1]
            wanted = ("down_proj",) if down else ("gate_up_proj", "up_proj")
            name = next((each for each in wanted if each in packable), "")
            if name:
                return f"{owner}.{name}", ""
        elif parameter in packable:
            return f"{owner}.{parameter}", packable[parameter]
    return "", ""


DOWN = ("w2", "fc2", "output_linear", "wo", "linear_out")
"""What single experts' files call the layer that leads back to the hidden size."""


def _of_classes(
    classes: frozenset[str], header: TensorHeader, parameter: str, modules: Mapping[str, ModuleFacts]
) -> Kind:
    if classes >= EXPERTS:
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
        stacks = {c for c in here if c in modules and _stacked(modules[c])}
        if whole and stacks:
            return EXPERTS | stacks
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

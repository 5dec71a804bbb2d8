"""Whether config.json describes the tensors of the files, as far as headers tell."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any

from loadkit import Context, Plan, Problem
from loadkit.plugins import some_of
from loadkit_plugins.model_types import EXTRA_ROWS

__all__ = ["check_config"]

_problem = partial(Problem, "weights", "weights")

LAYER = re.compile(r"(?P<stack>(?:.*?\.)?(?:layers|h|blocks|layer|block))\.(?P<number>\d+)\.")
OF_ONE_STACK = ("causal-lm", "sequence-classification", "token-classification")
"""Tasks whose models are one stack of layers with a head."""

SIDE = re.compile(r"(?:^|\.)(encoder|decoder)\.")
SIDES = {"encoder": ("encoder_layers", "num_encoder_layers", "num_layers"), "decoder": ("decoder_layers", "num_decoder_layers")}  # fmt: skip
"""How configs with an encoder and a decoder call the counts of their layers."""

EMBEDDING = re.compile(r"(?:.*\.)?(?:embed_tokens|wte|word_embeddings|embed_in)\.weight")
OTHER_WIDTHS = (
    "embedding_size",
    "word_embed_proj_dim",
    "d_embed",
    "embedding_dim",
    "embed_dim",
    "input_embedding_size",
)
"""Config fields by which embeddings are of another width than what follows."""

WHOLE = ("BF16", "F16", "F32", "F64")
"""Dtypes of tensors that aren't packed."""

ALLOWED = "allow_weights lets pass what you mean to train anew or leave out"
REMEDY = f"restore the config.json that was saved with these weights; {ALLOWED}"


def check_config(context: Context, plan: Plan) -> Iterator[Problem]:
    """Layers and embeddings that config.json counts otherwise than the files have them."""
    if plan.model_class.implementation == "plugin":
        return
    towers = context.towers(plan.model_class)
    names = [name for name in context.checkpoint.tensors if not towers.holds(name)]
    config, given = _merged(context)
    allowed = [p for p in context.request.value("allow_weights", []) if _compiles(p)]
    names = [name for name in names if not any(re.search(p, name) for p in allowed)]
    plain = not towers.paths and plan.model_class.task in OF_ONE_STACK
    for stack, found, field, whole in _stacks(names, config, plain=plain):
        yield from _counted(stack, found, field, config, allowed, given, plain=whole)
    embeddings = list(_embeddings(context, names, config))
    yield from embeddings or _shapes(context, plan, names)


def _merged(context: Context) -> tuple[dict[str, Any], frozenset[str]]:
    """The text config with the request's fields, each also under the other names that the class has for it;
    and which of them are the request's."""
    family = context.library.families.get(context.library.model_type_of(context.checkpoint.config))
    names = family.config.attribute_map if family else {}
    spelt = [
        _spelt(given, names)
        for given in (context.checkpoint.text_config, context.request.value("model_kwargs", {}))
    ]
    return {**spelt[0], **spelt[1]}, frozenset(spelt[1])


def _spelt(given: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    pairs = [(other, field) for other, field in names.items() if other in given or field in given]
    values = {each: given.get(field, given.get(other)) for other, field in pairs for each in (other, field)}
    return {**given, **values}


def _shapes(context: Context, plan: Plan, names: list[str]) -> Iterator[Problem]:
    """Tensors whose shape in the files is another than config.json makes: loaded, they would be random."""
    if context.checkpoint.quantization_config or plan.model_class.key_mapping:
        return  # packed, or stored under other names
    expected = context.shapes(plan.model_class, context.request.value("model_kwargs", {}))
    tensors = context.checkpoint.tensors
    wrong = {
        name: shapes
        for name in names
        if (shapes := expected.get(name))
        and tensors[name].dtype in WHOLE
        and tensors[name].shape not in shapes
        and len(tensors[name].shape)
        in {len(shape) for shape in shapes}  # else stored in pieces, as experts are
    }
    if wrong:
        name = next(iter(wrong))
        made = " or ".join(" × ".join(map(str, shape)) for shape in sorted(wrong[name]))
        more = f", and so on for {len(wrong)} tensors ({some_of(wrong)})" if len(wrong) > 1 else ""
        yield _problem(
            "config-differs",
            f"by config.json {name} is {made}, and in the weight files it is {' × '.join(map(str, tensors[name].shape))}{more}: "
            "they would be random",
            REMEDY,
        )


def _stacks(names: list[str], config: dict[str, Any], *, plain: bool) -> Iterator[tuple[str, int, str, bool]]:
    """Stacks of layers, how many are in the files, the field that counts them, and whether it counts no
    others."""
    stacks: dict[str, int] = {}
    for name in names:
        if match := LAYER.match(name):
            stack, number = match["stack"], int(match["number"]) + 1
            stacks[stack] = max(number, stacks.get(stack, 0))
    if any("layers_per" in key or key.endswith("_cycles") for key in config):
        return  # layers run several times
    sided = {stack: side for stack in stacks if (side := SIDE.search(stack))}
    if len(stacks) == len(sided) > 1:
        for stack, side in sided.items():
            yield stack, stacks[stack], next((f for f in SIDES[side[1]] if f in config), ""), True
    elif stacks:
        stack, found = max(stacks.items(), key=lambda item: item[1])
        yield stack, found, "num_hidden_layers", plain and len(stacks) == 1


def _counted(
    stack: str,
    found: int,
    field: str,
    config: dict[str, Any],
    allowed: list[str],
    given: Collection[str],
    *,
    plain: bool,
) -> Iterator[Problem]:
    """A stack of layers against the field that counts it."""
    said = config.get(field)
    if not isinstance(said, int) or isinstance(said, bool):
        return
    missing = said > found and not any(re.search(p, f"{stack}.{found}.weight") for p in allowed)
    predicting = any(
        "nextn" in key or "mtp" in key for key in config
    )  # layers that predict further tokens come after
    left_over = plain and said < found and not predicting
    if missing or left_over:
        what = f"the other {said - found:,} would be random" if missing else "the others would be left out"
        who = "you gave" if field in given else "config.json has"
        yield _problem(
            "config-differs",
            f"{who} {field}={said:,}, and the weight files have {found:,} layers ({stack}.0 to {found - 1}): {what}",
            f"leave it out; {ALLOWED}" if field in given else REMEDY,
        )


def _embeddings(context: Context, names: list[str], config: dict[str, Any]) -> Iterator[Problem]:
    found = [name for name in names if EMBEDDING.fullmatch(name)]
    if len(found) != 1 or len(shape := context.checkpoint.tensors[found[0]].shape) != 2:
        return
    rows, width = config.get("vocab_size"), config.get("hidden_size")
    extra = EXTRA_ROWS.get(context.checkpoint.model_type, 0)
    if context.checkpoint.tensors[found[0]].dtype not in WHOLE:
        return
    fits_rows = not isinstance(rows, int) or shape[0] in (rows, rows + extra)
    fits_width = not isinstance(width, int) or shape[1] == width or any(key in config for key in OTHER_WIDTHS)
    if not (fits_rows and fits_width):
        yield _problem(
            "config-differs",
            f"config.json has vocab_size={rows} and hidden_size={width}, and {found[0]} is {shape[0]} × {shape[1]}",
            REMEDY,
        )


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True

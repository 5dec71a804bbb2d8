"""Whether a new adapter can be put on the layers that it names: what PEFT's layers and models refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from loadkit import Adapter, Context, Plan, Problem
from loadkit.plugins import some_of
from loadkit_plugins.adapter.target_checks import check_targets_of_type
from loadkit_plugins.adapter.targeted import effective_targets, targeted_layers
from loadkit_plugins.adapter.targets import owners_of
from loadkit_plugins.adapter.variants import check_variants

__all__ = ["check_layers"]

_problem = partial(Problem, "adapter", "adapter")

WITHOUT_CHECKPOINTING = ("CARTRIDGE", "PREFIX_TUNING")
"""PEFT's types that keep what they learn in the KV cache; 0.21 refuses them with checkpointing."""

VIRTUAL = "num_virtual_tokens"
MEGATRON = ("megatron-core", "megatron")
TYPES_OF_PROMPTS = ("CPT",)
"""Prompt types that count their tokens themselves."""

Said = Callable[[str], str]


def check_layers(context: Context, plan: Plan, adapter: Adapter, said: Said) -> Iterator[Problem]:
    """Every problem of a new adapter with the layers that it is for.

    Parameters:
        said: a field to the words for who gave it, and what.
    """
    yield from check_targets_of_type(context, plan, adapter, said)
    yield from _words(context, adapter, said)
    yield from _prompts(context, plan, adapter, said)
    yield from _tokens(context, adapter, said)
    yield from _linear(context, plan, adapter)
    yield from _embeddings(context, plan, adapter, said)
    yield from _parameters(context, adapter, said)
    targeted = [
        path for path, _, _ in targeted_layers(context, plan, effective_targets(context, plan, adapter))
    ]
    yield from _both_ways(context, plan, adapter, targeted, said)
    yield from check_variants(context, plan.model_class, adapter, targeted, said)


def _both_ways(
    context: Context, plan: Plan, adapter: Adapter, targeted: Sequence[str], said: Said
) -> Iterator[Problem]:
    """Layers that are named, and whose parameters are named too."""
    parameters = adapter.options.get("target_parameters") or ()
    owners = set(owners_of(parameters, context, plan.model_class)) if isinstance(parameters, list) else set()
    if both := [path for path in targeted if path in owners]:
        yield _problem(
            "fields-contradict",
            f"{said('target_parameters')}, and {said('target_modules')}: {some_of(both)} would be adapted twice, which PEFT refuses",
            "name the layers in one of the two; target_parameters is for weights that aren't a linear layer's, such as fused experts",
        )
    skipped = () if plan.quantized is None else plan.quantized.skip_modules
    packed = [path for path in owners if not any(f".{skip}." in f".{path}." for skip in skipped)]
    if plan.quantized is not None and packed:
        yield _problem(
            "target-cant-be-adapted",
            f"{said('target_parameters')}, and {some_of(sorted(packed))} is quantized ({plan.why('quantization').because}), so that its weight is packed",
            "name the layers in target_modules",
        )


def _words(context: Context, adapter: Adapter, said: Said) -> Iterator[Problem]:
    bias, known = adapter.options.get("bias"), context.peft_biases(adapter.peft_type)
    if isinstance(bias, str) and known and bias not in known:
        yield _problem(
            "bad-field",
            f"{said('bias')}, and {adapter.peft_type} has none of that name",
            f"choose one of {', '.join(sorted(known))}",
        )
    if adapter.options.get("megatron_config") and not any(map(context.machine.version, MEGATRON)):
        yield _problem(
            "no-megatron",
            f"{said('megatron_config')}, and the package megatron-core isn't installed",
            "pip install megatron-core, or leave it out",
        )


def _prompts(context: Context, plan: Plan, adapter: Adapter, said: Said) -> Iterator[Problem]:
    """Types that learn virtual tokens."""
    if plan.preparation.gradient_checkpointing and adapter.peft_type in WITHOUT_CHECKPOINTING:
        yield _problem(
            "adapter-with-checkpointing",
            f"a {adapter.peft_type} adapter was asked for, which keeps what it learns in the KV cache, and gradient checkpointing "
            f"leaves none ({plan.why('preparation').because})",
            "add gradient_checkpointing=False",
        )
    if VIRTUAL not in context.peft_fields(adapter.peft_type) or adapter.peft_type in TYPES_OF_PROMPTS:
        return
    count = adapter.options.get(VIRTUAL)
    if count is None or (isinstance(count, int) and count < 1):
        yield _problem(
            "bad-field",
            f"{said(VIRTUAL) if count is not None else f'the adapter is one of {adapter.peft_type}'}, which needs the number of virtual tokens",
            f"give {VIRTUAL}: 8, 20 or 100",
        )


def _tokens(context: Context, adapter: Adapter, said: Said) -> Iterator[Problem]:
    """Rows of embeddings that train on their own."""
    field = "token_indices" if adapter.peft_type == "TRAINABLE_TOKENS" else "trainable_token_indices"
    given = adapter.options.get(field)
    if given is None:
        return
    rows = context.checkpoint.text_config.get("vocab_size")
    sets: list[Any] = list(given.values()) if isinstance(given, dict) else [given]
    indices = [i for each in sets if isinstance(each, list) for i in each if isinstance(i, int)]
    if not indices:
        yield _problem(
            "bad-field", f"{said(field)}, which names no token", "give the ids of tokens, or leave it out"
        )
    wrong = [i for i in indices if i < 0 or (isinstance(rows, int) and i >= rows + _added(context))]
    of = f": the vocabulary has {rows:,} rows, counted from 0" if isinstance(rows, int) else ""
    if wrong:
        yield _problem(
            "bad-field",
            f"{said(field)}, and {some_of(map(str, wrong))} is no token{of}",
            "give the ids of tokens that are there",
        )


def _added(context: Context) -> int:
    """How many tokens the request may add."""
    return len(context.request.value("additional_special_tokens", [])) + 8


def _linear(context: Context, plan: Plan, adapter: Adapter) -> Iterator[Problem]:
    """What the layers of the type say to their widths and the config's numbers."""
    found: dict[tuple[int, ...], str] = {}
    for path, shape, kind in targeted_layers(context, plan, effective_targets(context, plan, adapter)):
        if kind == "linear" and len(shape) == 2 and not context.checkpoint.quantization_config:
            found.setdefault(shape, path)
    options: Mapping[str, Any] = {k: v for k, v in adapter.options.items() if k != "lora_dropout"}
    for (outputs, inputs), path in found.items() or {(None, None): ""}.items():
        if refused := context.peft_layer_refusal(adapter.peft_type, options, inputs, outputs):
            on = f" on {path} ({outputs} × {inputs})" if path else ""
            yield _problem(
                "peft-refuses",
                f"an adapter of {adapter.peft_type} was asked for, and PEFT refuses it{on}: {refused}",
                "correct the fields that it names, in the peft_config, or leave such layers out",
            )
            return


def _embeddings(context: Context, plan: Plan, adapter: Adapter, said: Said) -> Iterator[Problem]:
    """Embeddings among the targets of a type that has no layer for them."""
    if (
        context.peft_adapts(adapter.peft_type, "Embedding")
        or adapter.options.get("target_modules") == "all-linear"
    ):
        return
    targeted = targeted_layers(context, plan, adapter.options.get("target_modules"))
    if named := [path for path, _, kind in targeted if kind == "embedding"]:
        yield _problem(
            "target-cant-be-adapted",
            f"{said('target_modules')}, and {named[0]} is an embedding, which {adapter.peft_type} has no layer for",
            "leave it out, train it whole with modules_to_save, or use LoRA",
        )


def _parameters(context: Context, adapter: Adapter, said: Said) -> Iterator[Problem]:
    """Names of modules where those of parameters belong."""
    given, tensors = adapter.options.get("target_parameters"), context.checkpoint.tensors
    if not isinstance(given, list) or not tensors:
        return
    families = context.library.families.values()
    made = {
        name
        for family in families
        for facts in family.modules.values()
        for name, classes in facts.members.items()
        if "Parameter" in classes
    }
    known = {name.rpartition(".")[2] for name in tensors} | made
    wrong = [each for each in given if str(each).rpartition(".")[2] not in known]
    if wrong:
        yield _problem(
            "target-matches-nothing",
            f"{said('target_parameters')}, and {some_of(map(repr, wrong))} is no parameter",
            f"name parameters, such as {wrong[0]}.weight; modules belong into target_modules",
        )

"""What can't work about the adapters, found before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial

from loadkit import Adapter, Adapters, Checkpoint, Context, Plan, Problem
from loadkit.plugins import FLOATS, AdapterFacts, canonical_dtype, did_you_mean
from loadkit_plugins.adapter.experts import check_experts
from loadkit_plugins.adapter.field_checks import check_fields
from loadkit_plugins.adapter.fields import LORA_OPTIONS
from loadkit_plugins.adapter.foreign import check_foreign, trained_tokens
from loadkit_plugins.adapter.over_packed import check_over_packed
from loadkit_plugins.adapter.settings import needs_weights
from loadkit_plugins.adapter.targeted import targeted_layers

__all__ = ["check"]

_problem = partial(Problem, "adapter", "adapter")

LORA_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
NEEDS_DATA = ("eva", "corda", "lora_ga")
MORE_ROWS = 65_536
"""Rows beyond the vocabulary that an adapter may ask for, for rounding and tokens that it doesn't train."""

CHANGES_BASE = ("pissa", "olora", "loftq", "corda")


def check(context: Context, plan: Plan) -> Sequence[Problem]:
    """Every problem of the planned adapters."""
    return list(_problems(context, plan))


def _problems(context: Context, plan: Plan) -> Iterator[Problem]:
    guarded = bool(context.request.value("check_adapter_base", True))
    yield from _unused(context, plan)
    if plan.adapters is None:
        return
    if context.machine.version("peft") is None:
        yield _problem("no-peft", "an adapter was asked for, and peft isn't installed", "pip install peft")
    for name in context.peft_packages(plan.adapters.members[-1].peft_type):
        if context.machine.version(name) is None:
            yield _problem(
                "peft-needs-package",
                f"an adapter of {plan.adapters.members[-1].peft_type} was asked for, which needs {name}, and it isn't installed",
                f"pip install {name}, or choose another type",
            )
    yield from _dtype(context)
    yield from _active(context, plan.adapters)
    yield from _merging(context, plan, plan.adapters)
    if context.beside.adapters:
        for name, facts in context.beside.adapters.items():
            trains = any(a.name == name and a.trainable for a in plan.adapters.members)
            yield from check_foreign(name, facts, trainable=trains)
            yield from _base(context, name, facts, guarded)
            yield from _shapes(context.checkpoint, plan, name, facts)
            yield from _token_rows(context, name, facts)
    yield from _over_packed(context, plan, plan.adapters)
    if not plan.adapters.members[-1].source:
        yield from check_fields(context, plan, plan.adapters.members[-1])
        yield from _start(context, plan, plan.adapters.members[-1])
        yield from check_experts(context, plan, plan.adapters.members[-1])


def _over_packed(context: Context, plan: Plan, adapters: Adapters) -> Iterator[Problem]:
    """Types that PEFT can't compute over packed weights, new or existing."""
    for adapter in adapters.members:
        facts = context.beside.adapters.get(adapter.name) if adapter.source else None
        config = adapter.options if facts is None else facts.config
        given = config.get("target_modules")
        if plan.quantized is None or (facts is not None and isinstance(given, str)):
            given = None  # a pattern out of a file may take for ever to match
        named = targeted_layers(context, plan, given) if given else ()
        linear = [path for path, _, kind in named if kind == "linear"]
        yield from check_over_packed(context, plan, adapter, config, linear)


def _unused(context: Context, plan: Plan) -> Iterator[Problem]:
    """Options that have nothing to work on."""
    options = (*LORA_OPTIONS, "lora_experts")
    demanded = [name for name in options if (a := context.request.asked(name)) and a.demanded]
    if plan.adapters is None:
        more = ("merge_adapter", "active_adapter", "adapter_trainable")
        demanded += [n for n in more if (a := context.request.asked(n)) and a.demanded and a.value]
        if demanded:
            yield _problem(
                "lora-option-unused",
                f"you asked for {', '.join(demanded)}, but no adapter is attached",
                "add adapter=True, or leave them out",
            )
    elif (
        context.beside.adapters
        and not plan.adapters.beneath
        and (demanded or context.request.asked("peft_config"))
    ):
        sources = ", ".join(facts.source for facts in context.beside.adapters.values())
        yield _problem(
            "adapter-exists",
            f"you asked for {', '.join(demanded) or 'a peft_config'}, but {sources} is an adapter with settings of its own",
            "leave them out to go on with that adapter, name its base to start a new one, or add new_adapter=True for one over it",
        )
    wish = context.request.asked("dequantize")
    stored = plan.quantization is not None and plan.quantization.prequantized  # prequantized tells of those
    if wish is not None and wish.value and not (plan.adapters and plan.adapters.merge) and not stored:
        yield _problem(
            "dequantize-unused",
            "dequantize=True was asked for, but no adapter is merged",
            "add merge_adapter=True, or load without quantization",
        )


def _dtype(context: Context) -> Iterator[Problem]:
    asked = context.request.asked("adapter_dtype")
    if asked is not None and canonical_dtype(asked.value) not in ("auto", *FLOATS):
        yield _problem(
            "unknown-dtype",
            f"adapter_dtype={asked.value!r} was asked for ({asked.because}){did_you_mean(asked.value, FLOATS)}",
            f"choose auto or one of {', '.join(FLOATS)}",
        )


def _active(context: Context, adapters: Adapters) -> Iterator[Problem]:
    asked = context.request.asked("active_adapter")
    names = [a.name for a in adapters.members]
    if asked is not None and asked.value not in names:
        yield _problem(
            "unknown-adapter",
            f"active_adapter={asked.value!r} was asked for; the adapters are {', '.join(names)}{did_you_mean(asked.value, names)}",
            "name one of them",
        )


def _merging(context: Context, plan: Plan, adapters: Adapters) -> Iterator[Problem]:
    """Merging into quantized weights rounds the adapter away; merging what is to train makes no sense."""
    if not adapters.merge:
        return
    quantization, checkpoint = plan.quantized, context.checkpoint
    if plan.preparation.training:
        yield _problem(
            "merge-with-training",
            f"merge_adapter=True was asked for, and the model is loaded to train ({plan.why('preparation').because})",
            "merge after training: load the trained adapter with merge_adapter=True and without a training profile",
        )
    if quantization is None and adapters.dequantize:
        yield _problem(
            "dequantize-unused", "dequantize=True was asked for, but the base isn't quantized", "leave it out"
        )
    if quantization is None:
        return
    whole = f"{quantization.bits:g}-bit weights ({quantization.method})"
    if not adapters.dequantize:
        yield _problem(
            "merge-quantized",
            f"merge_adapter=True was asked for over {whole}: rounding to them again would lose much of what the adapter learned",
            "merge into the unquantized base (leave the quantization out), or add dequantize=True to get a model in floating point",
        )
        return
    size = checkpoint.weight_bytes
    grown = f"{size:,} bytes in the files" if size else "the quantized weights"
    yield _problem(
        "merge-dequantized",
        f"{whole} are turned back into {plan.dtype} before merging: {grown} become about {_floating(checkpoint, quantization.prequantized):,} "
        "bytes in memory, and the error of quantizing stays in them",
        "merging into the unquantized base costs the same memory, without the error",
        severity="warning",
    )


def _floating(checkpoint: Checkpoint, prequantized: bool) -> int:
    """About how many bytes the weights take in 16 bits; packed ones hold one weight a byte, or two."""
    total = 0
    for header in checkpoint.tensors.values():
        if prequantized and header.dtype == "U8" and len(header.shape) == 2 and header.shape[-1] == 1:
            total += header.nbytes * 4
        elif header.dtype in ("F8_E4M3", "F8_E5M2") or (prequantized and header.dtype == "I8"):
            total += header.nbytes * 2
        elif not prequantized and header.dtype == "U8" and len(header.shape) == 4:
            total += header.nbytes * 4
        elif not prequantized or header.dtype in ("BF16", "F16"):
            total += header.nbytes
    return total


def _base(context: Context, name: str, facts: AdapterFacts, guarded: bool) -> Iterator[Problem]:
    """Whether the adapter was made for this base."""
    named, checkpoint = facts.config.get("base_model_name_or_path"), context.checkpoint
    said = f"the adapter {facts.source!r} ({name}) was made for {named!r}"
    if facts.base_is_same is False and guarded:
        yield _problem(
            "adapter-base-differs",
            f"{said}, and {checkpoint.location!r} was asked for",
            f"load {named!r} with it, or pass check_adapter_base=False if one is a copy of the other",
        )
    elif facts.base_is_same is None and named:
        yield _problem(
            "adapter-base-unknown",
            f"{said}; whether {checkpoint.location!r} is the same model can't be told from here",
            "nothing need be done if it is a copy; shapes and names are checked",
            severity="note",
        )
    theirs, ours = facts.config.get("revision"), (checkpoint.revision, checkpoint.commit)
    by_default = theirs == "main" and not checkpoint.revision
    if checkpoint.kind == "hub" and isinstance(theirs, str) and theirs not in ours and not by_default:
        yield _problem(
            "adapter-base-revision",
            f"{said} at revision {theirs!r}; it is attached to {checkpoint.commit[:12]} ({checkpoint.revision or 'the default branch'})",
            f"pass revision={theirs!r} to load what it was made for",
            severity="warning",
        )


def _shapes(checkpoint: Checkpoint, plan: Plan, name: str, facts: AdapterFacts) -> Iterator[Problem]:
    """Whether the adapter's matrices fit the base's, as far as the headers of both tell."""
    if plan.model_class.key_mapping or facts.config.get("fan_in_fan_out"):
        return
    wrong = []
    for tensor, header in facts.tensors.items():
        match = LORA_TENSOR.fullmatch(tensor)
        base = checkpoint.tensors.get(f"{match['module']}.weight") if match else None
        if match and f"base_model.model.{match['module']}.base_layer.weight" in facts.tensors:
            continue  # resized, and saved with the adapter
        if match is None or base is None or len(base.shape) != 2 or base.dtype in ("U8", "I8"):
            continue
        side = 1 if match["part"] == "A" else 0
        if len(header.shape) == 2 and header.shape[side] != base.shape[side]:
            wrong.append(f"{tensor} {header.shape} over {match['module']}.weight {base.shape}")
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        yield _problem(
            "adapter-shape",
            f"the adapter {facts.source!r} ({name}) doesn't fit {checkpoint.location!r}: {wrong[0]}{more}",
            f"load it with the base that it was made for: {facts.config.get('base_model_name_or_path')!r}",
        )


def _token_rows(context: Context, name: str, facts: AdapterFacts) -> Iterator[Problem]:
    """Whether the rows of tokens that an adapter trains are rows that the embeddings have, or may get: they
    grow to hold the highest, whatever that is."""
    ids, checkpoint = trained_tokens(facts), context.checkpoint
    known = [
        checkpoint.text_config.get("vocab_size"),
        *(i + 1 for i in facts.processing.added_tokens.values()),
    ]
    rows = max((count for count in known if isinstance(count, int)), default=0)
    if ids and rows and max(ids) >= rows + len(ids) + MORE_ROWS:
        yield _problem(
            "adapter-shape",
            f"the adapter {facts.source!r} ({name}) trains the row of token {max(ids):,}, and the embeddings of "
            f"{checkpoint.location!r} have {rows:,}",
            "restore the adapter_config.json that was saved with it, or name the model that it was made for",
        )


def _start(context: Context, plan: Plan, adapter: Adapter) -> Iterator[Problem]:
    """Whether a new adapter can start as asked."""
    quantization = plan.quantized
    eight = quantization is not None and (quantization.method, quantization.bits) == ("bitsandbytes", 8)
    if adapter.options.get("use_dora") and eight and not context.machine.accelerators:
        yield _problem(
            "dora-8bit",
            "use_dora=True was asked for over 8-bit weights on the CPU: PEFT 0.21 reads them for DoRA in a way after which "
            "bitsandbytes 0.50 has no backward pass",
            "use load_in_4bit, or leave use_dora out",
        )
    init = adapter.options.get("init_lora_weights")
    if not isinstance(init, str):
        return
    kind = init.lower()
    if quantization is not None and needs_weights(init):
        yield _problem(
            "init-needs-weights",
            f"init_lora_weights={init!r} was asked for, which works on unquantized weights, and the base is quantized ({plan.why('quantization').because})",
            "load without quantization, or leave init_lora_weights out",
        )
    elif kind.startswith(NEEDS_DATA):
        yield _problem(
            "init-needs-data",
            f"init_lora_weights={init!r} was asked for, which is computed from data that only you have",
            "load with adapter=False, and attach the adapter by PEFT's own functions with your data",
        )
    elif kind.startswith(CHANGES_BASE):
        yield _problem(
            "init-changes-base",
            f"init_lora_weights={init!r} takes a part of the base's weights into the adapter: saved alone, it fits no other base",
            "merge it after training, or save it with PEFT's path_initial_model_for_weight_conversion",
            severity="warning",
        )
    if kind == "loftq" and context.machine.version("scipy") is None:
        yield _problem(
            "no-scipy", "init_lora_weights='loftq' needs scipy, which isn't installed", "pip install scipy"
        )

"""What a plan comes to, in a few lines: whether it fits, in which form, how it trains, and how fast."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from loadkit.schema.memory_text import bar, on_top
from loadkit.schema.rendering import Row
from loadkit.schema.value_text import placement_text, short_quantization, value_text
from loadkit.text.units import share, size

if TYPE_CHECKING:
    from loadkit.schema.adapters import Adapter
    from loadkit.schema.memory import Memory
    from loadkit.schema.plans import Plan

__all__ = ["verdict_rows"]

LISTED = 3
"""As many layers are named of those that an adapter is on."""

LONGEST = 40
"""Characters of a pattern that is shown."""

TARGETS: Mapping[str, str] = {"target_modules": "kinds of layer", "target_parameters": "kinds of parameter"}
"""Fields of an adapter that say what it is on, and what many of them are called."""


def verdict_rows(plan: Plan) -> list[Row]:
    """A line each: memory, model, weights, use, and speed."""
    rows = [
        _fits(plan.memory),
        Row("model", "; ".join(_model(plan))),
        Row("weights", "; ".join(_weights(plan))),
        Row(
            "training" if plan.preparation.training else "running", "; ".join(_use(plan)) or "evaluation mode"
        ),
    ]
    rows += (
        [Row("finished", "; ".join(f"{each.what} ({each.plugin})" for each in plan.finishes))]
        if plan.finishes
        else []
    )
    return [*rows, *_speed(plan)]


def _fits(memory: Memory | None) -> Row:
    if memory is None:
        return Row("memory", "not known before loading: the files aren't safetensors, whose headers tell it")
    rank = memory.per_rank
    total, model = (memory.total, memory.model) if rank is None else (rank.total, rank.weights)
    parts = {"model": model, "training": total - model}
    made_of = " + ".join(f"{name} {size(count)}" for name, count in parts.items() if count)
    where = memory.where
    if rank is not None:
        where = f"each {rank.device}" if rank.device != "the CPU" else "each process's CPU"
    beyond = f"{' and '.join(on_top(memory))} on top"
    if not memory.room:
        return Row("takes", f"{size(total)}{f' on {where}' if where else ''} ({made_of}; {beyond})")
    needed, least = (total, model) if rank is None else (max(total, rank.loading), max(model, rank.loading))
    verdict = "fits" if needed <= memory.room else "doesn't fit" if least > memory.room else "too tight"
    said = f"{size(total)} of the {size(memory.room)} of {where} ({share(total, memory.room)}), {beyond}"
    return Row(verdict, said, (f"{bar(memory)}  {made_of}",))


def _model(plan: Plan) -> Iterator[str]:
    yield value_text(plan.model_class).rpartition("→ ")[2]
    memory = plan.memory
    if memory is not None and memory.parameters:
        adapters = " beside adapters of unknown size" if memory.unknown else ""
        trained = f"{memory.trainable:,} of them train ({share(memory.trainable, memory.parameters)})"
        none = "none of them train" if not memory.unknown else ""
        said = trained if memory.trainable else none
        yield f"{memory.parameters:,} parameters{adapters}" + (f", {said}" if said else "")


def _weights(plan: Plan) -> Iterator[str]:
    yield plan.dtype
    if plan.quantization is not None:
        memory = plan.memory
        yield short_quantization(plan.quantization) + (
            f", {share(memory.quantized_parameters, memory.parameters)} of the parameters"
            if memory is not None and memory.quantized_parameters
            else ""
        )
    yield f"attention {value_text(plan.attn_implementation)}"
    placed = placement_text(plan.placement)
    yield placed if placed.startswith(("all on", "left to")) else f"device_map {placed}"


def _use(plan: Plan) -> Iterator[str]:
    adapters, preparation = plan.adapters, plan.preparation
    if adapters is not None:
        each = [_adapter(adapter) for adapter in adapters.members]
        yield ", ".join(each) + (", merged" if adapters.merge else "")
    elif preparation.training:
        yield "no adapter" if plan.quantized is not None else "all weights"
    if preparation.gradient_checkpointing:
        yield "gradient checkpointing"
    if preparation.frozen_parts:
        yield f"frozen: {', '.join(preparation.frozen_parts)}"
    if plan.use_cache is not None:
        yield f"key-value cache {'on' if plan.use_cache else 'off'}"


def _adapter(adapter: Adapter) -> str:
    if adapter.source:
        return f"{adapter.peft_type} from {adapter.source}" + ("" if adapter.trainable else ", frozen")
    rank = f" r={adapter.options['r']}" if adapter.options.get("r") else ""
    on = [_named(adapter.options.get(field), kinds) for field, kinds in TARGETS.items()]
    return f"{adapter.peft_type}{rank}" + (f" ({', '.join(filter(None, on))})" if any(on) else "")


def _named(names: Any, kinds: str) -> str:
    """What an adapter is on: the names, or of many or a long pattern that they are that."""
    if isinstance(names, str):
        return names if len(names) <= LONGEST else f"{kinds} by a pattern"
    every = list(names or ())
    return ", ".join(every) if len(every) <= LISTED else f"{len(every)} {kinds}"


def _speed(plan: Plan) -> Iterator[Row]:
    quick = [shortcut.line for shortcut in plan.shortcuts if shortcut.serves]
    slow = [shortcut.line for shortcut in plan.shortcuts if not shortcut.serves]
    if "eager" in str(plan.attn_implementation):
        slow.append("attention in plain torch (eager)")
    spread = plan.placement.device_map
    if isinstance(spread, dict) and {"cpu", "disk"} & set(map(str, spread.values())) and len(spread) > 1:
        slow.append("parts that wait in main memory or on disk")
    if quick:
        yield Row("quick", "; ".join(quick))
    if slow:
        yield Row("slow", "; ".join(slow))

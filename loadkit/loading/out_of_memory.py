"""What to say where memory ran out while loading: the plan's figures, and what would take less."""

from __future__ import annotations

import re

from loadkit.schema.plans import Plan
from loadkit.text.units import size

__all__ = ["is_out_of_memory", "memory_remedy"]

SAID = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|std::bad_alloc",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library ran out of memory; torch raises a RuntimeError on the CPU, its own class on a GPU."""
    own = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return own or (isinstance(error, RuntimeError | OSError) and bool(SAID.search(str(error))))


def memory_remedy(plan: Plan) -> str:
    """A remedy by the plan's figures."""
    memory, quantization = plan.memory, plan.quantization
    said = ""
    if memory is not None:
        room = f", and {memory.where} has {size(memory.room)} in all" if memory.room else ""
        said = f"the plan counts {size(memory.model)} of memory for the model{room}: "
    ways = ["free what other processes hold"]
    if quantization is None:
        ways.append("quantize it (load_in_4bit=True)")
    if plan.dtype == "float32" and quantization is None:
        ways.append("load in 16 bits (dtype='bfloat16')")
    if not plan.placement.spreads:
        ways.append("spread it (device_map='auto')" if not plan.topology else "shard it (FSDP or ZeRO-3)")
    return f"{said}{', '.join(ways)}, or choose a smaller model"

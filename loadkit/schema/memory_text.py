"""How an estimate of memory reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from loadkit.text.units import size

if TYPE_CHECKING:
    from loadkit.schema.memory import Memory, RankMemory

__all__ = ["memory_lines"]

BAR = 30
"""Columns of the bar of memory."""


def memory_lines(memory: Memory) -> Text:
    """What a plan takes: a bar in proportion, then the parts by name."""
    parts = [
        ("█", memory.quantized, "quantized"),
        ("▓", sum(memory.weights.values()), " + ".join(memory.weights)),
        ("▒", memory.constants, "constants"),
        ("░", memory.adapters, "adapters"),
        ("▚", memory.gradients, "gradients"),
        ("▞", memory.optimizer, f"state of {memory.optim}"),
    ]
    held = [part for part in parts if part[1]]
    lines = Text("".join(mark * max(1, round(BAR * count / memory.total)) for mark, count, _ in held))
    of = f" of the {size(memory.room)} of {memory.where}" if memory.room else ""
    lines.append(f"  {size(memory.total)}{of if memory.per_rank is None else ' in all'}")
    named = [f"{mark} {name} {size(count)}" for mark, count, name in held]
    for first in range(0, len(named), 2):
        lines.append("\n" + " · ".join(named[first : first + 2]), style="dim")
    if memory.unquantized:
        said = ", ".join(f"{reason} {size(count)}" for reason, count in memory.unquantized.items())
        lines.append(f"\nnot quantized: {said}", style="dim")
    if memory.per_rank is not None:
        lines.append(_rank_lines(memory.per_rank, memory.room))
    on_top = [*(f"the {part}, whose size isn't known before" for part in memory.unknown), "activations"]
    lines.append(f"\non top: {', '.join(on_top)}", style="dim")
    return lines


def _rank_lines(rank: RankMemory, room: int) -> str:
    """What each process and each node takes."""
    parts = {"weights": rank.weights, "gradients": rank.gradients, "optimizer": rank.optimizer}
    held = ", ".join(f"{name} {size(count)}" for name, count in parts.items() if count)
    of = f" of the {size(room)} there" if room else ""
    lines = [f"each process, on {rank.device}: {size(rank.total)}{of} ({held}): {rank.shared}"]
    if rank.loading > rank.weights:
        lines.append(f"while loading, each device: {size(rank.loading)}")
    lines.append(
        f"while loading, each node's main memory: {size(rank.host_shared)} mapped once for {rank.processes} processes, "
        f"{size(rank.host_own)} of their own"
    )
    lines.append(rank.how)
    return "\n" + "\n".join(lines)

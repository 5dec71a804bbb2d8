"""How an estimate of memory reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadkit.schema.rendering import Row
from loadkit.text.units import size

if TYPE_CHECKING:
    from loadkit.schema.memory import Memory, RankMemory

__all__ = ["bar", "memory_row", "memory_text"]

BAR = 30
"""Columns of the bar of memory."""


def memory_text(memory: Memory) -> str:
    """An estimate as plain text."""
    row = memory_row(memory)
    return "\n".join((row.text, *row.below))


def memory_row(memory: Memory) -> Row:
    """What a plan takes: a bar to the scale of what there is, then the parts by name."""
    held = [part for part in _parts(memory) if part[1]]
    of = f" of the {size(memory.room)} of {memory.where}" if memory.room else ""
    rank = memory.per_rank
    amount = (
        size(memory.total) if rank is None else f"{size(memory.total)} in all, {size(rank.total)} a process"
    )
    whole = f"{bar(memory)}  {amount}{of}"
    named = [f"{mark} {name} {size(count)}" for mark, count, name in held]
    lines = [" · ".join(named[first : first + 2]) for first in range(0, len(named), 2)]
    if memory.unquantized:
        said = ", ".join(f"{reason} {size(count)}" for reason, count in memory.unquantized.items())
        lines.append(f"not quantized: {said}")
    if rank is not None:
        lines += _rank_lines(rank, memory.room)
    lines.append(f"on top: {', '.join(on_top(memory))}")
    return Row("memory", whole, tuple(lines))


def bar(memory: Memory) -> str:
    """The parts of it, as wide as the room there is; where they are more than that, `|` is its end.

    Of several processes, those of one; where the room isn't known, the parts alone fill the bar.
    """
    rank, room, parts = memory.per_rank, memory.room, _parts(memory)
    if rank is not None:
        parts = [("▓", rank.weights, ""), ("▚", rank.gradients, ""), ("▞", rank.optimizer, "")]
    total = sum(count for _, count, _ in parts)
    scale = max(total, room, 1)
    cells, covered = "", 0
    for mark, count, _ in parts:
        covered += count
        cells += mark * (round(BAR * covered / scale) - len(cells))
    if total and not cells:
        cells = "▏"
    cells = cells.ljust(BAR, "·") if room else cells
    if room and total > room:
        end = min(BAR * room // total, BAR - 1)
        cells = f"{cells[:end]}|{cells[end:]}"
    return cells


def on_top(memory: Memory) -> list[str]:
    """What isn't counted."""
    return ["activations", *(f"{part} of unknown size" for part in memory.unknown)]


def _parts(memory: Memory) -> list[tuple[str, int, str]]:
    """Mark, bytes and name of each part."""
    return [
        ("█", memory.quantized, "quantized"),
        ("▓", sum(memory.weights.values()), " + ".join(memory.weights)),
        ("▒", memory.constants, "constants"),
        ("░", memory.adapters, "adapters"),
        ("▚", memory.gradients, "gradients"),
        ("▞", memory.optimizer, f"state of {memory.optim}"),
    ]


def _rank_lines(rank: RankMemory, room: int) -> list[str]:
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
    return [*lines, rank.how]

"""Lines that libraries print while a model loads, and that mislead: each by name, with the reason."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

__all__ = ["KNOWN_NOISE", "Noise", "without_known_noise"]


class Noise(NamedTuple):
    """A line of a library's log that is left out while loadkit loads.

    Parameters:
        logger: the exact name of the logger that writes it.
        line: a pattern that its text begins with.
        reason: why it misleads, or is told better.
        unless: a pattern of what must not be in it.
    """

    logger: str
    line: str
    reason: str
    unless: str = ""


KNOWN_NOISE: tuple[Noise, ...] = (
    Noise(
        "bitsandbytes.backends.cpu.ops",
        "Failed to load CPU gemm_4bit_forward from kernels-community",
        "it advises to install kernels, with which bitsandbytes 0.50 fetches code from the Hub and runs it; loadkit "
        "doctor says so, and brings CPU kernels of its own",
    ),
    Noise(
        "torchao",
        r"Failed to load \S+_C\w*(\.[\w-]+)*\.so",
        "torchao 0.18 tries its GPUs' libraries on every machine; those for other hardware or another Python fail, and "
        "nothing that the plan uses needs them",
    ),
    Noise(
        "torch.utils._pytree",
        r".* is an Enum subclass and is now natively supported",
        "a notice for torchao's authors (torchao 0.18 with torch 2.13): nothing that a user can change",
    ),
    Noise(
        "transformers.modeling_utils",
        r"(\x1b\[\d+m)?\w+(\x1b\[\d+m)? LOAD REPORT",
        "the audit says which tensors of the files have no place in the model, and whether that is expected; "
        "transformers 5.23 can't tell the two apart",
        unless="MISSING|MISMATCH|CONVERSION",
    ),
)
"""What is left out, once and for all loads. Whatever else a library says is printed as ever."""


@contextmanager
def without_known_noise() -> Iterator[None]:
    """Leave these lines out of the libraries' logs until the block ends; all others pass."""
    quiet = [(logging.getLogger(noise.logger), _filter(noise)) for noise in KNOWN_NOISE]
    for logger, leave_out in quiet:
        logger.addFilter(leave_out)
    try:
        yield
    finally:
        for logger, leave_out in quiet:
            logger.removeFilter(leave_out)


def _filter(noise: Noise) -> logging.Filter:
    line, unless = re.compile(noise.line), re.compile(noise.unless) if noise.unless else None

    class LeaveOut(logging.Filter):
        """Passes everything but that line."""

        def filter(self, record: logging.LogRecord) -> bool:
            text = record.getMessage()
            return not line.match(text) or (unless is not None and bool(unless.search(text)))

    return LeaveOut()

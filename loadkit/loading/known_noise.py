"""Lines that libraries print on the way to a model, and that mislead: each by name, with the reason."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

__all__ = ["KNOWN_NOISE", "Noise", "leave_out_for_good", "without_known_noise"]


class Noise(NamedTuple):
    """A line of a library's log that is left out while loadkit loads.

    Parameters:
        logger: the exact name of the logger that writes it.
        line: a pattern that its text begins with.
        reason: why it misleads, or is told better.
        unless: a pattern of what must not be in it.
        from_import_on: whether it is left out from `import loadkit` on, as a script prints it by importing
            other libraries beside loadkit.
    """

    logger: str
    line: str
    reason: str
    unless: str = ""
    from_import_on: bool = False


KNOWN_NOISE: tuple[Noise, ...] = (
    Noise(
        "bitsandbytes.backends.cpu.ops",
        "Failed to load CPU gemm_4bit_forward from kernels-community",
        "it advises to install kernels, with which bitsandbytes 0.50 fetches code from the Hub and runs it; loadkit "
        "doctor says so, and brings CPU kernels of its own. TRL and PEFT import bitsandbytes, before anything is loaded",
        from_import_on=True,
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
    quiet = [(logging.getLogger(noise.logger), _LeaveOut(noise)) for noise in KNOWN_NOISE]
    for logger, leave_out in quiet:
        logger.addFilter(leave_out)
    try:
        yield
    finally:
        for logger, leave_out in quiet:
            logger.removeFilter(leave_out)


def leave_out_for_good() -> None:
    """Leave out what is to be left out from `import loadkit` on; once a process."""
    for noise in KNOWN_NOISE:
        logger = logging.getLogger(noise.logger)
        if noise.from_import_on and not any(isinstance(each, _LeaveOut) for each in logger.filters):
            logger.addFilter(_LeaveOut(noise))


class _LeaveOut(logging.Filter):
    """Passes everything but one line."""

    def __init__(self, noise: Noise) -> None:
        super().__init__()
        self._line, self._unless = re.compile(noise.line), re.compile(noise.unless) if noise.unless else None

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not self._line.match(text) or (self._unless is not None and bool(self._unless.search(text)))

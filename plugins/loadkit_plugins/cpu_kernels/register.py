"""Register the kernels for the time of a load, once they have shown that they give bitsandbytes' own bits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from numba import config

from loadkit_plugins.cpu_kernels import four_bit, int8_rows, operators
from loadkit_plugins.cpu_kernels.compile import forget, keep, told
from loadkit_plugins.cpu_kernels.self_test import differing
from loadkit_plugins.cpu_kernels.threads import Crew, usable_cores

__all__ = ["serve"]


class _Kernel(NamedTuple):
    """A kernel that can serve an operator: its compiled function, and what makes the operator of it."""

    compiled: Any
    make: Callable[[operators.Own, Crew], operators.Own]


KERNELS: Final[Mapping[str, _Kernel]] = {
    operators.FOUR_BIT: _Kernel(four_bit.quantize, operators.quantize_4bit),
    operators.ROWS: _Kernel(int8_rows.quantize_rows, operators.quantize_rows),
}


class _Service(NamedTuple):
    """A kernel on duty."""

    library: Any
    crew: Crew


_lock = threading.RLock()
_verdicts: dict[str, str] = {}
"""What came of the comparison, once in a process."""
_services: dict[str, _Service] = {}
_loads: dict[str, int] = {}
"""How many loads use a kernel now: the last one takes it off duty."""


@contextmanager
def serve(operator: str, folder: Path | None, say: Callable[[str], None]) -> Iterator[str]:
    """Let the compiled kernel serve one of bitsandbytes' operators on the CPU until the block ends.

    bitsandbytes registers nothing for the CPU itself there, but a kernel for every device that has none of its own: so ours takes nobody's
    place, and when it goes, bitsandbytes' serves again.

    Parameters:
        operator: a key of `KERNELS`.
        folder: where compiled code is kept; None to compile in memory.
        say: told before the kernel is made ready.

    Yields:
        "" where it serves, else why bitsandbytes' own does.
    """
    with _lock:
        refused = _start(operator, folder, say)
    try:
        yield refused
    finally:
        if not refused:
            with _lock:
                _stop(operator)


def _start(operator: str, folder: Path | None, say: Callable[[str], None]) -> str:
    if operator in _services:
        _loads[operator] += 1
        return ""
    import bitsandbytes  # noqa: F401  (defines the operators)

    if torch._C._dispatch_has_kernel_for_dispatch_key(f"bitsandbytes::{operator}", "CPU"):
        return "a kernel of somebody else's is registered already"
    own = operators.own_kernel(operator)
    crew = Crew(usable_cores())
    kernel = KERNELS[operator].make(own, crew)
    if operator not in _verdicts:
        _verdicts[operator] = _compare(operator, kernel, own, folder, say)
    if _verdicts[operator]:
        crew.close()
        return _verdicts[operator]
    make: Any = torch.library.Library  # untyped in torch 2.13
    library = make("bitsandbytes", "IMPL")
    library.impl(operator, kernel, "CPU")
    _services[operator] = _Service(library, crew)
    _loads[operator] = 1
    return ""


def _stop(operator: str) -> None:
    _loads[operator] -= 1
    if not _loads[operator]:
        library, crew = _services.pop(operator)
        library._destroy()
        crew.close()


def _compare(
    operator: str, kernel: operators.Own, own: operators.Own, folder: Path | None, say: Callable[[str], None]
) -> str:
    """Why the kernel mustn't serve; "" where it may. Compiles it."""
    if config.DISABLE_JIT:
        return "NUMBA_DISABLE_JIT is set"
    compiled = KERNELS[operator].compiled
    with told(say):
        kept = keep(compiled, folder)
        try:
            differs = differing(operator, kernel, own)
        except Exception:
            if not kept:
                raise
            forget(compiled)  # what is kept of it is damaged
            differs = differing(operator, kernel, own)
    return f"the compiled one gives other bits for {differs}" if differs else ""

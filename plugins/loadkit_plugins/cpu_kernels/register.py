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
from loadkit_plugins.cpu_kernels.compile import forget, keep, reports_compiling
from loadkit_plugins.cpu_kernels.self_test import first_difference
from loadkit_plugins.cpu_kernels.threads import WorkerThreads, usable_cores

__all__ = ["registered"]


class _Kernel(NamedTuple):
    """A compiled function, and what makes an operator of it."""

    compiled: Any
    make: Callable[[operators.Own, WorkerThreads], operators.Own]


KERNELS: Final[Mapping[str, _Kernel]] = {
    operators.FOUR_BIT: _Kernel(four_bit.quantize, operators.quantize_4bit),
    operators.ROWS: _Kernel(int8_rows.quantize_rows, operators.quantize_rows),
}


class _Registration(NamedTuple):
    library: Any
    threads: WorkerThreads


_lock = threading.RLock()
_verdicts: dict[str, str] = {}
"""What came of the self-test, which runs once in a process."""
_registrations: dict[str, _Registration] = {}
_loads: dict[str, int] = {}
"""How many loads use a kernel now: with the last one it goes."""


@contextmanager
def registered(operator: str, folder: Path | None, progress: Callable[[str], None]) -> Iterator[str]:
    """Have the compiled kernel do one of bitsandbytes' operators on the CPU until the block ends.

    bitsandbytes registers nothing for the CPU itself there, but a kernel for every device that has none of
    its own: so ours takes nobody's place, and when it goes, bitsandbytes' is found again.

    Parameters:
        operator: a key of `KERNELS`.
        folder: where compiled code is kept; None to compile in memory.
        progress: called before the kernel is compiled.

    Yields:
        "" where the kernel is used, else why bitsandbytes' own is.
    """
    with _lock:
        refused = _register(operator, folder, progress)
    try:
        yield refused
    finally:
        if not refused:
            with _lock:
                _unregister(operator)


def _register(operator: str, folder: Path | None, progress: Callable[[str], None]) -> str:
    if operator in _registrations:
        _loads[operator] += 1
        return ""
    import bitsandbytes  # noqa: F401  (defines the operators)

    if torch._C._dispatch_has_kernel_for_dispatch_key(f"bitsandbytes::{operator}", "CPU"):
        return "a kernel of somebody else's is registered already"
    own = operators.own_kernel(operator)
    threads = WorkerThreads(usable_cores())
    kernel = KERNELS[operator].make(own, threads)
    if operator not in _verdicts:
        _verdicts[operator] = _test(operator, kernel, own, folder, progress)
    if _verdicts[operator]:
        threads.close()
        return _verdicts[operator]
    make: Any = torch.library.Library  # untyped in torch 2.13
    library = make("bitsandbytes", "IMPL")
    library.impl(operator, kernel, "CPU")
    _registrations[operator] = _Registration(library, threads)
    _loads[operator] = 1
    return ""


def _unregister(operator: str) -> None:
    _loads[operator] -= 1
    if not _loads[operator]:
        library, threads = _registrations.pop(operator)
        library._destroy()
        threads.close()


def _test(
    operator: str,
    kernel: operators.Own,
    own: operators.Own,
    folder: Path | None,
    progress: Callable[[str], None],
) -> str:
    """Why the kernel mustn't be used; "" where it may. Compiles it."""
    if config.DISABLE_JIT:
        return "NUMBA_DISABLE_JIT is set"
    compiled = KERNELS[operator].compiled
    with reports_compiling(progress):
        kept = keep(compiled, folder)
        try:
            differs = first_difference(operator, kernel, own)
        except Exception:
            if not kept:
                raise
            forget(compiled)  # what is kept of it is damaged
            differs = first_difference(operator, kernel, own)
    return f"the compiled one gives other bits for {differs}" if differs else ""

"""The cores that a load may use, for kernels that hold no lock."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

__all__ = ["Crew", "usable_cores"]

SOFT = 1
"""OpenMP's `omp_pause_soft`: threads go, settings stay."""


def usable_cores() -> int:
    """How many threads may work at once: torch's setting, and no more than the cores that this process may run on."""
    import torch

    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(int(torch.get_num_threads()), here))


class Crew:
    """Threads that share out one range of work. The caller does a part too, so several callers never wait for each other's queue alone.

    A plain pool, not numba's threading layers: its workqueue layer may be entered by one thread only, and its OpenMP layer ends forked children
    (numba 0.68). A forked child has none of these threads, so there everything is done by the caller.

    Parameters:
        threads: how many work at once, the caller included.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._process = os.getpid()
        self._pool = ThreadPoolExecutor(threads - 1, "loadkit-kernels") if threads > 1 else None

    def share(self, work: Callable[[int, int], None], count: int, least: int) -> None:
        """Call `work(start, stop)` over the whole of `range(count)`, in parts.

        Parameters:
            work: does one part; releases the interpreter lock.
            count: how many units there are.
            least: the fewest units that are worth a thread of their own.
        """
        parts = min(self.threads, count // max(least, 1))
        if self._pool is None or parts < 2 or os.getpid() != self._process:
            work(0, count)
            return
        _openmp_rests()
        edges = [count * part // parts for part in range(parts + 1)]
        try:
            others = [self._pool.submit(work, *edges[part : part + 2]) for part in range(1, parts)]
        except RuntimeError:  # the load is over, and somebody else is still quantizing
            work(0, count)
            return
        try:
            work(*edges[:2])
        finally:
            for other in others:
                other.result()

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None and os.getpid() == self._process:
            self._pool.shutdown()


def _openmp_rests() -> None:
    """End torch's idle OpenMP threads: for milliseconds after each parallel operation they wait by spinning, and take the cores from the crew.

    torch starts them again when it needs them, in a tenth of a millisecond. `OMP_WAIT_POLICY=passive` would do the same for all of the process,
    but counts only where it was set before torch was imported.
    """
    pause = _pausing()
    if pause is not None:
        pause(SOFT)


@functools.cache
def _pausing() -> Callable[[int], int] | None:
    """OpenMP's own function for that (since OpenMP 5.0), of the library that torch loaded; None where it can't be found."""
    try:
        pause: Callable[[int], int] = ctypes.CDLL(None).omp_pause_resource_all
    except (OSError, AttributeError, TypeError):  # an older library; on Windows there is no common name space
        return None
    return pause

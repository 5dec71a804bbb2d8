"""The threads that a kernel's work is shared among."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

__all__ = ["WorkerThreads", "usable_cores"]


def usable_cores() -> int:
    """How many threads may work at once: torch's setting, and no more than the cores of this process."""
    import torch

    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(int(torch.get_num_threads()), here))


class WorkerThreads:
    """A thread pool for work over a range. The caller does a part too, so that callers never only wait.

    Not numba's threading layers: workqueue may be entered by one thread only, and OpenMP ends forked children
    (numba 0.68). A forked child has none of these threads, so there the caller does everything.

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

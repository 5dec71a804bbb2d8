"""What a load sets for the whole process meanwhile: one load at a time, and no thread that isn't there."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from loadkit.facts.machine.forks import forked_with_torch

__all__ = ["one_at_a_time"]

_one = threading.RLock()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let no other thread build, change or judge a model until the block ends; one may be in the other.

    `from_pretrained` sets torch's default dtype and replaces functions of torch while it builds a model, for
    all threads (transformers 5.23: `local_torch_dtype`, `no_init_weights`): two at once give each other's
    tensors their dtypes. Nothing may be downloaded, nor another process waited for, in the block.

    In a process that was forked, torch works on one thread meanwhile: OpenMP would wait for ever for the
    parent's threads.
    """
    with _one:
        if not forked_with_torch():
            yield
            return
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _in_child() -> None:
    """A thread of the parent may have held it, which isn't here to give it back."""
    global _one
    _one = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)

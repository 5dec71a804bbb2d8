"""Give memory back while a checkpoint is quantized: pages of weight files that were read, what malloc keeps.

transformers maps a weight file and quantizes tensor after tensor out of it. The pages that it has read stay
in the process for as long as one tensor of that file isn't quantized (the embeddings, say): all of the file
is then resident beside the model made from it. They are the file's own pages, so they can be handed back at
any time and are still in the page cache.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["OFTEN", "Mapping", "release", "released_while_loading", "trim", "weight_mappings"]

OFTEN = 256 * 2**20
"""Bytes of parameters after which pages are released again: finding the mappings takes 10 to 20 ms."""

WRITTEN = "\nAnonymous:"
"""How Linux calls, for each mapping, the pages that were written and have become the process's own."""

_PAGE = mmap.PAGESIZE


class Mapping(NamedTuple):
    """A weight file, or a part of it, in this process's memory, up to but not with the address `end`.

    Where it is `changed`, a page was written: that is the process's own, and would be lost.
    """

    start: int
    end: int
    changed: bool


def weight_mappings(paths: Sequence[Path]) -> list[Mapping]:
    """Where the files are mapped; nothing where the system doesn't tell (it is Linux that does)."""
    try:
        text = Path("/proc/self/smaps").read_text(errors="replace")
    except OSError:
        return []
    found = []
    for path in dict.fromkeys(os.path.realpath(path) for path in paths):
        at = text.find(f" {path}\n")
        while at != -1:
            start, _, end = text[text.rfind("\n", 0, at) + 1 : at].split(maxsplit=1)[0].partition("-")
            at = text.index(WRITTEN, at) + len(WRITTEN)
            found.append(Mapping(int(start, 16), int(end, 16), changed=text[at : at + 32].split()[0] != "0"))
            at = text.find(f" {path}\n", at)
    return found


def release(mappings: Sequence[Mapping], kept: Sequence[tuple[int, int]]) -> int:
    """Hand the pages of mappings back to the system; who reads them again gets them from the page cache.

    Parameters:
        mappings: what to hand back; one with a page that was written stays.
        kept: the tensors that stay, whose pages stay too: first addresses, and those behind the last.

    Returns:
        The bytes of address space that were handed back.
    """
    ends = sorted((a // _PAGE * _PAGE, -(-b // _PAGE) * _PAGE) for a, b in kept)
    libc = _libc()
    total = 0
    for mapping in mappings:
        if mapping.changed or libc is None:
            continue
        at = mapping.start
        inside = [(a, b) for a, b in ends if b > mapping.start and a < mapping.end]
        for start, end in [*inside, (mapping.end, mapping.end)]:
            if start > at:
                libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(start - at), mmap.MADV_DONTNEED)
                total += start - at
            at = max(at, end)
    return total


def trim() -> None:
    """Have glibc hand back what it keeps of freed memory; other C libraries aren't asked."""
    libc = _libc()
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


@contextmanager
def released_while_loading(paths: Sequence[Path]) -> Iterator[None]:
    """Release the pages that were read while a model is quantized out of weight files, and trim at the end.

    torch tells of each parameter that a module gets. One that lies in a file itself stays as it is, and so do
    its pages; of the others the file's pages aren't needed any more. It is the thread that loads which
    releases, so nothing is written meanwhile. Files that were mapped before (by a model that has trained,
    maybe) aren't touched.
    """
    if sys.platform != "linux" or not paths:
        yield
        return
    from torch.nn.modules.module import (
        register_module_buffer_registration_hook,
        register_module_parameter_registration_hook,
    )

    before = {mapping[:2] for mapping in weight_mappings(paths)}
    loading = threading.get_ident()
    kept: list[tuple[int, int]] = []
    made = 0

    def release_read() -> None:
        release([m for m in weight_mappings(paths) if m[:2] not in before], kept)
        trim()

    def registered(module: Any, name: str, tensor: Any) -> None:
        nonlocal made
        try:
            if tensor is None or tensor.device.type == "meta":
                return
            size = tensor.numel() * tensor.element_size()
            if tensor.device.type == "cpu":
                kept.append((tensor.data_ptr(), tensor.data_ptr() + size))
        except (NotImplementedError, RuntimeError, ValueError):
            return  # a quantizer's own kind of tensor, without a storage to point to: it doesn't lie in a file
        made += size
        if made >= OFTEN and threading.get_ident() == loading:
            made = 0
            release_read()

    hooks = [
        register_module_parameter_registration_hook(registered),
        register_module_buffer_registration_hook(registered),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        release_read()


def _libc() -> Any:
    """The C library of this process on Linux; None elsewhere."""
    return ctypes.CDLL(None) if sys.platform == "linux" else None

"""The kernels as torch operators: what bitsandbytes' own take and give, and what is left to those."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch

from loadkit_plugins.cpu_kernels import four_bit, int8_rows
from loadkit_plugins.cpu_kernels.threads import WorkerThreads
from loadkit_plugins.cpu_kernels.to_float32 import BFLOAT16, FLOAT16, FLOAT32

__all__ = ["BLOCK_SIZES", "FOUR_BIT", "KINDS", "ROWS", "own_kernel", "quantize_4bit", "quantize_rows"]

FOUR_BIT: Final = "quantize_4bit"
ROWS: Final = "int8_vectorwise_quant"

KINDS: Final = {torch.bfloat16: BFLOAT16, torch.float16: FLOAT16, torch.float32: FLOAT32}
BLOCK_SIZES: Final = frozenset({32, 64, 128, 256, 512, 1024, 2048, 4096})

WORTHWHILE: Final = 1 << 16
"""Values that are worth a thread: about 60 microseconds of work."""

TINY = np.float32(1e-40)
ONE = np.float32(1.0)

Own = Callable[..., Any]


def own_kernel(operator: str) -> Own:
    """bitsandbytes' own kernel of an operator for the CPU, to be called whatever is registered afterwards.

    Parameters:
        operator: its name without "bitsandbytes::".
    """
    kernel = torch.library.get_kernel(f"bitsandbytes::{operator}", "CPU")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

    def call(*given: Any) -> Any:
        return kernel.call_boxed(keys, *given)

    return call


def quantize_4bit(own: Own, threads: WorkerThreads) -> Own:
    """`bitsandbytes::quantize_4bit` with the compiled kernel.

    Parameters:
        own: bitsandbytes' own, for other sizes, nothing at all, NaN (whose bits depend on the vector
            instructions that torch finds), and threads that flush subnormal numbers.
        threads: share the blocks.
    """
    from bitsandbytes.backends.default.ops import _get_4bit_quantize_bounds

    tables: dict[str, tuple[Any, Any]] = {}
    for quant_type in ("nf4", "fp4"):
        bounds, order = _get_4bit_quantize_bounds(quant_type, torch.device("cpu"))
        tables[quant_type] = bounds.numpy(), order.to(torch.uint8).numpy()

    def kernel(weights: Any, blocksize: int, quant_type: str, quant_storage: Any) -> Any:
        count = weights.numel()
        kind = KINDS.get(weights.dtype)
        known = kind is not None and blocksize in BLOCK_SIZES and quant_type in tables
        if not known or not count or _flushing():
            return own(weights, blocksize, quant_type, quant_storage)
        halves = _halves(weights)
        bounds, codes = tables[quant_type]
        blocks = -(-count // blocksize)
        packed = torch.empty(((count + 1) // 2, 1), dtype=torch.uint8)
        absmax = torch.empty(blocks, dtype=torch.float32)
        bytes_, scales = packed.view(-1).numpy(), absmax.numpy()

        def work(start: int, stop: int) -> None:
            four_bit.quantize(halves, kind, count, blocksize, bounds, codes, start, stop, bytes_, scales)

        threads.share(work, blocks, WORTHWHILE // blocksize)
        if np.isnan(scales).any():
            return own(weights, blocksize, quant_type, quant_storage)
        if quant_storage != torch.uint8:
            packed = packed.squeeze().view(quant_storage).unsqueeze(1)
        return packed, absmax

    return kernel


def quantize_rows(own: Own, threads: WorkerThreads) -> Own:
    """`bitsandbytes::int8_vectorwise_quant` with the compiled kernel, for float16 without a threshold.

    Parameters:
        own: bitsandbytes' own, for everything else.
        threads: share the rows.
    """

    def kernel(weights: Any, threshold: float = 0.0) -> Any:
        plain = weights.dtype == torch.float16 and weights.dim() == 2 and weights.is_contiguous()
        if not plain or threshold > 0 or not weights.numel() or _flushing():
            return own(weights, threshold)
        halves = _halves(weights)
        height, width = weights.shape
        rounded = torch.empty((height, width), dtype=torch.int8)
        largest = torch.empty(height, dtype=torch.float32)
        bytes_, stats = rounded.view(-1).numpy(), largest.numpy()

        def work(start: int, stop: int) -> None:
            int8_rows.quantize_rows(halves, width, start, stop, bytes_, stats)

        threads.share(work, height, -(-WORTHWHILE // width))
        if np.isnan(stats).any():
            return own(weights, threshold)
        return rounded, largest, None

    return kernel


def _halves(weights: Any) -> Any:
    """The values' memory in their logical order, as 16-bit words; copied only where it isn't in one piece."""
    flat = weights.detach().contiguous().view(-1)
    if flat.data_ptr() % flat.element_size():
        flat = flat.clone()
    return flat.view(torch.uint16).numpy()


def _flushing() -> bool:
    """Whether this thread takes subnormal numbers for zero (`torch.set_flush_denormal`); the pool's don't."""
    return not TINY * ONE

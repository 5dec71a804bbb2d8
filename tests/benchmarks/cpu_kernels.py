"""How many weights a second are quantized on the CPU: by bitsandbytes' own kernels, and by loadkit's compiled
ones.

    python tests/benchmarks/cpu_kernels.py --rounds 9

Both take the same tensor, alternating; medians. The tensor has the size of Mistral-7B's `up_proj` times
--scale; the page cache plays no part. The results are compared, bit for bit.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    """Measure and print a line for each dtype and type."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "loadkit-benchmarks")
    args = parser.parse_args()

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    start = time.perf_counter()
    import bitsandbytes
    import torch

    libraries = time.perf_counter() - start
    start = time.perf_counter()
    from loadkit_plugins.cpu_kernels import operators, register

    print(f"torch {torch.__version__}, bitsandbytes {bitsandbytes.__version__}: {libraries:.2f} s to import")
    print(f"numba and the kernels: {time.perf_counter() - start:.2f} s to import")
    print(
        f"{torch.get_num_threads()} threads; load of the machine {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores"
    )
    for operator in (operators.FOUR_BIT, operators.ROWS):
        for told in ("the first time", "again"):
            start = time.perf_counter()
            with register.registered(
                operator, args.work / "kernels", lambda text: print(f"  {text}")
            ) as refused:
                assert not refused, refused
            print(f"{operator}: {time.perf_counter() - start:.2f} s to make ready, {told}")

    torch.manual_seed(0)
    weights = torch.randn(int(14336 * args.scale), 4096) * 0.02
    print(f"\n{weights.numel() / 1e6:.1f} M weights; M weights/s\n")
    print(f"{'':30} {'bitsandbytes':>12} {'loadkit':>10} {'ratio':>7}")
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for quant_type in ("nf4", "fp4"):
            given = (weights.to(dtype), 64, quant_type, torch.uint8)
            line(f"{quant_type} from {dtype}", operators.FOUR_BIT, given, args)
    line("int8 from torch.float16", operators.ROWS, (weights.half(), 0.0), args)


def line(name: str, operator: str, given: tuple[Any, ...], args: argparse.Namespace) -> None:
    """Measure one operator both ways."""
    import torch

    from loadkit_plugins.cpu_kernels import register

    call = getattr(torch.ops.bitsandbytes, operator).default
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(args.rounds + 1):
        own, seconds = timed(lambda: call(*given))
        with register.registered(operator, args.work / "kernels", print) as refused:
            assert not refused, refused
            ours, fewer = timed(lambda: call(*given))
        if number:
            taken[0].append(seconds)
            taken[1].append(fewer)
        assert all(torch.equal(a, b) for a, b in zip(own, ours, strict=True) if a is not None)
    slow, fast = (given[0].numel() / statistics.median(seconds) / 1e6 for seconds in taken)
    print(f"{name:30} {slow:12.0f} {fast:10.0f} {fast / slow:7.1f}")


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and the seconds it takes."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


if __name__ == "__main__":
    main()

"""The bar of a load in bytes: tensors differ by a thousandfold, so their number tells no time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loadkit.errors import Problem
from loadkit.facts.checkpoint.safetensors_header import PREFIX_BYTES, header_bytes, parse_header

__all__ = ["bar_of_bytes", "sizes_in"]

BAR = "Loading weights"
"""How transformers 5.23 calls its bar of tensors (`convert_and_load_state_dict_in_model`)."""


@contextmanager
def bar_of_bytes(files: Sequence[Path]) -> Iterator[None]:
    """Have transformers' bar count the bytes of these files until the block ends.

    It is its own bar still: in a terminal, in a notebook, or off where progress bars are. Where the sizes
    can't be told, or transformers has another way to load, its bar stays as it is.
    """
    from transformers.utils import logging

    set_hook: Callable[[Any], Any] | None = getattr(logging, "set_tqdm_hook", None)
    sizes = sizes_in(files) if set_hook is not None else {}
    if set_hook is None or not sizes:
        yield
        return
    before: Any = None

    def making(factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        steps = list(args[0]) if args and kwargs.get("desc") == BAR else []
        counts = [_bytes_of(step, sizes) for step in steps]
        if not sum(counts):
            if steps:
                args = (steps, *args[1:])
            return before(factory, args, kwargs) if before is not None else factory(*args, **kwargs)
        bar = factory(**kwargs, total=sum(counts), unit="B", unit_scale=True, unit_divisor=1024, miniters=1)
        return _counted(steps, counts, bar)

    before = set_hook(making)
    try:
        yield
    finally:
        set_hook(before)


def sizes_in(files: Sequence[Path]) -> dict[str, int]:
    """The bytes of each tensor of safetensors files, by name; of other files nothing."""
    sizes: dict[str, int] = {}
    for path in files:
        if path.suffix != ".safetensors":
            continue
        size = path.stat().st_size
        with path.open("rb") as file:
            length = header_bytes(path.name, file.read(PREFIX_BYTES), size)
            header = parse_header(path.name, file.read(length), size) if isinstance(length, int) else length
        if not isinstance(header, Problem):
            sizes |= {name: tensor.nbytes for name, tensor in header.items()}
    return sizes


def _bytes_of(step: Any, sizes: Mapping[str, int]) -> int:
    """Of what one step loads, by the names that its tensors have in the files."""
    sources: Mapping[str, set[str]] = getattr(step[1], "layer_targets", {}) if isinstance(step, tuple) else {}
    return sum(sizes.get(name, 0) for names in sources.values() for name in names)


def _counted(steps: Sequence[Any], counts: Sequence[int], bar: Any) -> Iterator[Any]:
    with bar:
        for step, count in zip(steps, counts, strict=True):
            yield step
            bar.update(count)

"""What a checkpoint of codes and scales holds, as if it were stored in floating point. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from loadkit import Checkpoint
from loadkit.plugins import TensorHeader

__all__ = [
    "Coded",
    "Decoded",
    "METHODS",
    "as_floats",
    "beside",
    "block_of",
    "coded_tensors",
    "fields_of",
    "uneven",
]

METHODS = ("fp8", "mxfp8", "mxfp4")
"""Stored formats, by `quant_method`, whose weights can be decoded one by one."""

BLOCKS, SCALES = "_blocks", "_scales"
"""Ends of the names of mxfp4's codes and exponents."""

SCALE, BESIDE = ("_scale_inv", ".scale", ".qscale_weight"), (".activation_scale", "_activation_scale")
"""Ends of the names of fp8's scales, the last two in place of ".weight"; and of scales of activations, which
weights of another format have no use for."""

ALWAYS_SCALES = (SCALE[0], SCALE[2])
"""Ends of names that nothing else has."""

FLOATS = ("F64", "F32", "F16", "BF16")
EIGHT_BITS, FOUR_BITS = ("F8_E4M3", "F8_E5M2"), ("I8", "U8", "F4")
"""safetensors' dtypes of codes: of one value, and of two in a byte."""

PER_BLOCK = 32
"""Values of a block of mxfp4."""


class Coded(NamedTuple):
    """A tensor that is stored in codes.

    Parameters:
        name: what its values are called: the files' name of the codes, mxfp4's without its end.
        codes, scales: the files' names; scales is "" where there are none.
        shape: of the values, as the model's code has them.
        fault: why it can't be decoded, in a sentence; "" where it can.
        damaged: whether nothing else can read it, either.
    """

    name: str
    codes: str
    scales: str
    shape: tuple[int, ...]
    fault: str = ""
    damaged: bool = True


class Decoded(NamedTuple):
    """A checkpoint's headers as if it were stored in floating point.

    Parameters:
        checkpoint: the checkpoint, without its quantization config.
        names: a name in the files to that of its values; scales have none.
        coded: the names of values that are stored in codes.
        faults: why tensors can't be decoded, in a sentence each.
        damage: those of them that nothing else can read, either.
    """

    checkpoint: Checkpoint
    names: Mapping[str, str]
    coded: frozenset[str]
    faults: tuple[str, ...]
    damage: tuple[str, ...]

    @property
    def able(self) -> bool:
        """Whether its weights can be decoded; without headers, nothing is known to be in the way."""
        return not self.faults and bool(self.coded or not self.checkpoint.tensors)


def fields_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decoding goes by, of a stored quantization config."""
    found: dict[str, Any] = {"quant_method": str(config.get("quant_method", ""))}
    block = config.get("weight_block_size")
    if isinstance(block, list | tuple) and len(block) == 2 and all(type(n) is int and n > 0 for n in block):
        found["weight_block_size"] = list(block)
    return found


def as_floats(checkpoint: Checkpoint, dtype: str = "BF16") -> Decoded:
    """The same checkpoint, stored in floating point.

    Parameters:
        checkpoint: is stored by one of `METHODS`.
        dtype: what it would be stored in, by safetensors' name: of two bytes a value.
    """
    coded = {each.codes: each for each in coded_tensors(checkpoint.tensors, checkpoint.quantization_config)}
    gone = {each.scales for each in coded.values()}
    orphans = (SCALES,) if checkpoint.quantization_config.get("quant_method") == "mxfp4" else ALWAYS_SCALES
    faulty = [each for each in coded.values() if each.fault]
    tensors, names, stray = {}, {}, []
    for name, header in checkpoint.tensors.items():
        if name in coded:
            each = coded[name]
            names[name] = each.name
            count = math.prod(each.shape)
            tensors[each.name] = TensorHeader(dtype, each.shape, 2 * count, header.file)
        elif name in gone or beside(name):
            continue
        elif name.endswith(orphans):
            stray.append(f"{name} is a scale, and no weight in codes that it belongs to is there")
        else:
            names[name] = name
            tensors[name] = header
    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    for key, part in config.items():
        if isinstance(part, dict) and "quantization_config" in part:
            config[key] = {k: v for k, v in part.items() if k != "quantization_config"}
    plain = msgspec.structs.replace(checkpoint, config=config, tensors=tensors)
    return Decoded(
        checkpoint=plain,
        names=names,
        coded=frozenset(each.name for each in coded.values()),
        faults=(*(each.fault for each in faulty), *stray),
        damage=(*(each.fault for each in faulty if each.damaged), *stray),
    )


def coded_tensors(tensors: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[Coded]:
    """Every tensor in codes.

    Parameters:
        tensors: name to what has a `shape` and a `dtype` of safetensors.
        config: the checkpoint's quantization config.
    """
    four = config.get("quant_method") == "mxfp4"
    for name, header in tensors.items():
        if four and name.endswith(BLOCKS):
            yield _mxfp4(name, tensors)
        elif not four and header.dtype not in FLOATS and len(header.shape) > 1:
            found = _fp8(name, tensors, fields_of(config).get("weight_block_size"))
            if found is not None:
                yield found


def beside(name: str) -> bool:
    """Whether a tensor scales activations, and has no use where weights are in another format."""
    return name.endswith(BESIDE)


def uneven(checkpoint: Checkpoint) -> Iterator[tuple[str, tuple[int, ...], tuple[int, int]]]:
    """Weights of fp8 whose last blocks are cut off, with their shape and the block's."""
    config = checkpoint.quantization_config
    block = fields_of(config).get("weight_block_size")
    for each in coded_tensors(checkpoint.tensors, config):
        if each.fault or not block or not each.scales or each.name != each.codes:
            continue
        grid = tuple(checkpoint.tensors[each.scales].shape)
        sides = block_of(each.shape, grid, block)
        several = [
            n
            for n, count, side in zip(each.shape[-2:], grid[-2:], sides or (1, 1), strict=True)
            if count > 1 and n % side
        ]
        if several:
            yield each.name, each.shape[-2:], (block[0], block[1])


def _fp8(name: str, tensors: Mapping[str, Any], block: Any) -> Coded | None:
    header = tensors[name]
    stem = name.removesuffix(".weight")
    known = [f"{name}{SCALE[0]}", *(f"{stem}{end}" for end in SCALE[1:] if stem != name)]
    scales = next((each for each in known if each in tensors), "")
    one = header.dtype in EIGHT_BITS
    if not one and (not scales or header.dtype not in FOUR_BITS):
        return None  # no weight's codes: a scale, an index
    shape = tuple(header.shape) if one else (*header.shape[:-1], 2 * header.shape[-1])
    fault, other = "", f"{name}_scale"
    if not scales and other in tensors:
        fault = f"{name} is in codes ({header.dtype}), and its scale is called {other}, which isn't one of this format"
    elif not scales:
        fault = f"{name} is in codes ({header.dtype}), and its scale {known[0]} isn't there"
    else:
        grid = tuple(tensors[scales].shape)
        if block_of(shape, grid, block) is None:
            blocks = f" in blocks of {' × '.join(map(str, block))}" if block else ""
            fault = f"{scales} has the shape {_sides(grid)}, which isn't one of scales for {name} of {_sides(shape)}{blocks}"
    return Coded(name, name, scales, shape, fault, damaged=bool(fault) and other not in tensors)


def _mxfp4(name: str, tensors: Mapping[str, Any]) -> Coded:
    stem = name.removesuffix(BLOCKS)
    shape, scales = tuple(tensors[name].shape), f"{stem}{SCALES}"
    fault = ""
    if len(shape) != 4 or shape[-1] != PER_BLOCK // 2:
        fault = f"{name} has the shape {_sides(shape)}, and mxfp4's blocks are experts × rows × blocks × {PER_BLOCK // 2} bytes"
        values = shape
    else:
        experts, outputs, blocks, _ = shape
        values = (experts, blocks * PER_BLOCK, outputs)
    if scales not in tensors:
        fault = fault or f"{name} is in codes (mxfp4), and its scale {scales} isn't there"
    elif tuple(tensors[scales].shape) != shape[:-1]:
        found = _sides(tensors[scales].shape)
        fault = (
            fault
            or f"{scales} has the shape {found}, and {name} of {_sides(shape)} needs {_sides(shape[:-1])}"
        )
    return Coded(stem, name, scales if scales in tensors else "", values, fault)


def _sides(shape: Any) -> str:
    return " × ".join(map(str, shape)) or "one number"


def block_of(shape: tuple[int, ...], grid: tuple[int, ...], block: Any) -> tuple[int, int] | None:
    """Rows and columns that share a scale; None where the scales aren't this weight's.

    Blocks of the config's size count where the scales are as many as these need, the last ones being cut off.
    transformers 5.23 always divides the sides evenly, which fails over a side of 576 in blocks of 128, and
    takes 192 for two blocks of 96.

    Parameters:
        shape: of the values.
        grid: the shape of the scales.
        block: `weight_block_size` of the config: rows and columns; None for one scale.
    """
    rows, columns = shape[-2:]
    if math.prod(grid) == 1:
        return rows, columns
    if len(grid) != len(shape) or grid[:-2] != shape[:-2]:
        return None
    high, wide = grid[-2:]
    if not high or not wide:
        return None
    if block and (-(-rows // block[0]), -(-columns // block[1])) == (high, wide):
        return int(block[0]), int(block[1])
    return (rows // high, columns // wide) if not (rows % high or columns % wide) else None

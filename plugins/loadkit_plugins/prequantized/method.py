"""What is known of one quantization method: the fields that the table of all of them fills."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

__all__ = ["Method"]


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """What one quantization method takes and gives.

    Parameters:
        name: `quant_method` in config.json.
        quantizer: its class in `transformers.quantizers`.
        bits: bits a weight, where the name says it; 0 where the config does.
        needs: the packages without which transformers refuses, as requirements; a "|" stands between two that
            serve alike.
        needs_kept: the packages without which the weights are turned back into the dtype of the load.
        elsewhere: device types other than CUDA, to those of the two fields above that differ there.
        runs_with: the packages that weights which stay are computed with, and that loading doesn't look for.
        devices: torch's device types on which the weights stay as they are stored.
        capability: the CUDA compute capability that they need there.
        turned_back: whether transformers turns them back where they can't stay; else it refuses.
        floats_with: fields of the config, to the values with which its layers hold floating-point weights.
        config: the config class whose `dequantize=True` turns them back on request; "" where none does.
        accepts: fields of the config to the values that its class takes, or to a shape of `config_fields`.
        packing: ends of the names of tensors that hold several values in one, to how many, 0 for as many as
            `bits` says.
        vanishing: ends of the names of tensors that are gone when they are turned back.
        trains: whether the quantizer says that the model can train.
        trains_with: fields of the config and their values, without which it can't.
        trains_from: a requirement without which it can't.
        trains_set: fields of the config that a training load sets, to get kernels with a backward pass.
        unadapted: why PEFT can't adapt its layers; "" where it can.
        saves: whether `save_pretrained` writes the model.
        dtypes: those that it computes in on an accelerator; empty for any.
        later: what happens to weights that stay, in a few words.
        unreadable: why transformers can't load a checkpoint that is stored so; "" where it can.
    """

    name: str
    quantizer: str
    bits: float = 0
    needs: tuple[str, ...] = ()
    needs_kept: tuple[str, ...] = ()
    elsewhere: Mapping[str, Mapping[str, tuple[str, ...]]] = {}
    runs_with: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cuda", "xpu", "mps", "npu", "cpu")
    capability: tuple[int, int] = (0, 0)
    turned_back: bool = False
    floats_with: Mapping[str, Any] = {}
    config: str = ""
    accepts: Mapping[str, tuple[Any, ...] | str] = {}
    packing: Mapping[str, int] = {}
    vanishing: tuple[str, ...] = ()
    trains: bool = True
    trains_with: Mapping[str, Any] = {}
    trains_from: str = ""
    trains_set: Mapping[str, Any] = {}
    unadapted: str = ""
    saves: bool = True
    dtypes: tuple[str, ...] = ()
    later: str = ""
    unreadable: str = ""

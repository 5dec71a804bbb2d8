"""A model's tensors as they are kept, their bytes and checksums, and the files beside them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from loadkit.plugins import checksum, checksums

__all__ = ["content", "contiguous_bytes", "snapshot", "state_of", "write_configs"]


def state_of(model: Any) -> dict[str, Any]:
    """The tensors as transformers would save them, tied ones once."""
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    state = dict(model.state_dict())
    for name in model._keys_to_ignore_on_save or ():
        state.pop(name, None)
    state = remove_tied_weights_from_state_dict(state, model)
    return {name: tensor if tensor.is_contiguous() else tensor.contiguous() for name, tensor in state.items()}


def content(tensor: Any) -> Any:
    """A tensor's bytes, in main memory: copied only from an accelerator."""
    import torch

    return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()


def contiguous_bytes(tensor: Any) -> int:
    """How many bytes a tensor has in one piece of main memory; 0 for any other."""
    import torch

    try:
        plain = tensor.device.type == "cpu" and tensor.layout == torch.strided and tensor.is_contiguous()
        return int(tensor.nbytes) if plain and tensor.data_ptr() else 0
    except (NotImplementedError, RuntimeError, ValueError):
        return 0  # a quantizer's own kind of tensor, without a storage to point to


def snapshot(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors, those that may be changed in place copied to main memory, with their checksums as of now.

    Packed weights aren't changed in place: their libraries make new tensors.
    """
    held = {name: tensor.cpu() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    changing = {name: partial(content, tensor) for name, tensor in held.items() if tensor.is_floating_point()}
    return held, checksums(changing)


def write_configs(model: Any, folder: Path) -> dict[str, str]:
    """What transformers alone needs beside the weights; checksums by file.

    Raises:
        OSError: it can't be written.
    """
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    files = [path for path in sorted(folder.iterdir()) if path.suffix != ".safetensors"]
    return {path.name: checksum(path.read_bytes()) for path in files}

"""What a plan takes, in bytes: of everything once, and of each of several processes."""

from __future__ import annotations

import msgspec

from loadkit.text.units import size

__all__ = ["Memory", "Optimizer", "RankMemory"]


class RankMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What one of several processes takes, in bytes, where an engine shares the model among them.

    Parameters:
        shared: which share of what each process holds, in words.
        device: what holds it: an accelerator's name, or "the CPU".
        weights: the model, adapters included.
        gradients: of what trains.
        optimizer: its state.
        loading: the model on the device while it is loaded, before the engine divides it.
        host_shared: main memory of the node that all its processes map from the same files, once for all of
            them; the system can drop what isn't in use.
        host_own: main memory of the node that its processes take for themselves while loading, all together.
        processes: how many processes a node has.
        how: how they load, in a sentence.
    """

    shared: str
    device: str
    weights: int
    gradients: int
    optimizer: int
    loading: int
    host_shared: int
    host_own: int
    processes: int
    how: str

    @property
    def total(self) -> int:
        """Bytes of the share of model, gradients and optimizer's state."""
        return self.weights + self.gradients + self.optimizer


class Optimizer(msgspec.Struct, frozen=True, kw_only=True):
    """What an optimizer keeps for each value that trains.

    Parameters:
        names: what it is called in `optim`.
        states: how many values in the parameter's own dtype.
        fixed: bytes, whatever the dtype.
        small: bytes for values of tensors too small to be packed (4,096 values); None where none is packed.
        factored: whether a matrix takes a row and a column in float32 only.
    """

    names: tuple[str, ...] = ()
    states: int = 0
    fixed: float = 0.0
    small: float | None = None
    factored: bool = False


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan takes, in bytes, estimated from the headers. Activations and a key-value cache come on top.

    Parameters:
        weights: dtype to bytes of what isn't quantized.
        quantized: bytes of quantized data.
        constants: bytes of scales and code books of the quantized data.
        unquantized: for a quantized model, the reason to the bytes that stay as they are; largest first.
        adapters: bytes of the adapters.
        gradients: bytes of the gradients of what trains.
        optimizer: bytes of the optimizer's state.
        optim: the optimizer counted with, by transformers' name; "" where nothing trains.
        unknown: parts whose size can't be told before loading, such as "adapters"; they count as nothing.
        room: bytes that there are where the model goes; 0 where that isn't known, or an engine spreads it.
        where: what has them: an accelerator's name, or "this machine".
        per_rank: what each of several processes takes; None for a single one.
        parameters: how many values the model with its adapters holds, quantized ones counted unpacked; 0 in
            plans of loadkit before 1.0.
        trainable: how many of them train.
        quantized_parameters: how many of them are quantized.
    """

    weights: dict[str, int] = {}
    quantized: int = 0
    constants: int = 0
    unquantized: dict[str, int] = {}
    adapters: int = 0
    gradients: int = 0
    optimizer: int = 0
    optim: str = ""
    unknown: tuple[str, ...] = ()
    room: int = 0
    where: str = ""
    per_rank: RankMemory | None = None
    parameters: int = 0
    trainable: int = 0
    quantized_parameters: int = 0

    @property
    def model(self) -> int:
        """Bytes of the loaded model with its adapters."""
        return sum(self.weights.values()) + self.quantized + self.constants + self.adapters

    @property
    def total(self) -> int:
        """Bytes of the model, its gradients and the optimizer's state."""
        return self.model + self.gradients + self.optimizer

    def __str__(self) -> str:
        from loadkit.schema.memory_text import memory_text

        return memory_text(self)

    def __repr__(self) -> str:
        return f"<Memory {size(self.total)}{f' of {size(self.room)}' if self.room else ''}>"

    def _repr_html_(self) -> str:
        from loadkit.schema.memory_text import memory_row
        from loadkit.schema.notebook import notebook_html

        return notebook_html("", "", [("", [memory_row(self)])])

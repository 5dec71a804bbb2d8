"""The frozen reference of preference training: no second load and, where possible, no second copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from loadkit.audit.model_access import is_packed
from loadkit.errors import LoadkitError

__all__ = ["AdapterReference", "REFERENCE", "adapter_reference", "frozen_copy", "shared_reference"]

REFERENCE = "reference"
"""The name of the frozen copy of an adapter."""

SAMPLED_TENSORS, SAMPLED_VALUES = 8, 256
"""How much of a shared reference is compared before each use."""


class AdapterReference(torch.nn.Module):
    """The model as it was before training: the policy's base, with the adapter off or a frozen copy of it on.

    It has no parameters of its own. Each call runs the policy in evaluation mode and without gradients, and
    leaves it as it was. `adapter` names the frozen copy; "" is for none.
    """

    _policy: Any

    def __init__(self, policy: Any, adapter: str = "") -> None:
        super().__init__()
        # Not a submodule: eval(), to() or parameters() of the reference must not reach the policy.
        object.__setattr__(self, "_policy", policy)
        self.adapter = adapter

    @property
    def config(self) -> Any:
        """The base's config."""
        return self._policy.config

    @property
    def generation_config(self) -> Any:
        """The base's generation config."""
        return self._policy.generation_config

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        device: torch.device = self._policy.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the base."""
        dtype: torch.dtype = self._policy.dtype
        return dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the policy's `forward` gives, without the adapter's training."""
        with self._as_it_was():
            return self._policy(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """What the policy's `generate` gives, without the adapter's training."""
        with self._as_it_was():
            return self._policy.generate(*args, **kwargs)

    @contextmanager
    def _as_it_was(self) -> Iterator[None]:
        policy = self._policy
        modes = [(module, module.training) for module in policy.modules()]
        policy.eval()
        try:
            with torch.no_grad(), self._switched():
                yield
        finally:
            for module, training in modes:
                module.training = training

    @contextmanager
    def _switched(self) -> Iterator[None]:
        policy = self._policy
        if not self.adapter:
            with policy.disable_adapter():
                yield
            return
        active, on = policy.active_adapter, list(policy.base_model.active_adapters)
        trains = [(p, p.requires_grad) for p in policy.parameters()]
        policy.set_adapter(self.adapter)
        try:
            yield
        finally:
            policy.set_adapter(active)
            if len(on) > 1:
                policy.base_model.set_adapter(on)
            for parameter, was in trains:
                parameter.requires_grad_(was)


def adapter_reference(
    policy: Any, name: str, *, trained: bool, starts_neutral: bool, beneath: str = ""
) -> AdapterReference:
    """The reference of a policy that trains an adapter.

    Parameters:
        trained: whether it has been trained since it was loaded.
        starts_neutral: whether a fresh adapter of its kind changes nothing: the base alone is the reference.
        beneath: the adapter that is on beneath it, which is a part of the reference.
    """
    if beneath and starts_neutral and (trained or _is_neutral(policy, name)):
        return AdapterReference(policy, beneath)
    if starts_neutral and (trained or _is_neutral(policy, name)):
        return AdapterReference(policy)
    if REFERENCE in policy.peft_config:
        return AdapterReference(policy, REFERENCE)
    if trained:
        raise LoadkitError(
            f"the reference is the adapter {name!r} as it was loaded, and it has been trained since; "
            "call reference() before training, or load again"
        )
    _copy_adapter(policy, name)
    return AdapterReference(policy, REFERENCE)


def _is_neutral(policy: Any, name: str) -> bool:
    """Whether the second factor of every low-rank pair is zero, so that the adapter adds nothing yet."""
    second = [p for n, p in policy.named_parameters() if "lora_B" in n and f".{name}" in n]
    return all(not bool(p.detach().any()) for p in second)


def _copy_adapter(policy: Any, name: str) -> None:
    """Add a frozen copy of an adapter, in its dtype; the one that trains stays active."""
    trains = [(p, p.requires_grad) for p in policy.parameters()]
    config = copy.deepcopy(policy.peft_config[name])
    config.init_lora_weights = False  # the values are copied; PiSSA and the like would change the base again
    policy.add_adapter(REFERENCE, config)
    named = dict(policy.named_parameters())
    for key, parameter in named.items():
        source = named.get(_sibling(key, name))
        if source is not None:
            parameter.data = source.detach().clone()
            parameter.requires_grad_(False)
    for parameter, was in trains:
        parameter.requires_grad_(was)


def _sibling(key: str, name: str) -> str:
    """The parameter of the adapter `name` that one of the copy stands for; "" for another parameter."""
    parts = key.split(".")
    return ".".join(name if p == REFERENCE else p for p in parts) if REFERENCE in parts else ""


def frozen_copy(policy: Any) -> Any:
    """A frozen model with storage of its own, in evaluation mode: for a policy that is trained in full."""
    return _frozen(copy.deepcopy(policy))


def shared_reference(policy: Any) -> Any:
    """A frozen model on the storage of a policy that is frozen or gets an adapter later, in evaluation mode.

    It refuses to run once the policy has trained.
    """
    memo: dict[int, Any] = {}
    for parameter in policy.parameters():
        plain = not is_packed(parameter)
        memo[id(parameter)] = torch.nn.Parameter(parameter.detach(), False) if plain else parameter
        for carried in () if plain else vars(parameter).values():
            memo[id(carried)] = carried  # the quant state, which a module may hold a second time
    for buffer in policy.buffers():
        memo[id(buffer)] = buffer
    reference = copy.deepcopy(policy, memo)
    shared = [p for p in policy.parameters() if not is_packed(p) and p.is_floating_point() and p.numel()]
    before = _fingerprint(shared)

    def refuse_if_trained(module: Any, args: Any) -> None:
        if _fingerprint(shared) != before:
            raise LoadkitError(
                "this reference shares the policy's storage, and the policy has trained since: it isn't what was loaded any more; "
                "ask for reference(trained_in_full=True) before training"
            )

    reference.register_forward_pre_hook(refuse_if_trained)
    return _frozen(reference)


def _frozen(model: Any) -> Any:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


def _fingerprint(tensors: list[Any]) -> tuple[int, tuple[float, ...]]:
    """What changes when weights are trained: torch's count of in-place changes, which optimizers that write
    through raw pointers leave out, and the first values of a few tensors."""
    sampled = tensors[:: max(1, len(tensors) // SAMPLED_TENSORS)][:SAMPLED_TENSORS]
    values = tuple(float(t.detach().flatten()[:SAMPLED_VALUES].double().sum()) for t in sampled)
    return sum(t._version for t in tensors), values

"""The frozen reference of preference training: no second load, and no second copy of what doesn't train.

A reference is a model of its own, in its own mode and with its own adapters on, whose frozen weights are the
policy's: the same tensors. What trains it has a copy of, or does without, where an adapter adds nothing yet.
So nothing that becomes of the policy's adapters, mode or forward reaches it.
"""

from __future__ import annotations

import copy
import inspect
import types
from collections.abc import Iterator
from typing import Any

import torch

from loadkit.audit.model_access import is_packed
from loadkit.errors import LoadkitError
from loadkit.loading.as_loaded import AsLoaded, Fingerprints, fingerprints, is_here, versions

__all__ = ["PromptedReference", "adapter_reference", "frozen_copy", "shared_reference"]

EARLIER = "call reference() before training, and before a trainer takes the model; or load again"


def adapter_reference(policy: Any, was: AsLoaded, *, name: str, beneath: str = "") -> Any:
    """The reference of a policy that trains an adapter.

    Parameters:
        was: what is remembered of it from when it was loaded.
        name: the adapter.
        beneath: the one that is on beneath it, and a part of the reference; "" for none.

    Raises:
        LoadkitError: it isn't what was loaded any more.
    """
    dropped = was.adds_nothing
    if different := was.difference_of_the_base(policy) if dropped else was.difference(policy):
        raise _late(different)
    own = set(policy.peft_config)
    memo: dict[int, Any] = {}
    shared = []
    for path, parameter in policy.named_parameters():
        if not parameter.requires_grad and not own & set(path.split(".")):
            memo[id(parameter)] = parameter  # the same: where the policy is moved to, it is
        else:
            kept = (
                parameter.detach() if dropped or not parameter.requires_grad else parameter.detach().clone()
            )
            memo[id(parameter)] = torch.nn.Parameter(kept, requires_grad=False)
        if not parameter.requires_grad and is_here(parameter) and not is_packed(parameter):
            shared.append(parameter)
    _share(policy, memo)
    if dropped and not beneath:
        reference = _without_adapters(policy.get_base_model(), memo)
    else:
        whole = copy.deepcopy(policy, memo)
        if dropped:
            whole.set_adapter(beneath)
            whole.delete_adapter(name)
        reference = PromptedReference(whole) if _needs_peft(whole) else whole.get_base_model()
    return _frozen(reference, policy, _Guard(fingerprints(shared)))


def frozen_copy(policy: Any, was: AsLoaded) -> Any:
    """A frozen model with storage of its own, in evaluation mode: for a policy that is trained in full.

    Raises:
        LoadkitError: the policy isn't what was loaded any more.
    """
    if different := was.difference(policy):
        raise _late(different)
    return _frozen(copy.deepcopy(policy), policy, None)


def shared_reference(policy: Any, was: AsLoaded) -> Any:
    """A frozen model on the storage of a policy that is frozen or gets an adapter later, in evaluation mode.

    It refuses to run once the policy has trained.

    Raises:
        LoadkitError: the policy isn't what was loaded any more.
    """
    if different := was.difference(policy):
        raise _late(different)
    memo: dict[int, Any] = {}
    for parameter in policy.parameters():
        plain = not is_packed(parameter)
        memo[id(parameter)] = torch.nn.Parameter(parameter.detach(), False) if plain else parameter
    _share(policy, memo)
    shared = [p for p in policy.parameters() if is_here(p) and not is_packed(p)]
    return _frozen(copy.deepcopy(policy, memo), policy, _Guard(fingerprints(shared), versions(shared)))


def _late(different: str) -> LoadkitError:
    return LoadkitError(f"the reference is the model as it was loaded, and {different}; {EARLIER}")


class PromptedReference(torch.nn.Module):
    """The reference of a policy whose adapter works outside its layers, as prompts do.

    Trainers of TRL look for a backbone and a head, which it gives as a bare model would.

    Parameters:
        model: a frozen copy of the `peft.PeftModel`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @property
    def config(self) -> Any:
        """The base's config."""
        return self.model.config

    @property
    def generation_config(self) -> Any:
        """The base's generation config."""
        return self.model.generation_config

    @property
    def device(self) -> Any:
        """Where the base is."""
        return self.model.device

    @property
    def dtype(self) -> Any:
        """The dtype of the base."""
        return self.model.dtype

    @property
    def base_model(self) -> Any:
        """What gives the last hidden states of the tokens that it is called with, behind the prompt."""
        return self._backbone

    def get_output_embeddings(self) -> Any:
        """The base's head."""
        return self.model.get_base_model().get_output_embeddings()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives, with the prompt before the input."""
        return self.model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """What the model generates after the prompt and the input."""
        return self.model.generate(*args, **kwargs)

    def _backbone(self, *args: Any, **kwargs: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        given: Any = kwargs.get("input_ids", args[0] if args else kwargs.get("inputs_embeds"))
        states = self.model(*args, **{**kwargs, "output_hidden_states": True}).hidden_states
        return BaseModelOutput(last_hidden_state=states[-1][:, -given.shape[1] :])


class _Guard:
    """Refuses to run a reference once the weights that it shares have been written to.

    Parameters:
        shared: of the tensors that it shares.
        changes: torch's count of changes to them; None where only values count, as of a frozen base, which
            engines hand about among processes.
    """

    def __init__(self, shared: Fingerprints, changes: int | None = None) -> None:
        self.shared = shared
        self.changes = changes
        self.whole = None if changes is None else fingerprints(shared.tensors, exact=True)

    def __call__(self, module: Any, args: Any) -> None:
        if self.shared.differs() or self._rewritten():
            raise LoadkitError(
                "this reference shares the policy's storage, and the policy has trained since: it isn't what was loaded any more; "
                "ask for reference(trained_in_full=True) before training"
            )

    def _rewritten(self) -> bool:
        if self.whole is None or (now := versions(self.shared.tensors)) == self.changes:
            return False
        self.changes = now
        return self.whole.differs()


class _WithoutGradients:
    """Keeps a reference out of any graph, though its embeddings' output asks for one, as a policy's does."""

    def __init__(self) -> None:
        self.before: list[bool] = []

    def off(self, module: Any, args: Any) -> None:
        self.before.append(torch.is_grad_enabled())
        torch.set_grad_enabled(False)

    def as_before(self, module: Any, args: Any, output: Any) -> None:
        if self.before:  # else another hook failed before `off`
            torch.set_grad_enabled(self.before.pop())


def _share(policy: Any, memo: dict[int, Any]) -> None:
    """Let a copy have the policy's buffers, and what packed weights and their modules carry."""
    for parameter in policy.parameters():
        if is_packed(parameter):
            memo |= {id(carried): carried for carried in vars(parameter).values()}
    for module in policy.modules():
        if isinstance(module, torch.nn.modules.batchnorm._NormBase):
            continue  # counted on while the policy trains
        memo |= {id(buffer): buffer for buffer in module.buffers(recurse=False)}
        memo |= {id(tensor): tensor for tensor in _held(module)}


def _held(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Tensors that a module has beside its parameters and buffers: constants of 8-bit layers, for one."""
    for value in vars(module).values():
        yield from (v for v in (value, *getattr(value, "__dict__", {}).values()) if type(v) is torch.Tensor)


def _without_adapters(base: Any, memo: dict[int, Any]) -> Any:
    """A copy of the bare model, with the layers beneath the adapter's in their places."""
    for module in base.modules():
        if id(module) in memo:
            continue
        if hasattr(module, "get_base_layer") and hasattr(module, "base_layer"):
            memo[id(module)] = copy.deepcopy(module.get_base_layer(), memo)
        elif hasattr(module, "original_module"):
            memo[id(module)] = copy.deepcopy(module.original_module, memo)
    return copy.deepcopy(base, memo)


def _needs_peft(policy: Any) -> bool:
    """Whether an adapter does more than its layers do: prompts, routers, and what looks at the input ids."""
    from peft.tuners.tuners_utils import BaseTuner

    config, tuner = policy.active_peft_config, policy.base_model
    if config.is_prompt_learning or not isinstance(tuner, BaseTuner):
        return not config.is_adaption_prompt
    by_ids = getattr(config, "alora_invocation_tokens", None)
    return type(tuner).forward is not BaseTuner.forward or bool(by_ids)


def _frozen(reference: Any, policy: Any, guard: _Guard | None) -> Any:
    """Freeze a copy for good: no gradients, no dropout whatever mode it is put in, a forward of its own."""
    foreign = {id(module) for module in policy.modules()}
    for parameter in reference.parameters():
        if parameter.requires_grad:
            parameter.requires_grad_(False)
    for module in reference.modules():
        if "forward" in vars(module) and _reaches(vars(module)["forward"], foreign):
            del module.forward  # a trainer's, bound to the policy
    reference.eval()
    reference.train = types.MethodType(_stays, reference)
    if guard is not None:
        reference.register_forward_pre_hook(guard)
    gradients = _WithoutGradients()
    reference.register_forward_pre_hook(gradients.off)
    reference.register_forward_hook(gradients.as_before, always_call=True)
    return reference


def _stays(self: Any, mode: bool = True) -> Any:
    """`train` of a reference: it stays in evaluation mode."""
    return self


def _reaches(function: Any, foreign: set[int], depth: int = 8) -> bool:
    """Whether a function is bound to one of the policy's modules, itself or by what it closes over."""
    if depth == 0 or isinstance(function, torch.nn.Module):
        return id(function) in foreign
    if id(getattr(function, "__self__", None)) in foreign:
        return True
    inner = getattr(function, "__func__", function)
    closed = inspect.getclosurevars(inner).nonlocals.values() if inspect.isfunction(inner) else ()
    return any(_reaches(each, foreign, depth - 1) for each in closed if callable(each))

"""Which tensors of the base an adapter moves, and how."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from loadkit.errors import Problem
from loadkit.merging.problems import merge_problem
from loadkit.merging.skeleton import Skeleton

__all__ = ["Move", "find_moves", "unmergeable"]

MERGED_TYPES = (
    *("LORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT", "HRA", "VERA", "FOURIERFT", "LN_TUNING"),
    "TRAINABLE_TOKENS",
)
"""PEFT's types whose merging of one layer needs nothing but that layer, as the tests have proved of each."""

CHANGING_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts that take a part of the base's weights into the adapter; PEFT 0.21 does so anew when it loads."""

VARIANTS = (
    *("alora_invocation_tokens", "arrow_config", "use_bdlora", "velora_config", "monteclora_config"),
    *("kasa_config", "use_qalora", "layer_replication"),
)
"""Fields of LoRA by which it is more than a product of two matrices, or the model more than its base."""


class Move(NamedTuple):
    """How one tensor of the base comes to its new value.

    Parameters:
        target: its name in the model.
        how: "merged" by the wrapper's own arithmetic, or "replaced" by a tensor of the adapter's.
        wrapper: PEFT's module around the base's; None where the adapter brought the tensor alone.
        module: the base's module that has it.
        attribute: its name there.
        value: what it is replaced by, or what takes the stored tensor's place before merging; None for
            neither.
    """

    target: str
    how: Literal["merged", "replaced"]
    wrapper: Any
    module: Any
    attribute: str
    value: Any = None


def unmergeable(source: str, config: dict[str, Any]) -> Problem | None:
    """Why an adapter can't be merged layer by layer, by its config; None where it can."""
    kind = str(config.get("peft_type", ""))
    start = config.get("init_lora_weights")
    in_memory = "load it with merge_adapter=True, and save that: PEFT merges it in memory, if it can"
    if kind not in MERGED_TYPES:
        return merge_problem(
            "merge-type",
            f"{source!r} is a {kind or 'nameless'} adapter, which isn't merged shard by shard; {', '.join(MERGED_TYPES)} are",
            in_memory,
        )
    odd = [field for field in VARIANTS if config.get(field)]
    odd += ["init_lora_weights='mica'"] if str(start).lower() == "mica" else []
    if kind == "LORA" and odd:
        return merge_problem(
            "merge-type",
            f"{source!r} has {', '.join(odd)}: more than LoRA's two matrices decides what its layers do",
            in_memory,
        )
    if kind == "LORA" and isinstance(start, str) and start.lower().startswith(CHANGING_BASE):
        return merge_problem(
            "merge-changed-base",
            f"{source!r} started with init_lora_weights={start!r}: its deltas are for a base that isn't the stored one",
            "convert it where it was trained, with PEFT's save_pretrained(…, path_initial_model_for_weight_conversion=…), "
            f"or {in_memory}",
        )
    return None


def find_moves(skeleton: Skeleton) -> dict[str, Move]:
    """Every tensor that the adapter moves, by its name in the model."""
    found: dict[str, Move] = {}
    for module, path in skeleton.modules.items():  # what the file brought in place of the base's own
        for attribute, tensor in module.named_parameters(recurse=False):
            if tensor.device.type != "meta":
                target = f"{path}.{attribute}".lstrip(".")
                found[target] = Move(target, "replaced", None, module, attribute, tensor.detach())
    for move in _wrapped(skeleton):
        known = found.get(move.target)
        found[move.target] = (
            move if known is None or move.value is not None else move._replace(value=known.value)
        )
    return found


def _wrapped(skeleton: Skeleton) -> Iterator[Move]:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    inside: list[str] = []
    for path, wrapper in skeleton.adapted.base_model.model.named_modules():
        if any(path.startswith(outer) for outer in inside):
            continue
        if isinstance(wrapper, ModulesToSaveWrapper):
            yield from _saved(skeleton, wrapper)
        elif isinstance(wrapper, TrainableTokensWrapper):
            yield from _merged(skeleton, wrapper.token_adapter, ("weight",))
        elif isinstance(wrapper, BaseTunerLayer):
            yield from _tuned(skeleton, wrapper)
        else:
            continue
        inside.append(f"{path}.")


def _saved(skeleton: Skeleton, wrapper: Any) -> Iterator[Move]:
    """A module that the adapter brings whole: parameters, and buffers that are saved with it."""
    if skeleton.adapter not in wrapper.modules_to_save:
        return
    for name, tensor in wrapper.modules_to_save[skeleton.adapter].state_dict(keep_vars=True).items():
        inner, _, attribute = name.rpartition(".")
        module = wrapper.original_module.get_submodule(inner)
        target = f"{skeleton.modules[module]}.{attribute}".lstrip(".")
        yield Move(target, "replaced", wrapper, module, attribute, tensor.detach())


def _tuned(skeleton: Skeleton, wrapper: Any) -> Iterator[Move]:
    from peft.tuners.lora.layer import LoraLayer, ParamWrapper

    while isinstance(wrapper, ParamWrapper):
        yield from _merged(skeleton, wrapper, (wrapper.parameter_name,))
        wrapper = wrapper.base_layer
    if not hasattr(wrapper, "get_base_layer"):
        return
    base = wrapper.get_base_layer()
    if (brought := getattr(wrapper, "ln_tuning_layers", None)) is not None:
        for name, tensor in brought[skeleton.adapter].named_parameters():
            target = f"{skeleton.modules[base]}.{name}"
            yield Move(target, "replaced", wrapper, base, name, tensor.detach())
        return
    attributes: tuple[str, ...] = tuple(name for name, _ in base.named_parameters(recurse=False))
    if isinstance(wrapper, LoraLayer):
        biased = wrapper.lora_bias.get(skeleton.adapter, False)
        attributes = tuple(name for name in attributes if name == "weight" or (biased and name == "bias"))
    yield from _merged(skeleton, wrapper, attributes)


def _merged(skeleton: Skeleton, wrapper: Any, attributes: tuple[str, ...]) -> Iterator[Move]:
    module = wrapper.get_base_layer()
    for attribute in attributes:
        target = f"{skeleton.modules[module]}.{attribute}".lstrip(".")
        yield Move(target, "merged", wrapper, module, attribute)

"""The base's class without its weights, and the adapter on it: every name and shape, and no memory for the
base."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from loadkit.errors import LoadError, Problem
from loadkit.hooks import hookspecs as hooks
from loadkit.hooks.manager import PluginManager
from loadkit.loading.from_pretrained import load_config, model_class_of
from loadkit.loading.process_wide import one_at_a_time
from loadkit.merging.problems import merge_problem
from loadkit.schema.adapters import Adapter
from loadkit.schema.plans import Plan
from loadkit.schema.processing import Vocabulary
from loadkit.schema.request import Token
from loadkit.text.suggest import some_of

__all__ = ["Skeleton", "build", "build_bare"]

TOWARDS_BASE = "_move_adapter_to_device_of_base_layer"
"""The method by which PEFT 0.21 takes an adapter to where its base layer is, which here is nowhere."""

UNREAD = ".trainable_tokens_original."
"""A tensor of PEFT's that merging doesn't read: the base's rows, to take a merge back."""


class Skeleton(NamedTuple):
    """Two models of the base's class whose weights are on torch's meta device.

    Parameters:
        bare: the one without the adapter.
        adapted: the `peft.PeftModel` around the other, with the adapter's tensors in float32.
        modules: every module of the base within `adapted`, to its path in the base.
        adapter: its name.
        generation: the fields of the generation config as the base has them, and as the tokenizer asks.
    """

    bare: Any
    adapted: Any
    modules: dict[Any, str]
    adapter: str
    generation: tuple[dict[str, Any], dict[str, Any]]


def build_bare(plan: Plan, config: Any) -> Any:
    """A model of the plan's class on the meta device, in float32."""
    import torch
    import transformers

    model_class = model_class_of(plan)
    with torch.device("meta"), _quiet():
        if issubclass(model_class, transformers.PreTrainedModel):
            return model_class._from_config(config, dtype=torch.float32)
        remote = plan.model_class.implementation == "remote code"
        return model_class.from_config(config, trust_remote_code=remote, dtype=torch.float32)


def build(
    plan: Plan,
    adapter: Adapter,
    vocabulary: Vocabulary,
    manager: PluginManager,
    token: Token,
    generation: dict[str, Any],
) -> tuple[Skeleton, list[Problem]]:
    """Build both, and load the adapter's file onto the one.

    Parameters:
        adapter: the plan's, with the folder of its files as its source.
        vocabulary: what the tokenizer asks of the embeddings.
        generation: the base's generation config; empty for none.

    Returns:
        The skeleton, and what is wrong with the adapter's tensors.

    Raises:
        LoadError: the libraries underneath failed.
    """
    import peft

    with one_at_a_time(), _quiet():
        bare, beneath = (build_bare(plan, load_config(plan, token)[0]) for _ in range(2))
        if generation and getattr(bare, "generation_config", None) is not None:
            bare.generation_config = type(bare.generation_config).from_dict(generation)
        said = [_said(bare)]
        bare, beneath = (_fitted(plan, model, vocabulary, manager) for model in (bare, beneath))
        said.append(_said(bare))
        modules = {module: path for path, module in beneath.named_modules()}
        try:
            config = peft.PeftConfig.from_pretrained(adapter.source)
            config.inference_mode = True
            adapted = peft.PeftModel(beneath, config, adapter.name, False, low_cpu_mem_usage=True)
            unexpected = _load(adapted, adapter)
        except Exception as error:  # PEFT lets any error of its parts through
            reason = re.sub(r"\s+", " ", str(error)) or type(error).__name__
            raise LoadError(
                f"the adapter {adapter.source!r} ({adapter.name}) doesn't fit {plan.checkpoint.location!r}: {reason}\n"
                "    fix: merge it into the base that its adapter_config.json names"
            ) from error
    skeleton = Skeleton(bare, adapted, modules, adapter.name, (said[0], said[1]))
    return skeleton, _problems(adapted, adapter, modules, unexpected)


def _fitted(plan: Plan, model: Any, vocabulary: Vocabulary, manager: PluginManager) -> Any:
    """The model with as many rows as the tokenizer and the adapter ask for, and the configs to match."""
    if plan.processing.kind != "none" or vocabulary.rows:
        fitted = manager.first(
            hooks.loadkit_fit_vocabulary,
            plan=plan,
            model=model,
            vocabulary=vocabulary,
        )
        model = model if fitted is None else fitted
    return model


def _said(model: Any) -> dict[str, Any]:
    """The fields of its generation config; none where it has none."""
    found = getattr(model, "generation_config", None)
    return {} if found is None else dict(found.to_dict())


def _load(adapted: Any, adapter: Adapter) -> list[str]:
    """Put the file's tensors into their places, in float32; those that have none."""
    import peft
    from peft.utils import load_peft_weights

    for module in adapted.modules():
        if hasattr(type(module), TOWARDS_BASE):
            setattr(module, TOWARDS_BASE, lambda *_, **__: None)
    mapping = getattr(adapted.get_base_model(), "_checkpoint_conversion_mapping", {})
    tensors = load_peft_weights(adapter.source, device="cpu", key_mapping=mapping)
    wide = {name: _wide(tensor) for name, tensor in tensors.items()}
    del tensors
    done = peft.set_peft_model_state_dict(adapted, wide, adapter_name=adapter.name, low_cpu_mem_usage=True)
    for module in adapted.modules():
        vars(module).pop(TOWARDS_BASE, None)
    return [name for name in done.unexpected_keys if not _said_twice(name, wide)]


def _said_twice(name: str, tensors: Mapping[str, Any]) -> bool:
    """Whether PEFT 0.21 saved a tensor of embeddings or of a head under another name too, where they were
    resized or are tied."""
    import torch

    plain = name.replace(".modules_to_save.", ".")
    if plain != name:
        return plain in tensors and torch.equal(tensors[plain], tensors[name])
    twins = [other for other in tensors if other != name and other.endswith(".trainable_tokens_delta")]
    return name.endswith(".trainable_tokens_delta") and any(
        torch.equal(tensors[o], tensors[name]) for o in twins
    )


def _wide(tensor: Any) -> Any:
    import torch

    narrow = tensor.is_floating_point() and tensor.dtype.itemsize < 4
    return tensor.to(torch.float32) if narrow else tensor


def _problems(
    adapted: Any, adapter: Adapter, modules: dict[Any, str], unexpected: list[str]
) -> list[Problem]:
    """Tensors that the adapter's file lacks, has too many, or that hold what is no number."""
    import torch

    base = {id(tensor) for module in modules for tensor in _own(module)}
    named = (*adapted.named_parameters(), *adapted.named_buffers())
    own = [(name, tensor) for name, tensor in named if id(tensor) not in base]
    missing = [name for name, tensor in own if tensor.device.type == "meta" and UNREAD not in name]
    filled = [(name, tensor) for name, tensor in adapted.named_parameters() if tensor.device.type != "meta"]
    broken = [name for name, tensor in filled if not torch.isfinite(tensor).all()]
    said = f"the adapter {adapter.source!r} ({adapter.name})"
    found = []
    if missing or unexpected:
        each = [f"{some_of(missing, 3)} missing from its file"] if missing else []
        each += [f"{some_of(unexpected, 3)} in its file and nowhere in the model"] if unexpected else []
        found.append(
            merge_problem(
                "merge-incomplete",
                f"{said} doesn't fit the model: {'; '.join(each)}",
                "check that its file is complete, and that this is the base that it was made for",
            )
        )
    if broken:
        found.append(
            merge_problem(
                "merge-not-finite",
                f"{said} holds NaN or infinity in {some_of(broken, 3)}: merged, it would make the model useless",
                "use an earlier checkpoint of the training, from before it diverged",
            )
        )
    return found


def _own(module: Any) -> Iterator[Any]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """What PEFT and transformers warn of while building is checked here, or doesn't matter to names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

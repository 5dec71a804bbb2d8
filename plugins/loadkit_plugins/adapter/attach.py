"""Attach adapters with PEFT, and merge them."""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loadkit import Adapter, Adapters, LoadError, Plan, Vocabulary
from loadkit_plugins.adapter.by_parameter import name_by_parameter
from loadkit_plugins.adapter.fields import LORA_OPTIONS
from loadkit_plugins.adapter.layers import WITHOUT_NAME, parameters_of
from loadkit_plugins.adapter.left_out import leave_out
from loadkit_plugins.adapter.older_peft import as_stored, torchao_left_out
from loadkit_plugins.adapter.targets import (
    BY_TYPE,
    EVERY_LINEAR,
    check_targets,
    hidden_linears,
    kept_apart,
    linear_names,
    new_token_rows,
    unfit,
)

__all__ = ["attach", "merge"]

WEIGHTS = "adapter_model.safetensors"

HEADS = {"TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}
"""Heads that PEFT 0.21 trains whole and yet takes for a layer of "all-linear", and then refuses; of sequence
classification it leaves them out itself."""


def attach(plan: Plan, model: Any, adapters: Adapters, vocabulary: Vocabulary) -> Any:
    """Attach every adapter, and turn the active one on; the others are frozen.

    Raises:
        LoadError: one doesn't fit the model.
    """
    _refuse_names(model, adapters)
    asked = any(
        a.source or a.options.get("rank_pattern") or a.options.get("alpha_pattern") for a in adapters.members
    )
    quiet, flow = (
        _quiet(patterns_asked=asked),
        _gradients_flow(model, already=plan.preparation.input_gradients),
    )
    with quiet, flow, torchao_left_out():
        for adapter in adapters.members:
            add = _add_existing if adapter.source else _add_new
            model = add(plan, model, adapter, vocabulary)
            _cast(model, adapter)
        _whole_widths(model)
        _heads_have_bias(model)
        model.set_adapter(adapters.active)
        if adapters.beneath:
            model.base_model.set_adapter([adapters.beneath, adapters.active])
            for name, parameter in model.named_parameters():
                if adapters.beneath in name.split("."):
                    parameter.requires_grad_(False)
    if not next(a for a in adapters.members if a.name == adapters.active).trainable:
        model.requires_grad_(False)
    return model


def merge(model: Any, adapters: Adapters) -> Any:
    """Work the active adapter into the base; a value that isn't finite is an error (PEFT's `safe_merge`)."""
    try:
        merged = model.merge_and_unload(safe_merge=True, adapter_names=[adapters.active])
    except ValueError as error:
        raise LoadError(f"the adapter {adapters.active!r} couldn't be merged: {error}") from error
    if hasattr(merged, "peft_config"):
        del merged.peft_config
    merged._hf_peft_config_loaded = False
    return merged


def _refuse_names(model: Any, adapters: Adapters) -> None:
    """An adapter's tensors have its name in their path, so it can't be the name of a module."""
    parts = {part for name, _ in model.named_modules() for part in name.split(".")}
    taken = [a.name for a in adapters.members if a.name in parts or "." in a.name]
    if taken:
        raise LoadError(
            f"an adapter can't be called {', '.join(map(repr, taken))}: {type(model).__name__} has modules of that name\n"
            "    fix: choose another name, without dots"
        )


def _add_new(plan: Plan, model: Any, adapter: Adapter, vocabulary: Vocabulary) -> Any:
    import peft

    fields = inspect.signature(peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[adapter.peft_type]).parameters
    options = copy.deepcopy(adapter.options)  # PEFT 0.21 writes into the patterns of fused experts
    beneath = model if isinstance(model, peft.PeftModel) else None
    model = model if beneath is None else beneath.get_base_model()
    _resolve(model, adapter, options)
    by_end = adapter.peft_type in WITHOUT_NAME and isinstance(options.get("target_modules"), str)
    named = {**options, "target_modules": [options["target_modules"]]} if by_end else options
    check_targets(model, named, partly=_preferred(plan))
    if beside := kept_apart(model, adapter):
        leave_out(model, adapter.peft_type, options, fields, beside)
    if adapter.peft_type == "LORA" and isinstance(options.get("target_modules"), list):
        name_by_parameter(model, options)
    turned = any(type(m).__name__ == "Conv1D" for m in model.modules())
    if turned and "fan_in_fan_out" in fields and "fan_in_fan_out" not in options:
        options["fan_in_fan_out"] = True  # GPT-2's layers hold their weights transposed
    pad = plan.tokens.pad_token
    ids = [i for token, i in vocabulary.new_tokens.items() if token != pad]
    if adapter.new_tokens and ids and "trainable_token_indices" not in options:
        options["trainable_token_indices"] = new_token_rows(model, ids, options) or None
    try:
        dropout = options.pop("lora_dropout", 0) if adapter.peft_type == "LORA" else 0
        if isinstance(runtime := options.get("runtime_config"), dict):
            options["runtime_config"] = peft.LoraRuntimeConfig(**runtime)  # PEFT 0.21 takes it as it is
        config = peft.get_peft_config({"peft_type": adapter.peft_type, **options})
        _use_activations(config)
        if beneath is None:
            made = peft.get_peft_model(model, config, adapter_name=adapter.name, autocast_adapter_dtype=False)
        else:
            made = beneath
            made.add_adapter(adapter.name, config, **as_stored())
        _drop_out(made, adapter.name, dropout)
        return made
    except Exception as error:  # PEFT's dispatchers let any error of a module through
        raise LoadError(
            f"PEFT couldn't attach the {adapter.peft_type} adapter with {options!r}: {str(error) or type(error).__name__} "
            f"(asked for because {plan.why('adapter').because})\n"
            "    fix: correct the field that it names, or leave it out of the peft_config: PEFT's own default stands in its place"
        ) from error


def _drop_out(model: Any, name: str, dropout: float) -> None:
    """Set dropout on every layer.

    PEFT 0.21 refuses settings with dropout where parameters are adapted, as its layers over them have none.
    Saved settings say 0 then, so that PEFT can load the adapter.
    """
    import torch
    from peft.tuners.lora.layer import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers if dropout else ():
        if name in layer.lora_dropout:
            layer.lora_dropout[name] = torch.nn.Dropout(p=dropout)
    if not getattr(model.peft_config[name], "target_parameters", None):
        model.peft_config[name].lora_dropout = dropout


def _use_activations(config: Any) -> None:
    """Have parameters be adapted by loadkit's own layers, which have PEFT's tensors."""
    if str(config.peft_type).endswith("LORA") and hasattr(config, "target_parameters"):
        from loadkit_plugins.adapter.parameters import use_activations

        use_activations(config)


def _every(adapter: Adapter) -> bool:
    given = adapter.options.get("target_modules")
    return EVERY_LINEAR in ([given] if isinstance(given, str) else given or ())


def _resolve(model: Any, adapter: Adapter, options: dict[str, Any]) -> None:
    """Write names where "every-linear" or "by-model-type" stands."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    given = options.get("target_modules")
    heads = HEADS.get(str(options.get("task_type")), ())
    if (
        given in ("all-linear", EVERY_LINEAR)
        and heads
        and not isinstance(options.get("exclude_modules"), str)
    ):
        left = options.get("exclude_modules") or ()
        options["exclude_modules"] = [*left, *(head for head in heads if head not in left)]
    if given == "all-linear" and hidden_linears(model):
        given = EVERY_LINEAR
    if given == BY_TYPE:
        own = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type)
        options["target_modules"] = list(own) if own else "all-linear"
        return
    listed = [given] if isinstance(given, str) else list(given or ())
    if EVERY_LINEAR in listed:
        names = linear_names(model, kept_apart(model, adapter))
        options["target_modules"] = list(dict.fromkeys([*(e for e in listed if e != EVERY_LINEAR), *names]))
        if (wrappers := unfit(model, names)) and not isinstance(options.get("exclude_modules"), str):
            options["exclude_modules"] = [*(options.get("exclude_modules") or ()), *wrappers]


def _preferred(plan: Plan) -> list[str]:
    """The fields whose lists a profile or recipe gave: PEFT takes of them what is there, and so do we."""
    whole = plan.request.asked("peft_config")
    found = []
    for name, field in LORA_OPTIONS.items():
        given = whole if whole is not None and whole.value.get(field) is not None else None
        by = [each for each in (plan.request.asked(name), given) if each is not None]
        if by and not any(each.demanded for each in by):
            found.append(field)
    return found


def _add_existing(plan: Plan, model: Any, adapter: Adapter, vocabulary: Vocabulary) -> Any:
    """Load an adapter onto the base's device, comparing its tensors: PEFT only warns where they don't fit."""
    import peft

    about: dict[str, Any] = {
        "adapter_name": adapter.name,
        "is_trainable": adapter.trainable,
        "autocast_adapter_dtype": False,
        "torch_device": str(next(model.parameters()).device),  # PEFT's guess is a GPU wherever the base is
    }
    try:
        config = peft.PeftConfig.from_pretrained(adapter.source)
        config.inference_mode = not adapter.trainable
        _use_activations(config)
        if isinstance(model, peft.PeftModel):
            model.add_adapter(adapter.name, config, **as_stored())
            if adapter.trainable:
                model.set_requires_grad(adapter.name)
            model.load_adapter(adapter.source, **about)  # its tensors: the layers are there
        else:
            model = peft.PeftModel.from_pretrained(model, adapter.source, config=config, **about)
    except Exception as error:  # PEFT lets any error of its parts through
        reason = re.sub(r"\s+", " ", str(error))
        raise LoadError(
            f"the adapter {adapter.source!r} ({adapter.name}) doesn't fit {plan.checkpoint.location!r}: {reason}\n"
            "    fix: load it with the base that its adapter_config.json names"
        ) from error
    _compare(plan, model, adapter)
    return model


def _compare(plan: Plan, model: Any, adapter: Adapter) -> None:
    """Refuse an adapter of which tensors are missing or have no place."""
    import peft
    from safetensors import safe_open

    path = Path(adapter.source) / WEIGHTS
    if not path.is_file():
        return  # a pickle, which the user allowed; PEFT has read it
    with safe_open(path, framework="pt") as file:
        stored = set(file.keys())
    state = peft.get_peft_model_state_dict(model, adapter_name=adapter.name, save_embedding_layers=False)
    missing = sorted(set(state) - stored)
    unexpected = sorted(name for name in stored - set(state) if not _embedding(name, state))
    wrong = {"missing from its file": missing, "in its file and nowhere in the model": unexpected}
    if missing or unexpected:
        said = [
            f"{len(names)} tensors are {what}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
            for what, names in wrong.items()
            if names
        ]
        raise LoadError(
            f"the adapter {adapter.source!r} ({adapter.name}) doesn't fit {plan.checkpoint.location!r}: {'; '.join(said)}\n"
            "    fix: check that its file is complete, and that this is the base that it was made for"
        )


def _embedding(name: str, state: Any) -> bool:
    """Whether a tensor is of embeddings: saved whole where resized, by PEFT 0.21 once for each name that they
    have in its wrapper; and a tied pair's rows twice."""
    inside = name.replace(".modules_to_save.", ".").replace(".original_module.", ".")
    whole = inside.endswith(("embed_tokens.weight", "lm_head.weight", "base_layer.weight", "wte.weight"))
    return whole or (".token_adapter." in name and any(".token_adapter." in key for key in state))


def _cast(model: Any, adapter: Adapter) -> None:
    """Bring everything of an adapter into the planned dtype, whatever its file has.

    PEFT 0.21.2 reads a file into tensors of the base's dtype: for a wider one it is read again.
    """
    import torch

    dtype, rounded = getattr(torch, adapter.dtype), False
    named = dict(model.named_parameters())
    for parameter in (named[name] for name in parameters_of(adapter, [*named.items()])):
        if parameter.is_floating_point():
            rounded |= parameter.dtype.itemsize < dtype.itemsize
            parameter.data = parameter.data.to(dtype)
    path = Path(adapter.source) / WEIGHTS
    if rounded and adapter.source and path.is_file():
        import peft
        from safetensors.torch import load_file

        peft.set_peft_model_state_dict(model, load_file(path), adapter_name=adapter.name)


def _whole_widths(model: Any) -> None:
    """Let the adapter's split layers have the width of the whole, as the base's do.

    Under tensor parallelism PEFT 0.21.2 gives lora_A of a layer that is split by its inputs the width of this
    rank's part, which transformers 5.23 takes for the whole: the forward pass fails.
    """
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and hasattr(module.weight, "device_mesh"):  # a DTensor
            module.out_features, module.in_features = module.weight.shape


def _heads_have_bias(model: Any) -> None:
    """Let a head of which rows train be asked for its bias, as trainers of TRL 1.16 do: PEFT 0.21.2 hands on
    its weight, and nothing else."""
    for module in model.modules():
        if type(module).__name__ == "TrainableTokensWrapper" and hasattr(module.original_module, "bias"):
            vars(module)["bias"] = module.original_module.bias  # beside its parameters, not one more of them


@contextmanager
def _gradients_flow(model: Any, *, already: bool) -> Iterator[None]:
    """Keep PEFT 0.21 from letting gradients through a second time, by functions that can't be pickled, where
    the preparation has."""
    if not already:
        yield
        return
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.enable_input_require_grads = lambda: None
    try:
        yield
    finally:
        del base.enable_input_require_grads


@contextmanager
def _quiet(*, patterns_asked: bool) -> Iterator[None]:
    """Silence PEFT 0.21 about an attribute that transformers 5.23 renamed, what is an error here, and
    patterns of ranks that it made up itself for fused experts, and that matched nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        if not patterns_asked:
            warnings.filterwarnings(
                "ignore", "The following (rank|alpha)_pattern keys did not match", RuntimeWarning
            )
        yield

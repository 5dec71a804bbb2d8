"""What the alignment-handbook, open-r1 and TRL call to load a model, on TRL's `ModelConfig`, new or old."""

from __future__ import annotations

from typing import Any

from loadkit.compat.arguments import LORA_FIELDS, given, recipe_of
from loadkit.errors import PlanError
from loadkit.facts.machine.machine import read_machine, this_machine
from loadkit.facts.machine.topology import read_topology
from loadkit.hooks import hookspecs as hooks
from loadkit.hooks.manager import default_manager
from loadkit.loading.imports import hide_what_peft_fails_with
from loadkit.loading.load import load, load_processing_class
from loadkit.planning.pipeline import make_plan

__all__ = ["get_kbit_device_map", "get_model", "get_peft_config", "get_quantization_config", "get_tokenizer"]


def get_model(model_args: Any, training_args: Any = None) -> Any:
    """Load the bare model, as the alignment-handbook's and open-r1's function of this name.

    Parameters:
        model_args: TRL's `ModelConfig`, with `dtype` or, before, `torch_dtype`.
        training_args: the trainer's config: gradient checkpointing turns the key-value cache off.

    Returns:
        The `transformers.PreTrainedModel`, quantized where asked for: the trainer injects the adapter;
        for an adapter's repository its base with that adapter, as the originals return it.
    """
    recipe = recipe_of(model_args, training_args)
    plan = make_plan(recipe=recipe, training=False)
    if plan.adapters is None or not plan.adapters.members[0].source:
        return load(recipe=recipe, adapter=False, training=False).model
    return load(plan).model


def get_tokenizer(model_args: Any, training_args: Any = None) -> Any:
    """Load the tokenizer or processor, as the alignment-handbook's and open-r1's function of this name.

    Parameters:
        model_args: TRL's `ModelConfig`.
        training_args: the trainer's config: a `chat_template` (or `chat_template_path`) of its is set.
    """
    return load_processing_class(recipe=recipe_of(model_args, training_args), adapter=False, training=False)


def get_quantization_config(model_args: Any) -> Any:
    """Build the quantization config, as TRL's function of this name, with the compute dtype resolved.

    TRL hands `dtype` on as it is: "auto" fails in `BitsAndBytesConfig`, None computes in float32.

    Returns:
        A `transformers.BitsAndBytesConfig`; None where nothing is quantized. For a checkpoint stored in fp8
        or mxfp4 it is one that `get_model` follows and plain `from_pretrained` refuses, as it does TRL's.
    """
    if not (getattr(model_args, "load_in_4bit", False) or getattr(model_args, "load_in_8bit", False)):
        return None
    plan = make_plan(recipe=recipe_of(model_args), adapter=False)
    quantization = plan.quantization
    if quantization is None or quantization.prequantized:
        return None  # stored so: from_pretrained reads it from the checkpoint
    return default_manager().first(
        hooks.loadkit_build_quantization_config, plan=plan, quantization=quantization, skip_modules=None
    )


def get_kbit_device_map() -> dict[str, int] | None:
    """Place a quantized model on this process's own GPU, as TRL's function of this name did.

    Returns:
        `{"": local rank}`; None without a GPU.

    Raises:
        PlanError: what the launcher set contradicts itself, so that the local rank isn't known.
    """
    topology = read_topology()
    if topology.problems:
        raise PlanError("this process's own GPU", topology.problems)
    return {"": topology.local_rank} if read_machine().accelerators else None


def get_peft_config(model_args: Any) -> Any:
    """Build the `peft.LoraConfig`, as TRL's function of this name; None without `use_peft`."""
    if not getattr(model_args, "use_peft", False):
        return None
    hide_what_peft_fails_with(this_machine().packages)
    import peft

    task_type = getattr(model_args, "lora_task_type", "CAUSAL_LM")
    return peft.LoraConfig(task_type=task_type, bias="none", **given(model_args, LORA_FIELDS))

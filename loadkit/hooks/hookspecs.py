"""The hooks of loadkit, in the order in which they are called. This file is the manual for plugin authors.

A plugin is a module (or any object) with functions of these names, each marked with `@loadkit.hookimpl` and
taking those of the parameters that it needs, by name. Announce it in your distribution's pyproject.toml:

    [project.entry-points.loadkit]
    my-plugin = "my_package.my_module"

Four kinds of hooks:

* **Poll** (`choose_*`, `contribute_kwargs`): every plugin is asked, each answers with a `Claim`, several, or
  None for no opinion; the strongest claim wins, and two of equal strength that differ are an error for the
  user to settle. Registration order decides nothing. Claim only what concerns you, and say why in one line.
  Where you would decide but can't, answer with a `Problem` that says why: it is shown if nobody else claims
  either.
* **Collect** (`options`, `profiles`, `architectures`, `optimizers`, `accelerators`, `recipe_dialects`,
  `announce_finish`, `check_plan`, `shortcuts`, `shorten_loading`, `finish_model`, `audit_model`, `read_back`,
  `report_sections`, `workarounds`): every answer counts.
* **Estimate** (`estimate_weights`, `estimate_adapters`): the first result that isn't None is used.
* **Act** (`open_source`, `build_quantization_config`, `load_model`, `decode_stored`, `compare_tensor`,
  `open_parameter`, and the phases from `fit_vocabulary` to `merge_adapters`): the first result that isn't
  None is used; return None for what isn't yours. loadkit's own plugins are asked last, the others by name.
  The core calls the phases always in the same order.

Hooks up to `shortcuts` run while planning: they must not import torch or transformers, and must not look at
the machine, the environment or the network, but for `open_source`, which is for that. All they need is in the
frozen facts of `context`. The others run while loading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import pluggy

from loadkit.cache.entries import Entries
from loadkit.errors import Finding, Problem
from loadkit.facts.context import Context
from loadkit.facts.library.weight_roles import Weight
from loadkit.facts.machine.machine import Machine
from loadkit.facts.machine.named_machines import NamedAccelerator
from loadkit.request.options import Option
from loadkit.request.profiles import Profile
from loadkit.request.recipes.key_tables import Dialect
from loadkit.schema.adapters import Adapters
from loadkit.schema.claims import Claim
from loadkit.schema.finishes import Finish
from loadkit.schema.loading_aids import LoadingAid, Shortcut
from loadkit.schema.memory import Optimizer
from loadkit.schema.plans import Plan
from loadkit.schema.processing import Processing, Tokens, Vocabulary
from loadkit.schema.quantized_weights import Opened, Packed
from loadkit.schema.readings import Reading
from loadkit.schema.reports import Loading, Section
from loadkit.schema.sources import Source
from loadkit.schema.values import Architecture, ModelClass, Placement, Preparation, Quantization

PROJECT = "loadkit"

API = "1.2"
"""The version of these hooks. A plugin that needs a newer one says `LOADKIT_API = "1.3"` in its module; one
that can't be beside another says `LOADKIT_CONFLICTS = {"its-name": "why"}`."""

RENAMED: Mapping[str, str] = {}
"""Hooks' old names to the present ones: a plugin that still uses one works, with a warning that names it."""

RENAMED_PARAMETERS: Mapping[str, Mapping[str, str]] = {}
"""Hook to its parameters' old names and the present ones, likewise."""

T = TypeVar("T")
Answer: TypeAlias = Claim[T] | Problem | Sequence[Claim[T] | Problem] | None
"""What a decision hook returns."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


# --- What there is


@hookspec
def loadkit_options() -> Sequence[Option]:  # type: ignore[empty-body]
    """Declare options that `plan()`, `load()` and the command line accept for your plugin.

    When:
        Once per plugin manager, as soon as your plugin is registered.

    Returns:
        The declarations; a name that another plugin declares too is an error.
    """


@hookspec
def loadkit_profiles() -> Sequence[Profile]:  # type: ignore[empty-body]
    """Provide profiles: named sets of options with a sentence each.

    When:
        Once per plugin manager, as soon as your plugin is registered.

    Returns:
        The profiles; two of one name are an error.
    """


@hookspec
def loadkit_architectures() -> Sequence[Architecture]:  # type: ignore[empty-body]
    """Register model families: classes, attention support, LoRA targets, what not to quantize.

    When:
        Once per plugin manager, as soon as your plugin is registered.

    Returns:
        The facts; two for one model type are an error.
    """


@hookspec
def loadkit_optimizers() -> Sequence[Optimizer]:  # type: ignore[empty-body]
    """Tell what optimizers keep for each value that trains, for the estimate of memory.

    When:
        Once per plugin manager, as soon as your plugin is registered.

    Returns:
        The optimizers, each with the names that `optim` has for it. A name of loadkit's own can't be taken.
    """


@hookspec
def loadkit_accelerators() -> Sequence[NamedAccelerator]:  # type: ignore[empty-body]
    """Give accelerators names, by which a plan for machines that aren't here can ask for them ("8xMI300X").

    When:
        Once per plugin manager, as soon as your plugin is registered.

    Returns:
        The accelerators. A name of loadkit's own can't be taken, and "8xH100" keeps meaning loadkit's own.
    """


@hookspec
def loadkit_recipe_dialects() -> Sequence[Dialect]:  # type: ignore[empty-body]
    """Bring tables that translate the training recipes of another trainer.

    When:
        Once per plugin manager, as soon as your plugin is registered.

    Returns:
        The dialects. Each has markers, keys that no recipe of loadkit's own dialects has: by these its
        recipes are told from others.
    """


# --- Where it is


@hookspec(firstresult=True)
def loadkit_open_source(reference: str, revision: str) -> Source | Problem | None:
    """Open a checkpoint that lies elsewhere: "store://models/tiny", "s3://bucket/folder".

    The core reads small files and weight files' headers by ranges, names the state by a commit, fetches the
    rest when it loads, checks it, keeps the copy and answers from it while offline. A later answer with
    other files, sizes, checksums, tags or version is another commit, and isn't loaded in place of this one.

    When:
        While planning, for a source, a base, a tokenizer or an adapter with a scheme; again while loading,
        before and after files are fetched. Never while offline. In every process of a launch.

    Parameters:
        reference: the address, its scheme in small letters, without a "/" at its end. It never holds a user
            or a key: take credentials from where the store's own tools do.
        revision: what was asked for, "" for none. A source that is of it says so in `Source.revision`.

    Returns:
        The source; a problem where it is yours and can't be opened; None where the scheme isn't yours.
    """


# --- The decisions, in this order


@hookspec
def loadkit_choose_architecture(context: Context) -> Answer[ModelClass]:
    """Choose the class that loads the checkpoint. Some plugin must.

    When:
        The first decision of a plan, when request and facts have been read.

    Parameters:
        context: the facts.

    Returns:
        A claim with the class's name; None where the model type isn't yours.
    """


@hookspec
def loadkit_choose_dtype(context: Context, architecture: ModelClass) -> Answer[str]:
    """Choose the dtype of the weights, such as "bfloat16". Some plugin must.

    It is also the compute dtype of quantized layers and the dtype of a new adapter.

    When:
        After `architecture`.

    Parameters:
        context: the facts.
        architecture: the class decided before.

    Returns:
        A claim with the dtype's name in torch, without "torch.".
    """


@hookspec
def loadkit_choose_attention(
    context: Context, architecture: ModelClass, dtype: str
) -> Answer[str | dict[str, str]]:
    """Choose `attn_implementation`. Some plugin must.

    When:
        After `dtype`.

    Parameters:
        context: the facts.
        architecture: the class decided before.
        dtype: the dtype decided before.

    Returns:
        A claim with one name, or with a name for each sub-config ("" for the outermost); a preference chain
        is one claim, whose `passed_over` says why each earlier link can't be had.
    """


@hookspec
def loadkit_choose_quantization(
    context: Context, architecture: ModelClass, dtype: str
) -> Answer[Quantization | None]:
    """Choose how the weights are quantized, if at all. Nobody's claim means that they aren't.

    When:
        After `attention`.

    Parameters:
        context: the facts.
        architecture: the class decided before.
        dtype: the dtype decided before: the compute dtype unless the user asks otherwise.

    Returns:
        A claim with a `Quantization`, or with None to speak against quantizing.
    """


@hookspec
def loadkit_choose_device_map(
    context: Context, architecture: ModelClass, quantization: Quantization | None
) -> Answer[Placement]:
    """Choose where the weights go. Some plugin must.

    When:
        After `quantization`.

    Parameters:
        context: the facts.
        architecture: the class decided before.
        quantization: the quantization decided before.

    Returns:
        A claim with a `Placement`.
    """


@hookspec
def loadkit_choose_preparation(
    context: Context, architecture: ModelClass, quantization: Quantization | None
) -> Answer[Preparation]:
    """Choose what is done to the model between loading and attaching an adapter. Some plugin must.

    When:
        After `device_map`.

    Parameters:
        context: the facts.
        architecture: the class decided before.
        quantization: the quantization decided before.

    Returns:
        A claim with a `Preparation`.
    """


@hookspec
def loadkit_choose_use_cache(
    context: Context, architecture: ModelClass, preparation: Preparation
) -> Answer[bool | None]:
    """Choose whether the model keeps a key-value cache. It is set on every (sub-)config that has the field.

    When:
        After `preparation`.

    Parameters:
        context: the facts.
        architecture: the class decided before.
        preparation: the preparation decided before: checkpointing and a cache exclude each other.

    Returns:
        A claim with True or False, or with None to leave the checkpoint's own value.
    """


@hookspec
def loadkit_choose_processing(context: Context, architecture: ModelClass) -> Answer[Processing]:
    """Choose the tokenizer or processor. Some plugin must.

    When:
        After `use_cache`.

    Parameters:
        context: the facts.
        architecture: the class decided before.

    Returns:
        A claim with a `Processing`; its `kind` is "none" for a checkpoint without one.
    """


@hookspec
def loadkit_choose_tokens(
    context: Context,
    architecture: ModelClass,
    quantization: Quantization | None,
    preparation: Preparation,
    processing: Processing,
) -> Answer[Tokens | None]:
    """Choose the special tokens: which ends a text, which fills up a batch, which are added.

    When:
        After `processing`.

    Parameters:
        context: the facts.
        architecture: the class decided before.
        quantization: the quantization decided before: embeddings of a quantized checkpoint can't be resized.
        preparation: the preparation decided before: what only training needs isn't changed for inference.
        processing: the tokenizer or processor decided before.

    Returns:
        A claim with `Tokens`, or with None to leave the tokenizer's own.
    """


@hookspec
def loadkit_choose_adapter(
    context: Context,
    architecture: ModelClass,
    dtype: str,
    quantization: Quantization | None,
    preparation: Preparation,
    tokens: Tokens | None,
) -> Answer[Adapters | None]:
    """Choose the adapters, new or existing. Nobody's claim means that there is none.

    When:
        After `tokens`: the last decision that is a stage of its own.

    Parameters:
        context: the facts.
        architecture: the class decided before.
        dtype: the dtype decided before.
        quantization: the quantization decided before.
        preparation: the preparation decided before.
        tokens: the special tokens decided before: rows of new ones are trained with a new adapter.

    Returns:
        A claim with `Adapters`, or with None for a bare model.
    """


@hookspec
def loadkit_contribute_kwargs(
    context: Context, plan: Plan
) -> Mapping[str, Claim[Any] | Sequence[Claim[Any]]] | None:
    """Contribute further keyword arguments of `from_pretrained`, each decided on its own.

    When:
        After all stages are decided.

    Parameters:
        context: the facts.
        plan: the decisions so far.

    Returns:
        Keyword to claim. A keyword that a stage owns (`dtype`, `device_map`, …) is refused: answer that
        stage's hook.
    """


@hookspec(firstresult=True)
def loadkit_estimate_weights(
    context: Context, plan: Plan, weights: Sequence[Weight]
) -> Mapping[str, Packed] | None:
    """Estimate what quantizing makes of the weights, for `plan.memory`.

    When:
        Once all is decided, where the weights will be quantized in memory.

    Parameters:
        context: the facts.
        plan: all decisions.
        weights: every tensor that the model will hold, with what it is.

    Returns:
        The name of each weight that gets quantized, or is stored so, to its bytes; None where the method
        isn't yours.
    """


@hookspec(firstresult=True)
def loadkit_estimate_adapters(
    context: Context, plan: Plan, weights: Sequence[Weight]
) -> Sequence[Weight] | None:
    """Estimate the tensors that the adapters add, for `plan.memory`.

    When:
        Once all is decided, where the plan has adapters that it doesn't merge.

    Parameters:
        context: the facts.
        plan: all decisions.
        weights: every tensor of the base.

    Returns:
        One `Weight` for each tensor, in its dtype in memory; its kind is "other" where it doesn't train. None
        where that type of adapter isn't yours, or its size can't be told.
    """


@hookspec
def loadkit_announce_finish(context: Context, plan: Plan) -> Finish | None:
    """Say that your plugin will finish the model, and with what: the plan names it, and a load asks
    `loadkit_finish_model` of those that it names alone.

    When:
        Once all is decided and the memory estimated, before the checks, which see it.

    Parameters:
        context: the facts.
        plan: all decisions.

    Returns:
        A `Finish`; None where the model stays as it is.
    """


@hookspec
def loadkit_check_plan(context: Context, plan: Plan) -> Sequence[Problem]:  # type: ignore[empty-body]
    """Look at the whole plan for what can't work on these facts.

    When:
        Once every stage that must be decided is, and the memory estimated; also where something else is wrong
        already.

    Parameters:
        context: the facts.
        plan: all decisions.

    Returns:
        Problems, each with a remedy. One of severity "error" stops the request; all are reported together.
    """


@hookspec
def loadkit_shortcuts(plan: Plan, identity: str, machine: Machine, entries: Entries) -> Sequence[Shortcut]:  # type: ignore[empty-body]
    """Tell what will make this load faster, or why it won't be. It changes no bit of the model;
    `loadkit_shorten_loading` does it.

    When:
        The last hook of planning, after the checks.

    Parameters:
        plan: all decisions.
        identity: tells the checkpoint's weights and configs from all others; "" where they can't be told
            apart.
        machine: accelerators, memory and packages.
        entries: what loadkit keeps prepared on this machine.

    Returns:
        A line each; nothing where there is nothing to tell.
    """


# --- Loading


@hookspec(firstresult=True)
def loadkit_build_quantization_config(
    plan: Plan, quantization: Quantization, skip_modules: Sequence[str] | None
) -> Any | None:
    """Build the object that `from_pretrained` takes as `quantization_config`. May import what it needs.

    When:
        Right before the model is loaded, where the plan quantizes; and where the checkpoint is stored in a
        format that transformers doesn't know, so that a plugin can register it: what it builds isn't used.

    Parameters:
        plan: the plan.
        quantization: what was decided; `prequantized` where the checkpoint is stored so.
        skip_modules: full paths of every module to leave alone, the automatic ones included; None where the
            method's own choice is enough.

    Returns:
        The object; None where the method isn't yours.
    """


@hookspec(firstresult=True)
def loadkit_load_model(plan: Plan) -> Any | None:
    """Load the model another way than by calling `from_pretrained`. Wrappers are allowed on this hook only.

    A wrapper gets the model whoever loads it, loadkit itself included, and what it gives back is held against
    the files.

    When:
        After the tokenizer or processor was loaded; once a load.

    Parameters:
        plan: the plan.

    Returns:
        A `transformers.PreTrainedModel` that fits the plan; None to leave it to others and at last to
        loadkit.
    """


@hookspec
def loadkit_shorten_loading(
    plan: Plan, identity: str, machine: Machine, entries: Entries, progress: Callable[[str], None]
) -> LoadingAid | None:
    """Lend something to one load that makes it faster and changes no bit of the model.

    When:
        Once, right after planning, while torch isn't imported yet: the libraries come in while what lies
        ready is looked through. Not used where `loadkit_load_model` has a taker.

    Parameters:
        plan: the plan.
        identity: tells the checkpoint's weights and configs from all others; "" where they can't be told
            apart.
        machine: accelerators, memory and packages.
        entries: what loadkit keeps prepared on this machine.
        progress: takes a short sentence before something that takes long.

    Returns:
        A `LoadingAid`; None for none.
    """


@hookspec(firstresult=True)
def loadkit_decode_stored(plan: Plan, files: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Show a checkpoint's tensors in floating point whose files hold codes that your plugin has decoded while
    the model was loaded.

    When:
        Right after loading, before tensors are compared with the files, where the plan has a quantization.

    Parameters:
        plan: the plan.
        files: the name of every tensor in the files to the file that has it, as `safetensors.safe_open` opens
            it.

    Returns:
        The name of every tensor, as the files would have it in floating point, to what is asked for it:
        an object with `get_slice(name)`, which gives a slice like safetensors', and `file`, the file that it
        reads; or that file itself. None where you decode nothing of this plan.
    """


@hookspec(firstresult=True)
def loadkit_compare_tensor(plan: Plan, module: Any, parameter: Any, stored: Any) -> str | None:
    """Compare a parameter that your plugin quantized with what the checkpoint's file has for it.

    When:
        For a sample of tensors, right after loading. What nobody takes is compared by the core, value by
        value.

    Parameters:
        plan: the plan.
        module: the `torch.nn.Module` that holds it.
        parameter: the `torch.nn.Parameter`, quantized; a `Unit` of it where its matrices were quantized one
            by one (`Opened.units`).
        stored: the first rows of the tensor in the file, as a `torch.Tensor` on the CPU in the file's dtype.

    Returns:
        What differs, in a few words; "" where nothing does; None where it isn't yours.
    """


@hookspec(firstresult=True)
def loadkit_open_parameter(plan: Plan, parameter: Any) -> Opened | None:
    """Tell what a parameter consists of that your plugin quantized, for the report to count weights and
    bytes.

    When:
        For every parameter of the final model that has a class of its own, or holds integers.

    Parameters:
        plan: the plan.
        parameter: the `torch.nn.Parameter`, quantized by your plugin or by another.

    Returns:
        The plain tensors that it holds and the number of weights that it stands for; None where it isn't
        yours.
    """


# --- The phases between loading and the audit, in this order; each only where the plan has it


@hookspec(firstresult=True)
def loadkit_fit_vocabulary(plan: Plan, model: Any, vocabulary: Vocabulary) -> Any | None:
    """Make embeddings, config and generation config agree with the tokenizer.

    When:
        The first phase after loading, where there is a tokenizer.

    Parameters:
        plan: the plan.
        model: the loaded `transformers.PreTrainedModel`.
        vocabulary: what the tokenizer asks for.

    Returns:
        The model; None where it isn't yours.
    """


@hookspec(firstresult=True)
def loadkit_dequantize(plan: Plan, model: Any) -> Any | None:
    """Turn a quantized model back into floating point, for an adapter to be merged into it.

    When:
        The second phase, where the plan dequantizes before merging an adapter.

    Parameters:
        plan: the plan.
        model: the loaded `transformers.PreTrainedModel`.

    Returns:
        The model in the planned dtype, without a quantization config; None where the method isn't yours.
    """


@hookspec(firstresult=True)
def loadkit_prepare_quantized(plan: Plan, model: Any) -> Any | None:
    """Make a quantized model fit for training over it: freeze it, keep in float32 what must be.

    When:
        The third phase, where the plan trains over quantized weights.

    Parameters:
        plan: the plan.
        model: the loaded `transformers.PreTrainedModel`.

    Returns:
        The model; None where the method isn't yours.
    """


@hookspec(firstresult=True)
def loadkit_freeze(plan: Plan, model: Any) -> Any | None:
    """Freeze the weights of the base that don't train, and bring those that do into their dtype.

    When:
        The fourth phase, where the plan freezes parts of an unquantized base, or its weights train in a dtype
        of their own.

    Parameters:
        plan: the plan; `plan.preparation` names `frozen_parts`, `train_only` and `trainable_dtype`.
        model: the loaded `transformers.PreTrainedModel`.

    Returns:
        The model; None to leave it to another plugin.
    """


@hookspec(firstresult=True)
def loadkit_checkpoint_activations(plan: Plan, model: Any) -> Any | None:
    """Turn gradient checkpointing on.

    When:
        The fifth phase, where the plan checkpoints activations.

    Parameters:
        plan: the plan; `plan.preparation.gradient_checkpointing_kwargs` says how.
        model: the `transformers.PreTrainedModel`, frozen where it is quantized.

    Returns:
        The model; None where it isn't yours.
    """


@hookspec(firstresult=True)
def loadkit_enable_input_gradients(plan: Plan, model: Any) -> Any | None:
    """Let gradients flow from the embeddings, so that a checkpointed frozen layer hands them on to the
    adapter.

    When:
        The sixth phase, where an adapter is trained under checkpointing.

    Parameters:
        plan: the plan.
        model: the `transformers.PreTrainedModel`, with gradient checkpointing on.

    Returns:
        The model; None where it isn't yours.
    """


@hookspec(firstresult=True)
def loadkit_attach_adapters(plan: Plan, model: Any, adapters: Adapters, vocabulary: Vocabulary) -> Any | None:
    """Attach the adapters to the prepared model, and turn the active one on.

    When:
        The seventh phase, where the plan has adapters.

    Parameters:
        plan: the plan.
        model: the prepared `transformers.PreTrainedModel`.
        adapters: what was decided; the `source` of an existing one is a folder here, whose files are on this
            machine.
        vocabulary: what the tokenizer asked for: the rows of new tokens train with a new adapter.

    Returns:
        The `peft.PeftModel`; None where that type of adapter isn't yours.
    """


@hookspec(firstresult=True)
def loadkit_merge_adapters(plan: Plan, model: Any, adapters: Adapters) -> Any | None:
    """Work the active adapter into the weights of the base.

    When:
        The last phase, where the plan merges the adapter.

    Parameters:
        plan: the plan.
        model: the `peft.PeftModel`.
        adapters: what was decided.

    Returns:
        The bare `transformers.PreTrainedModel`; None where that type of adapter isn't yours.
    """


@hookspec
def loadkit_finish_model(plan: Plan, model: Any) -> Any | None:
    """Do to the finished model what the plan says that you will: have its modules compute another way.

    The core compares before and after: names, shapes, dtypes, devices and values of the weights stay, and so
    do the model's class, its configs and the hooks of its modules. Nothing that other models share is
    changed: give modules of this one another `forward`, or put others in their place that hold the same
    parameters.

    When:
        After all phases, plugin by plugin in the order of their names, where the plan has your `Finish`.

    Parameters:
        plan: the plan.
        model: the final model, with its adapter.

    Returns:
        The model; None where nothing was to be done, which is an error, as the plan says otherwise.
    """


@hookspec
def loadkit_audit_model(  # type: ignore[empty-body]
    plan: Plan, model: Any, loading: Loading, processing_class: Any
) -> Sequence[Finding]:
    """Compare the loaded model with what your stage decided.

    When:
        When all phases are done.

    Parameters:
        plan: the plan.
        model: the final model, with its adapter.
        loading: what `from_pretrained` reported: missing, unexpected and mismatched tensors.
        processing_class: the tokenizer or processor; None where there is none.

    Returns:
        Findings; one of severity "error" fails the load unless `strict=False`.
    """


@hookspec
def loadkit_read_back(  # type: ignore[empty-body]
    plan: Plan, model: Any, processing_class: Any
) -> Sequence[Reading]:
    """Read from the loaded model what your stage decided, setting by setting.

    The core compares: what differs from the plan is an error that names who asked for it, and all of it is in
    the report. What isn't a setting (weights, files, counts) is for `loadkit_audit_model`.

    When:
        With the audit, after `loadkit_audit_model`.

    Parameters:
        plan: the plan.
        model: the final model, with its adapter.
        processing_class: the tokenizer or processor; None where there is none.

    Returns:
        A reading for each setting that the model shows; none for what it doesn't have.
    """


@hookspec
def loadkit_report_sections(plan: Plan, model: Any) -> Sequence[Section]:  # type: ignore[empty-body]
    """Add to the report what your plugin has to tell of the loaded model.

    When:
        After the audit, when the report is made.

    Parameters:
        plan: the plan.
        model: the final model, with its adapter.

    Returns:
        Sections, each printed below the core's rows with your plugin's name.
    """


@hookspec
def loadkit_workarounds(plan: Plan) -> Sequence[str]:  # type: ignore[empty-body]
    """Tell what your plugin does about faults of other libraries, for the manifest.

    When:
        With the audit, when the report is made.

    Parameters:
        plan: the plan.

    Returns:
        A line for each that took effect in this plan, with the library and its version.
    """

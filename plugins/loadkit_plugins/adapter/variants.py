"""Settings of single adapter types that PEFT 0.21 looks at when it puts the adapter on, and not before."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from loadkit import Adapter, Context, ModelClass, Problem
from loadkit.plugins import did_you_mean, some_of

__all__ = ["check_variants"]

_problem = partial(Problem, "adapter", "adapter")

Said = Callable[[str], str]

SOURCES, STATES = ("_SOURCE_TASK", "_SOURCE_TASKS", "_SOURCE_SHARED"), "prompt_tuning_init_state_dict_path"
"""How the words for prompts of other tasks end, and the field for the file that holds them."""

DECODER = re.compile(r"\w+\.(?:layers|h)\.\d+\.")
"""Where PEFT 0.21 finds the decoder's layers."""

PARTS = ("config_A_B", "config_C", "config_D_E")
"""The parts of GLORA, each of which may be "none"."""


def check_variants(
    context: Context, architecture: ModelClass, adapter: Adapter, targets: Sequence[str], said: Said
) -> Iterator[Problem]:
    """Every problem with a variant's settings.

    Parameters:
        architecture: the class that is loaded.
        targets: the paths of the modules that it is for, as far as they are known.
        said: a field to the words for who gave it, and what.
    """
    yield from _blocks(adapter, targets, said)
    yield from _feedforward(context, adapter, architecture)
    yield from _prompted(context, adapter, architecture)
    yield from _counted(adapter, said)
    yield from _mixture(adapter)
    yield from _shadow(context, adapter, architecture)
    yield from _routing(adapter, said)
    yield from _activation(context, adapter, said)
    yield from _sources(adapter, said)
    yield from _nothing(context, adapter, targets)
    yield from _layers(context, adapter, said)


def _feedforward(context: Context, adapter: Adapter, architecture: ModelClass) -> Iterator[Problem]:
    """IA3: which of the targets are feed-forward layers."""
    field = "feedforward_modules"
    own = context.peft_targets(adapter.peft_type, architecture, field)
    if own == [] and adapter.options.get("target_modules") and adapter.options.get(field) is None:
        yield _problem(
            "no-default-targets",
            f"an adapter of {adapter.peft_type} was asked for without {field}, and PEFT has none of its own for {architecture.model_class}",
            f'name those of the targets that are feed-forward layers, such as {field}=["down_proj"]; [] where none is',
        )


def _prompted(context: Context, adapter: Adapter, architecture: ModelClass) -> Iterator[Problem]:
    """Adaption prompts, for which PEFT has code by model type."""
    if adapter.peft_type != "ADAPTION_PROMPT":
        return
    if context.peft_targets(adapter.peft_type, architecture) == []:
        yield _problem(
            "peft-refuses",
            f"an adapter of {adapter.peft_type} was asked for, and PEFT has no such attention for {architecture.model_class}",
            "choose another type, such as LORA",
        )
    for field in ("adapter_len", "adapter_layers"):
        if adapter.options.get(field) is None:
            yield _problem(
                "bad-field",
                f"an adapter of {adapter.peft_type} was asked for without {field}, for which PEFT has no default",
                f"give {field}: {'10' if field == 'adapter_len' else 'how many layers, counted from the last'}",
            )


def _counted(adapter: Adapter, said: Said) -> Iterator[Problem]:
    """CPT, which has a virtual token for each of its token ids."""
    ids, field = adapter.options.get("cpt_token_ids"), "num_virtual_tokens"
    count = len(ids) if isinstance(ids, list) else 1
    if adapter.peft_type == "CPT" and adapter.options.get(field) not in (None, count):
        yield _problem(
            "fields-contradict",
            f"{said(field)}, and CPT has one for each of cpt_token_ids, which makes {count}",
            f"leave {field} out",
        )


def _mixture(adapter: Adapter) -> Iterator[Problem]:
    """X-LoRA mixes adapters that are trained."""
    if adapter.peft_type == "XLORA" and not adapter.options.get("adapters"):
        yield _problem(
            "peft-refuses",
            "an adapter of XLORA was asked for, which mixes adapters that are trained already, and names none",
            "give adapters={name: folder}, or choose another type, such as LORA",
        )


def _shadow(context: Context, adapter: Adapter, architecture: ModelClass) -> Iterator[Problem]:
    """Shadow adapters, which copy the layers of a decoder."""
    if adapter.peft_type != "SHADOW":
        return
    modules = [weight.module for weight in context.weights(architecture)]
    if modules and not any(map(DECODER.match, modules)):
        yield _problem(
            "peft-refuses",
            f"an adapter of {adapter.peft_type} was asked for, and PEFT doesn't find the decoder of {architecture.model_class}",
            "choose another type, such as LORA",
        )


def _blocks(adapter: Adapter, targets: Sequence[str], said: Said) -> Iterator[Problem]:
    """BD-LoRA: each target has one of its two matrices in blocks."""
    given = adapter.options.get("use_bdlora")
    if not isinstance(given, dict):
        return
    first, second = (given.get(f"target_modules_bd_{part}") or [] for part in "ab")
    both = [path for path in targets if _named(path, first) and _named(path, second)]
    neither = [path for path in targets if not _named(path, first) and not _named(path, second)]
    if wrong := both or (neither if given.get("match_strict", True) else []):
        yield _problem(
            "peft-refuses",
            f"{said('use_bdlora')}, and {some_of(wrong)} {'is in both' if both else 'is in neither'} of target_modules_bd_a and target_modules_bd_b",
            "name each target in one of the two" + ("" if both else ", or give match_strict=False"),
        )


def _named(path: str, patterns: Sequence[str]) -> bool:
    return any(pattern in path for pattern in patterns)


def _routing(adapter: Adapter, said: Said) -> Iterator[Problem]:
    """Arrow routes between adapters: a new one alone has none."""
    given = adapter.options.get("arrow_config")
    if given is not None and not given.get("task_adapter_names"):
        yield _problem(
            "peft-refuses",
            f"{said('arrow_config')}, which routes between adapters that are there already, and this one is new",
            "leave it out, and have PEFT's create_arrow_model put trained adapters together",
        )


def _activation(context: Context, adapter: Adapter, said: Said) -> Iterator[Problem]:
    given, known = adapter.options.get("act_fn"), context.library.keywords.activations
    if adapter.peft_type == "PEANUT" and isinstance(given, str) and known and given not in known:
        yield _problem(
            "bad-field",
            f"{said('act_fn')}, and transformers has no activation of that name{did_you_mean(given, known)}",
            f"it has {some_of(known, 40)}",
        )


def _sources(adapter: Adapter, said: Said) -> Iterator[Problem]:
    """Prompts that start from those of other tasks."""
    init = adapter.options.get("prompt_tuning_init")
    if str(init).endswith(SOURCES) and not adapter.options.get(STATES):
        yield _problem(
            "init-needs-config",
            f"{said('prompt_tuning_init')}, which starts from the prompts of other tasks, and nothing says where they are",
            f"give {STATES}=… in the peft_config, or leave prompt_tuning_init out",
        )


def _nothing(context: Context, adapter: Adapter, targets: Sequence[str]) -> Iterator[Problem]:
    """GLORA with all of its parts left out, of which two are for biases."""
    fields = context.peft_fields(adapter.peft_type)
    biased = any(f"{path}.bias" in context.checkpoint.tensors for path in targets)
    parts = [part for part in (PARTS if biased else PARTS[:1]) if part in fields]
    if (
        adapter.peft_type == "GLORA"
        and targets
        and all(adapter.options.get(p, fields[p].default) == "none" for p in parts)
    ):
        yield _problem(
            "nothing-trains",
            f"{', '.join(f'{part}=none' for part in parts)}"
            + ("" if biased else ", and the targets have no biases")
            + ": nothing of the adapter would train",
            "leave config_A_B out",
        )


def _layers(context: Context, adapter: Adapter, said: Said) -> Iterator[Problem]:
    """Adaption prompts, which are given to the last layers."""
    given, count = (
        adapter.options.get("adapter_layers"),
        context.checkpoint.text_config.get("num_hidden_layers"),
    )
    if (
        adapter.peft_type == "ADAPTION_PROMPT"
        and isinstance(given, int)
        and isinstance(count, int)
        and given > count
    ):
        yield _problem(
            "bad-field",
            f"{said('adapter_layers')}, and the model has {count} layers",
            f"give at most {count}",
        )

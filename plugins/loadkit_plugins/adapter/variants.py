"""Settings of single adapter types that PEFT 0.21 looks at when it puts the adapter on, and not before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from loadkit import Adapter, Context, Problem
from loadkit.plugins import did_you_mean, some_of

__all__ = ["check_variants"]

_problem = partial(Problem, "adapter", "adapter")

Said = Callable[[str], str]

SOURCES, STATES = ("_SOURCE_TASK", "_SOURCE_TASKS", "_SOURCE_SHARED"), "prompt_tuning_init_state_dict_path"
"""How the words for prompts of other tasks end, and the field for the file that holds them."""

PARTS = ("config_A_B", "config_C", "config_D_E")
"""The parts of GLORA, each of which may be "none"."""


def check_variants(
    context: Context, adapter: Adapter, targets: Sequence[str], said: Said
) -> Iterator[Problem]:
    """Every problem with a variant's settings.

    Parameters:
        targets: the paths of the modules that it is for, as far as they are known.
        said: a field to the words for who gave it, and what.
    """
    yield from _blocks(adapter, targets, said)
    yield from _routing(adapter, said)
    yield from _activation(context, adapter, said)
    yield from _sources(adapter, said)
    yield from _nothing(context, adapter, targets)
    yield from _layers(context, adapter, said)


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

"""What a plugin is tried with: a checkpoint, a machine, a launch, and what is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from loadkit.facts.checkpoint.checkpoint import Checkpoint, File, ProcessingFacts, TensorHeader
from loadkit.facts.checkpoint.companions import Beside
from loadkit.facts.context import Context
from loadkit.facts.library.index import read_library
from loadkit.hooks.manager import PluginManager
from loadkit.planning.build_request import make_request
from loadkit.planning.pipeline import plan_context
from loadkit.schema.plans import Plan
from loadkit.testing.checkpoints.architectures import ARCHITECTURES
from loadkit.testing.machines import MACHINES, TOPOLOGIES

__all__ = ["OTHERS", "PLAIN", "READY", "Scenario", "context_of", "plan_of"]

MISTRAL: Mapping[str, Any] = {
    "model_type": "mistral",
    "architectures": ["MistralForCausalLM"],
    "dtype": "bfloat16",
}

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj")


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One situation.

    Parameters:
        name: what it is called in reports.
        config: config.json of a checkpoint that needs not exist: plugins are asked what they would decide. By
            default a Mistral's, or that of the checkpoint.
        checkpoint: a tiny checkpoint that is really loaded: a name of
            `loadkit.testing.checkpoints.ARCHITECTURES`, or a folder; "" where nothing is loaded.
        profile: the profile asked for; "" for none.
        options: the options given.
        machine: a key of `MACHINES`, for what isn't loaded.
        topology: a key of `TOPOLOGIES`, for what isn't loaded.
    """

    name: str
    config: dict[str, Any] = msgspec.field(default_factory=lambda: dict(MISTRAL))
    checkpoint: str = ""
    profile: str = ""
    options: dict[str, Any] = {}
    machine: str = "CPU"
    topology: str = "alone"


PLAIN = Scenario(name="a plain Mistral, nothing asked for")
"""Somebody else's checkpoint: a plugin for something special has no opinion on it."""

CLASSES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "t5": "T5ForConditionalGeneration",
    "gemma3": "Gemma3ForConditionalGeneration",
    "model_that_nobody_knows": "ModelThatNobodyKnows",
}
"""Other model types, to the class that their checkpoints name."""

OTHERS: tuple[Scenario, ...] = tuple(
    Scenario(
        name=f"a plain {kind}", config={"model_type": kind, "architectures": [name], "dtype": "bfloat16"}
    )
    for kind, name in CLASSES.items()
)
"""As plain as `PLAIN`, of other model types: a decoder, an older one, an encoder with a decoder, one that
sees, and one that neither transformers nor any plugin knows."""

READY: tuple[Scenario, ...] = (
    PLAIN,
    *OTHERS,
    *(
        Scenario(name=f"{profile or 'nothing'} on {machine}", profile=profile, machine=machine)
        for machine in ("T4", "A100", "H100", "MPS")
        for profile in ("", "qlora", "inference")
    ),
    *(
        Scenario(name=f"qlora under {topology}", profile="qlora", machine="8xH100", topology=topology)
        for topology in ("8 ranks", "FSDP", "FSDP2", "ZeRO-3")
    ),
)
"""Those that every plugin is asked in, whatever it is for."""


def context_of(scenario: Scenario, manager: PluginManager) -> Context:
    """The facts of a scenario, built by hand."""
    names = [
        "model.embed_tokens",
        "lm_head",
        *(f"model.layers.{i}.self_attn.{n}" for i in (0, 1) for n in LAYERS),
    ]
    handmade = scenario.config != MISTRAL or scenario.checkpoint not in ARCHITECTURES
    checkpoint = Checkpoint(
        source="somebody/something",
        location="somebody/something",
        kind="hub",
        commit="0123456789abcdef0123456789abcdef01234567",
        config=_config(scenario),
        files=(File(name="config.json"), File(name="model.safetensors"), File(name="tokenizer.json")),
        tensors={  # of a tiny checkpoint they would be of other shapes than its config says
            f"{n}.weight": TensorHeader("BF16", (64, 64), 8192, "model.safetensors")
            for n in (names if handmade else ())
        },
        weight_files=("model.safetensors",),
        weight_format="safetensors",
        processing=ProcessingFacts(
            location="somebody/something",
            files=("tokenizer.json", "tokenizer_config.json"),
            tokenizer_config={"eos_token": "</s>", "pad_token": "<pad>"},
            chat_template="{{ messages }}",
            added_tokens={"<pad>": 0, "</s>": 1},
        ),
    )
    request, _ = make_request(checkpoint.source, scenario.profile or None, scenario.options, manager)
    return Context(
        request=request,
        checkpoint=checkpoint,
        beside=Beside(),
        machine=MACHINES[scenario.machine],
        topology=TOPOLOGIES[scenario.topology],
        library=read_library(checkpoint.config),
        architectures={name: item for name, (_, item) in manager.architectures.found.items()},
    )


def _config(scenario: Scenario) -> dict[str, Any]:
    """The scenario's config, or its checkpoint's, where that can be told without making it."""
    if not scenario.checkpoint or scenario.config != MISTRAL:
        return dict(scenario.config)
    if recipe := ARCHITECTURES.get(scenario.checkpoint):
        named = [recipe.model_class.rpartition(":")[2]]
        return {
            "model_type": _model_type(named[0]) or scenario.checkpoint,
            "architectures": named,
            "dtype": "bfloat16",
            **recipe.config,
        }
    try:
        found = msgspec.json.decode(
            (Path(scenario.checkpoint) / "config.json").read_bytes(), type=dict[str, Any]
        )
    except (OSError, msgspec.MsgspecError):
        return dict(scenario.config)
    return found


def _model_type(model_class: str) -> str:
    """The model type that transformers has the class for; "" where it has none."""
    maps = read_library(None).auto_classes.values()
    return next((kind for types in maps for kind, names in types.items() if model_class in names), "")


def plan_of(scenario: Scenario, manager: PluginManager, context: Context | None = None) -> Plan:
    """The plan for a scenario, options checked as in a real request; `PlanError` where it can't be met."""
    _, problems = make_request("somebody/something", scenario.profile or None, scenario.options, manager)
    return plan_context(context or context_of(scenario, manager), manager, problems)


def folder_of(scenario: Scenario, work: Path) -> Path:
    """The checkpoint of a scenario that loads, made where it is one of the tiny ones."""
    from loadkit.testing.checkpoints import make_checkpoint

    if scenario.checkpoint not in ARCHITECTURES:
        return Path(scenario.checkpoint)
    folder = work / scenario.checkpoint
    return folder if folder.exists() else make_checkpoint(folder, scenario.checkpoint)

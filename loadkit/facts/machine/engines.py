"""Which engine shares the model among the processes: what launchers and live objects say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from loadkit.errors import Problem

__all__ = ["ENGINES", "Engine", "EngineFacts", "read_engine"]

Engine = Literal["none", "ddp", "fsdp", "fsdp2", "zero1", "zero2", "zero3", "tensor-parallel"]

ENGINES: tuple[Engine, ...] = tuple(engine for engine in get_args(Engine) if engine != "none")
"""What may spread a model over several processes."""

_problem = partial(Problem, "topology", "loadkit")

_TRUE = {"1", "true", "yes", "y", "on", "t"}
_STAGES: Mapping[int, Engine] = {0: "ddp", 1: "zero1", 2: "zero2", 3: "zero3"}

DEFAULT_STAGE = 2
"""accelerate's, where its launcher names no stage and no config file (`DeepSpeedPlugin`, accelerate 1.15)."""


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the engine, in the words of `Topology`, and where it was read (`source`)."""

    engine: Engine = "none"
    tp_size: int = 1
    zero3_alive: bool | None = None
    reads_once: bool = False
    checkpoints_activations: bool = False
    source: str = ""
    problems: tuple[Problem, ...] = ()


def read_engine(env: Mapping[str, str], modules: Mapping[str, Any], world_size: int) -> EngineFacts:
    """Read the engine from live objects of imported modules, which will run, else from the environment."""
    try:
        said = _environment(env, world_size)
    except _SettingError as wrong:
        said = EngineFacts(problems=wrong.args)
    stage = _alive_stage(modules)
    live = _accelerator(modules, world_size)
    if live is None and stage is not None:
        live = EngineFacts(
            engine=_STAGES.get(stage, "ddp"), source="the DeepSpeed config that transformers holds"
        )
    if live is not None and said.engine not in (live.engine, "none", "ddp"):
        differs = f"{live.source}; the environment says {said.engine}"
        live = msgspec.structs.replace(live, source=differs)
    found = said if live is None else live
    if found.engine == "zero3" and not found.problems:
        return msgspec.structs.replace(found, zero3_alive=stage == 3)
    return found


class _SettingError(Exception):
    """A setting of the environment can't be right; the argument is the problem."""


def _environment(env: Mapping[str, str], world_size: int) -> EngineFacts:
    """What `accelerate launch` sets.

    It exports every setting of its config file, so that the file needn't be read; with --cpu it starts one
    process and names no engine.
    """
    variables = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM")
    engines = [variable for variable in variables if _true(env, variable)]
    if len(engines) > 1:
        message = f"{' and '.join(engines)} are both on in the environment"
        raise _SettingError(_problem("several-engines", message, "launch with one of the two engines"))
    if "ACCELERATE_USE_MEGATRON_LM" in engines:
        message = "ACCELERATE_USE_MEGATRON_LM is on in the environment, and models of transformers can't be loaded for it"
        raise _SettingError(
            _problem("unknown-engine", message, "launch with FSDP2, DeepSpeed or tensor parallelism")
        )
    splitting = _true(env, "ACCELERATE_USE_PARALLELISM_CONFIG")
    tp = _whole(env, "PARALLELISM_CONFIG_TP_SIZE", 1) if splitting else 1
    if tp > 1 and world_size % tp:
        message = f"PARALLELISM_CONFIG_TP_SIZE is {tp}, and {world_size} processes can't be parted into groups of {tp}"
        raise _SettingError(_problem("tp-size", message, f"choose a divisor of {world_size}"))
    if "ACCELERATE_USE_DEEPSPEED" in engines:
        return _deepspeed(env)
    if "ACCELERATE_USE_FSDP" in engines:
        version = _whole(env, "FSDP_VERSION", 1)
        if version not in (1, 2):
            message = f"FSDP_VERSION is {version}, and there are 1 and 2"
            raise _SettingError(_problem("engine-setting", message, "set fsdp_version to 2 or 1"))
        return EngineFacts(
            engine="fsdp2" if version == 2 else "fsdp",
            tp_size=tp,
            reads_once=_true(env, "FSDP_CPU_RAM_EFFICIENT_LOADING"),
            checkpoints_activations=_true(env, "FSDP_ACTIVATION_CHECKPOINTING"),
            source="accelerate launch: ACCELERATE_USE_FSDP, FSDP_VERSION",
        )
    if tp > 1:
        return EngineFacts(
            engine="tensor-parallel", tp_size=tp, source="accelerate launch: PARALLELISM_CONFIG_TP_SIZE"
        )
    if world_size > 1:
        return EngineFacts(engine="ddp", source="nobody names an engine")
    return EngineFacts()


def _deepspeed(env: Mapping[str, str]) -> EngineFacts:
    """The stage of the config file counts before the launcher's, as in accelerate."""
    path = env.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "").strip()
    if path and path != "none":
        try:
            stage = stage_of(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            message = f"ACCELERATE_DEEPSPEED_CONFIG_FILE names {path!r}, which can't be read as JSON: {error}"
            remedy = "name a DeepSpeed config file in accelerate's settings"
            raise _SettingError(_problem("deepspeed-config", message, remedy)) from error
        named = f"accelerate launch: zero_optimization.stage of {Path(path).name}"
    else:
        stage = _whole(env, "ACCELERATE_DEEPSPEED_ZERO_STAGE", DEFAULT_STAGE)
        named = "accelerate launch: ACCELERATE_DEEPSPEED_ZERO_STAGE"
    if stage not in _STAGES:
        message = f"{named} is {stage!r}; ZeRO has the stages 0 to 3"
        remedy = "name one of them in accelerate's settings or in the DeepSpeed config"
        raise _SettingError(_problem("engine-setting", message, remedy))
    return EngineFacts(engine=_STAGES[stage], source=named)


def stage_of(config: Any) -> Any:
    """The ZeRO stage that a DeepSpeed config names; 0 where it names none, as in DeepSpeed."""
    zero = config.get("zero_optimization") if isinstance(config, Mapping) else None
    return zero.get("stage", 0) if isinstance(zero, Mapping) else 0


def _alive_stage(modules: Mapping[str, Any]) -> int | None:
    """The stage of the DeepSpeed config that transformers looks at when it makes a model; None without one.

    transformers holds it by a weak reference: it lives as long as the `TrainingArguments`, the
    `HfDeepSpeedConfig` or accelerate's plugin that made it (`transformers.integrations.deepspeed`, 5.23).
    """
    module = modules.get("transformers.integrations.deepspeed")
    reference = getattr(module, "_hf_deepspeed_config_weak_ref", None)
    alive = reference() if callable(reference) else None
    if alive is None:
        return None
    stage = stage_of(getattr(alive, "config", None))
    return stage if isinstance(stage, int) else None


def _accelerator(modules: Mapping[str, Any], world_size: int) -> EngineFacts | None:
    """What an `Accelerator` already decided (accelerate 1.15: `AcceleratorState`); None without one."""
    state = getattr(modules.get("accelerate.state"), "AcceleratorState", None)
    shared = getattr(state, "_shared_state", None)
    if not isinstance(shared, dict) or "_mixed_precision" not in shared:
        return None  # a PartialState alone doesn't know the engine yet
    source = "the program's Accelerator"
    kind = str(getattr(shared.get("distributed_type"), "value", shared.get("distributed_type")))
    tp = getattr(shared.get("parallelism_config"), "tp_size", 1) or 1
    fsdp, plugins = shared.get("fsdp_plugin"), shared.get("deepspeed_plugins")
    if kind == "DEEPSPEED" and plugins:
        plugin = next(iter(plugins.values())) if isinstance(plugins, dict) else plugins
        stage = stage_of(getattr(plugin, "deepspeed_config", None)) or getattr(plugin, "zero_stage", 0)
        return EngineFacts(engine=_STAGES.get(stage, "ddp"), source=source)
    if kind == "FSDP" and fsdp is not None:
        return EngineFacts(
            engine="fsdp2" if getattr(fsdp, "fsdp_version", 1) == 2 else "fsdp",
            tp_size=tp,
            reads_once=bool(getattr(fsdp, "cpu_ram_efficient_loading", False)),
            checkpoints_activations=bool(getattr(fsdp, "activation_checkpointing", False)),
            source=source,
        )
    if tp > 1:
        return EngineFacts(engine="tensor-parallel", tp_size=tp, source=source)
    # On CPUs accelerate 1.15 runs DDP even where its launcher says FSDP.
    return EngineFacts(engine="ddp", source=source) if world_size > 1 else None


def _true(env: Mapping[str, str], name: str) -> bool:
    return env.get(name, "").strip().lower() in _TRUE


def _whole(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, "").strip()
    if not text:
        return default
    if not text.isdigit():
        message = f"the environment has {name}={text!r}, which isn't a number of 0 or more"
        raise _SettingError(
            _problem("launch-variable", message, "set it in accelerate's settings, or unset it")
        )
    return int(text)

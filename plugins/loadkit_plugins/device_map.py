"""device map: one device a process, "auto" for inference by one process over several, none under engines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from loadkit import (
    Asked,
    Claim,
    Context,
    Finding,
    Machine,
    Option,
    Placement,
    Plan,
    Problem,
    Quantization,
    Reading,
    Strength,
    hookimpl,
)
from loadkit.plugins import base_of, did_you_mean

_problem = partial(Problem, "device_map", "device-map")
_finding = partial(Finding, "device_map", "device-map")

SPREADING = Placement.SPREADING
DEVICE = re.compile(r"(cpu|cuda|mps|xpu|npu)(:\d+)?|meta|disk|\d+")

LIMITED = ("cpu", "mps", "disk")
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*[KMGT]i?B", re.IGNORECASE)


@hookimpl
def loadkit_options() -> Sequence[Option]:
    return [
        Option(
            name="device_map",
            type="places or str",
            stage="device_map",
            help="where the weights go: auto, a device such as cuda:0 or cpu, or a mapping of modules to devices",
        ),
        Option(
            name="max_memory",
            type="sizes",
            stage="device_map",
            help='most memory a device may take when spreading, such as {"0": "20GiB", "cpu": "60GiB"}',
        ),
    ]


@hookimpl
def loadkit_choose_device_map(
    context: Context, quantization: Quantization | None
) -> Sequence[Claim[Placement]]:
    limits = context.request.value("max_memory")
    device_map, because = _own(context)
    if quantization is not None and context.topology.shards_parameters:
        because += ", after transformers has put the quantized base on the process's current device"
    fallback = Claim(value=Placement(device_map=device_map), because=because, strength=Strength.FALLBACK)
    asked = context.request.asked("device_map")
    if asked is None:
        return [fallback]
    if not asked.demanded and (reason := _not_spreadable(asked, context)):
        because = f"{asked.by} prefers {asked.value}, but {reason}; {because}"
        return [Claim(value=fallback.value, because=because, strength=asked.strength)]
    value = Placement(device_map=_mapping(asked.value), max_memory=limits)
    return [Claim(value=value, because=asked.because, strength=asked.strength), fallback]


@hookimpl
def loadkit_check_plan(context: Context, plan: Plan) -> Sequence[Problem]:
    return list(_problems(context, plan))


def _problems(context: Context, plan: Plan) -> Iterator[Problem]:
    device_map = plan.placement.device_map
    topology, machine = context.topology, context.machine
    if device_map is not None and topology.engine_places:
        yield _problem(
            "device-map-under-engine",
            f"device_map={device_map!r} was chosen because {plan.why('device_map').because}, but {topology.engine} "
            "places the weights itself and refuses one",
            "leave device_map out",
        )
    elif plan.placement.spreads and topology.distributed:
        yield _problem(
            "auto-under-launcher",
            f"device_map={device_map!r} spreads one model over all devices, but {topology.world_size} processes were "
            "launched, and each would do so",
            "leave device_map out: each process then loads on its own device",
        )
    if context.request.asked("max_memory") and not plan.placement.spreads:
        yield _problem(
            "max-memory-unused",
            f"max_memory was given, but device_map={device_map!r} doesn't spread",
            "give device_map='auto' with it, or leave max_memory out",
        )
    yield from _limits(context)
    yield from _modules(context, plan)
    names = [device_map] if isinstance(device_map, str) else list((device_map or {}).values())
    for name in names:
        if str(name) == "meta":
            yield _problem(
                "no-values",
                "device 'meta' was asked for, where weights have shapes and no values: nothing can be computed",
                "nothing need be done if the shapes are what you want; else name a device that computes: cpu, cuda:0, auto",
                severity="warning",
            )
        elif reason := _unknown(str(name), machine):
            yield _problem(
                "no-such-device",
                f"device {str(name)!r} was asked for, but {reason}",
                "name a device that is here, or leave device_map out",
            )


def _limits(context: Context) -> Iterator[Problem]:
    """Limits of memory that accelerate would fail over, or take for none."""
    asked, machine = context.request.asked("max_memory"), context.machine
    if asked is None:
        return
    if not asked.value:
        yield _problem(
            "bad-max-memory",
            f"max_memory={asked.value!r} was asked for ({asked.because}), which names no device",
            'give the most that each may take, such as {"0": "20GiB", "cpu": "60GiB"}, or leave max_memory out',
        )
    for device, size in asked.value.items():
        if not (str(device).isdigit() or device in LIMITED):
            fault = f"the key {device!r} is no device: a GPU's number, {', '.join(LIMITED)} are"
        elif str(device).isdigit() and int(device) >= len(machine.accelerators):
            fault = f"there is no GPU {device}: this machine has {machine.describe()}"
        elif (number := _amount(size)) is None:
            fault = f"{size!r} is no size"
        elif number <= 0:
            fault = f"{size!r} leaves no room"
        else:
            continue
        yield _problem(
            "bad-max-memory",
            f"max_memory={asked.value!r} was asked for ({asked.because}), and {fault}",
            'write it as {"0": "20GiB", "cpu": "60GiB"}',
        )


def _amount(size: int | str) -> float | None:
    """The number of a size; None where it isn't one."""
    if isinstance(size, int):
        return size
    match = SIZE.fullmatch(size.strip())
    return float(match[1]) if match else None


def _modules(context: Context, plan: Plan) -> Iterator[Problem]:
    """A device map that is empty, or places what isn't there."""
    device_map, tensors = plan.placement.device_map, context.checkpoint.tensors
    if not isinstance(device_map, dict):
        return
    if not device_map:
        yield _problem(
            "empty-device-map",
            f"device_map={device_map!r} was asked for, which places nothing",
            "name a device, or leave device_map out",
        )
    families = context.library.families.values()
    made = {name for family in families for facts in family.modules.values() for name in facts.members}
    known = {part for name in tensors for part in name.split(".")} | made
    for module in device_map if tensors and plan.model_class.implementation == "transformers" else ():
        if wrong := [part for part in module.split(".") if part and not part.isdigit() and part not in known]:
            yield _problem(
                "device-map-matches-nothing",
                f"device_map places {module!r}, and no module is called {wrong[0]!r}{did_you_mean(wrong[0], known)}",
                "name modules by their paths in the model",
            )


@hookimpl
def loadkit_read_back(plan: Plan, model: Any) -> Sequence[Reading]:
    device_map = plan.placement.device_map
    if not isinstance(device_map, dict):
        return []
    return list(_placed(device_map, base_of(model)))


def _placed(device_map: Mapping[str, int | str], model: Any) -> Iterator[Reading]:
    """Where the parameters of every module that the map names are, but for those that a longer path places
    elsewhere, and for what lies on the disk or waits on the CPU, which are on meta."""
    several = len(device_map) > 1
    for path, device in device_map.items():
        others = [
            other for other in device_map if other != path and other.startswith(f"{path}." if path else "")
        ]
        found = {
            _torch_device(str(parameter.device))
            for name, parameter in model.named_parameters()
            if (not path or name == path or name.startswith(f"{path}."))
            and not any(name.startswith(f"{other}.") for other in others)
        }
        planned = _torch_device(device)
        if device == "disk" or (several and device == "cpu"):
            found = {planned if place == "meta" else place for place in found}
        if found:
            yield Reading(
                stage="device_map",
                names=(f"device_map.{path}",) if several else ("device_map", f"device_map.{path}"),
                where=f"the device of {path or 'every parameter'}",
                planned=planned,
                effective=found.pop() if len(found) == 1 else sorted(found),
                verbatim=False,  # 0 is cuda:0
                code="device",
            )


@hookimpl
def loadkit_audit_model(plan: Plan, model: Any) -> Sequence[Finding]:
    """Where transformers spreads the model, nothing stays on meta."""
    if isinstance(plan.placement.device_map, dict) or plan.request.asked("device_map"):
        return []
    found = sorted({str(p.device) for p in model.parameters()})
    if "meta" not in found:
        return []
    return [
        _finding("device", "parameters are elsewhere than planned", "no parameter on meta", ", ".join(found))
    ]


def _own(context: Context) -> tuple[dict[str, int | str] | None, str]:
    topology, machine = context.topology, context.machine
    if topology.engine_places:
        engine = "tensor parallelism" if topology.engine == "tensor-parallel" else topology.engine
        return None, f"{engine} places the weights itself"
    if machine.kind == "cpu":
        return {"": "cpu"}, "this machine has no accelerator that torch can use"
    if machine.kind == "mps":
        return {"": "mps"}, "the machine's GPU shares its memory"
    if topology.distributed:
        return (
            {"": topology.local_rank},
            f"each of {topology.world_size} processes loads on its own device, number {topology.local_rank} of its node",
        )
    if len(machine.accelerators) > 1:
        return {"": 0}, "one process trains on one device; device_map='auto' spreads for inference"
    return {"": 0}, "there is one accelerator"


def _not_spreadable(asked: Asked, context: Context) -> str:
    """Why a profile's wish to spread the model is of no use here."""
    if asked.value not in SPREADING:
        return ""
    if context.topology.engine_places or context.topology.distributed:
        return "several processes were launched"
    return "" if len(context.machine.accelerators) > 1 else "there is nothing to spread over"


def _mapping(value: Any) -> str | dict[str, int | str]:
    """A lone device as the mapping it stands for; spreading strategies stay as they are."""
    if isinstance(value, dict):
        return {module: "cpu" if device == "cpu:0" else device for module, device in value.items()}
    if value in SPREADING:
        return value  # type: ignore[no-any-return]
    return {"": int(value) if str(value).isdigit() else "cpu" if value == "cpu:0" else value}


def _unknown(name: str, machine: Machine) -> str:
    if name in SPREADING:
        return ""
    if not DEVICE.fullmatch(name):
        return f"it isn't a device{did_you_mean(name, (*SPREADING, 'cpu', 'cuda', 'cuda:0', 'mps', 'meta', 'disk'))}; devices are {', '.join((*SPREADING, 'cpu', 'cuda:0', 'mps'))} and the like"
    kind, _, index = ("cuda:" + name if name.isdigit() else name).partition(":")
    if kind in ("cpu", "meta", "disk"):
        return f"there is one CPU to place weights on, and it is called {kind!r}" if index else ""
    here = [a for a in machine.accelerators if a.kind == kind or (name.isdigit() and a.kind != "mps")]
    if not here or (index and int(index) >= len(here)):
        return f"this machine has {machine.describe()}" + "".join(f"; {note}" for note in machine.notes)
    return ""


def _torch_device(device: int | str) -> str:
    text = f"cuda:{device}" if str(device).isdigit() else str(device)
    if text in ("cuda", "xpu", "npu"):
        return f"{text}:0"
    return text.removesuffix(":0") if text.startswith("mps") else text

"""A stage's value in few words; the JSON has all of it."""

from __future__ import annotations

from typing import Any

import msgspec

from loadkit.schema.adapters import Adapter, Adapters
from loadkit.schema.processing import Processing, Tokens
from loadkit.schema.values import ModelClass, Placement, Preparation, Quantization

__all__ = ["placement_text", "short_quantization", "value_text"]


def value_text(value: Any) -> str:
    """A stage's value in few words; the JSON has all of it."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value)
        case ModelClass():
            auto = f"{value.auto_class} → " if value.auto_class else ""
            part = f" ({value.config_key} only)" if value.config_key else ""
            own = f" [{value.implementation}]" if value.implementation != "transformers" else ""
            code = ", ".join(f"{name} {digest[:12]}" for name, digest in value.code.items())
            return f"{auto}{value.model_class}{part}{own}" + (f", running {code}" if code else "")
        case Quantization():
            return _quantization(value)
        case Placement():
            return placement_text(value)
        case Preparation():
            steps = ["k-bit preparation"] if value.kbit else []
            if value.gradient_checkpointing:
                steps.append("gradient checkpointing" + _fields(value.gradient_checkpointing_kwargs))
            steps += ["input gradients"] if value.input_gradients else []
            steps += [f"frozen: {', '.join(value.frozen_parts)}"] if value.frozen_parts else []
            steps += [f"training only {', '.join(value.train_only)}"] if value.train_only else []
            steps += [f"what trains in {value.trainable_dtype}"] if value.trainable_dtype else []
            return " → ".join([*steps, "train()" if value.training else "eval()"])
        case Processing():
            origin = value.template_origin or "the one given"
            template = f", chat template: {origin}" if value.chat_template else ""
            side = f", padding {value.padding_side}" if value.padding_side else ""
            return f"{value.kind}{template}{side}"
        case Tokens():
            return _tokens(value)
        case Adapters():
            named = len(value.members) > 1
            each = [(f"{a.name}{_state(a, value)}: " if named else "") + _adapter(a) for a in value.members]
            merged = ", merged into the " + ("dequantized " if value.dequantize else "") + "base"
            return "; ".join(each) + (merged if value.merge else "")
        case dict():
            return ", ".join(f"{k or '(whole)'}: {v}" for k, v in value.items())
    return str(value)


def placement_text(value: Placement) -> str:
    """Where the weights go, in few words."""
    device_map = value.device_map
    limits = f", at most {value.max_memory}" if value.max_memory else ""
    if isinstance(device_map, dict) and list(device_map) == [""]:
        device = str(device_map[""])
        return f"all on {f'device {device}' if device.isdigit() else device}{limits}"
    return f"{'left to the engine' if device_map is None else device_map}{limits}"


def _state(adapter: Adapter, of: Adapters) -> str:
    state = {of.active: "active", of.beneath: "on beneath it"}.get(adapter.name)
    return f" ({state})" if state else ""


def _quantization(value: Quantization) -> str:
    bits = f" {value.bits:g}-bit" if value.bits else ""
    if value.format is msgspec.UNSET:
        stored = " (stored)" if value.prequantized else f", decoded from {value.again}" if value.again else ""
        return f"{value.method}{bits}{stored}{_fields(_worth_saying(value))}"
    found = value.format
    train, save = ("can" if able else "can't" for able in (found.trains, found.saves))
    able = f"{train} train, {save} be saved" if train != save else f"{train} train or be saved"
    able = "can train and be saved" if found.trains and found.saves else able
    if found.dtype:
        here = "as asked" if found.asked else f"here: {found.because}"
        return f"{value.method}, dequantized to {found.dtype} {here}; {able}"
    later = f", {found.because}" if found.because else ""
    return f"{value.method}{bits} (stored){_fields(_worth_saying(value))}{later}; {able}"


def short_quantization(value: Quantization) -> str:
    """How the weights are quantized, without the settings but for the type of 4 bits."""
    if value.format is not msgspec.UNSET:
        return _quantization(value)
    bits = f" {value.bits:g}-bit" if value.bits else ""
    kind = value.options.get("bnb_4bit_quant_type")
    return f"{value.method}{bits}{f' {kind}' if kind else ''}{' (stored)' if value.prequantized else ''}"


def _adapter(value: Adapter) -> str:
    options = {k: v for k, v in value.options.items() if v is not None}
    about = f" from {value.source}" if value.source else _fields(options)
    return f"{value.peft_type}{about} in {value.dtype}" + ("" if value.trainable else ", frozen")


def _tokens(value: Tokens) -> str:
    roles = {"eos": value.eos_token, "pad": value.pad_token, "bos": value.bos_token, "unk": value.unk_token}
    said = [f"{role} {token}" for role, token in roles.items() if token]
    added = [token for token in value.additional if token not in roles.values()]
    said += [f"added {', '.join(added)}"] if added else []
    said += [f"rows a multiple of {value.pad_to_multiple_of}"] if value.pad_to_multiple_of else []
    return ", ".join(said) or "the tokenizer's own"


def _worth_saying(value: Quantization) -> dict[str, Any]:
    """What is worth saying of a quantization: its settings without their prefixes, and not that it is on."""
    shown = {
        k.removeprefix("bnb_4bit_").removeprefix("llm_int8_"): ", ".join(v) if isinstance(v, dict) else v
        for k, v in value.options.items()
        if v not in (None, False, [])
        and not k.startswith("load_in_")
        and not (value.prequantized and isinstance(v, dict | list))
    }
    return {**shown, **({"skip": ", ".join(value.skip_modules)} if value.skip_modules else {})}


def _fields(fields: dict[str, Any]) -> str:
    shown = {k: f"{v:g}" if isinstance(v, float) else v for k, v in fields.items()}
    said = [k if v is True else f"{k}={v}" for k, v in shown.items()]
    return f" ({', '.join(said)})" if said else ""

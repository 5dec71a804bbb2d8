"""Every option × odd values, and every field of a quantization config: what is planned can be loaded."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import loadkit
from loadkit.hooks.manager import default_manager

Tiny = Callable[..., Path]

SECONDS = 60

WORDS = ["", " ", "nope", "é✓\u202e", "None", "x" * 300, "../..", "auto", "cpu", "0"]
LISTS = [[], [""], ["nope"], ["q_proj"], ["("], ["lm_head", "lm_head"], ["é"], [None], [1]]
MAPPINGS = [{}, {"": ""}, {"nope": 1}, {"é": None}, {"r": 8}]
BY_KIND: dict[str, list[Any]] = {
    "bool": [True, False, "yes", 1, None], "int": [-1, 0, 1, 7, 10**9, True, 1.5, "8"], "str": WORDS, "list": LISTS, "mapping": MAPPINGS,
    "float": [-1.0, 0.0, 0.5, 1.0, 1e300, float("nan"), float("inf"), "0.5"],
    "names": [{"": "sdpa"}, {"": "nope"}, {"nope": "sdpa"}, {"text_config": "eager"}],
    "places": [{}, {"": "cpu"}, {"": "nope"}, {"": -1}, {"": 0}, {"nope": "cpu"}, {"model": "cpu"}, {"model": "cpu", "lm_head": "disk"}, {"": "cpu", "model.layers.0": "meta"},
               {"model.embed_tokens": "cpu"}, "cuda:-1", "cpu:0", "disk", "balanced", "sequential", 0, -1],
    "sizes": [{}, {"cpu": "1GiB"}, {"cpu": "nope"}, {"cpu": -1}, {"gpu": "1GiB"}, {"0": "1GiB"}, {"cpu": "1e3GB"}, {"cpu": ""}, {"cpu": "∞"}, {"disk": "1GiB"}, {"cpu": 10}],
}  # fmt: skip
"""Values to try, by a word of the option's type."""

ELSEWHERE = {"cache_dir", "gguf_file", "revision", "adapter_revision", "local_files_only"}
"""What names a place on the disk or the Hub."""

FIELDS: dict[str, list[Any]] = {
    "load_in_4bit": [True, False, 1, "yes"], "load_in_8bit": [True, False], "bnb_4bit_quant_type": ["nf4", "fp4", "int4", "", None],
    "bnb_4bit_use_double_quant": [True, False, 1, "no"], "bnb_4bit_compute_dtype": ["float16", "float32", "auto", "float8_e4m3fn", "", torch.float16, torch.int8],
    "bnb_4bit_quant_storage": ["uint8", "bfloat16", "float16", "int4", "float64", torch.float32], "llm_int8_threshold": [0.0, -1.0, 6, 1e30, "6", float("nan"), float("inf")],
    "llm_int8_skip_modules": [[], ["lm_head"], ["nope"], "lm_head", [1], [""]], "llm_int8_enable_fp32_cpu_offload": [True, False, "x"],
    "llm_int8_has_fp16_weight": [True, False], "quant_method": ["bitsandbytes", "bitsandbytes_4bit", "gptq", "fp8", "", "é", 7], "dequantize": [True], "é": [1],
}  # fmt: skip


def values(name: str, option: loadkit.Option) -> Iterator[Any]:
    yield from option.choices
    for kind, odd in BY_KIND.items():
        if kind in option.type.split() or (kind, option.type) == ("sizes", "sizes"):
            yield from odd


def cases() -> list[dict[str, Any]]:
    options = {
        name: option
        for name, (_, option) in default_manager().options.found.items()
        if name == option.name and name not in ELSEWHERE
    }
    profiles = (None, "qlora", "lora", "full")
    random.seed(0)
    found: list[dict[str, Any]] = []
    for name, option in options.items():
        found += [{"profile": random.choice(profiles), name: value} for value in values(name, option)]
    for max_memory in BY_KIND["sizes"]:
        found.append({"profile": None, "device_map": "auto", "max_memory": max_memory})
    for width in ("load_in_4bit", "load_in_8bit"):
        for field, odd in FIELDS.items():
            found += [{"profile": None, "quantization_config": {width: True, field: value}} for value in odd]
            for value in odd:
                try:
                    given = transformers.BitsAndBytesConfig(**{width: True, field: value})
                except (TypeError, ValueError, AttributeError):
                    continue  # the class itself refuses it
                found.append({"profile": random.choice(profiles), "quantization_config": given})
        found += [
            {"profile": None, width: True, "device_map": places, "llm_int8_enable_fp32_cpu_offload": on}
            for places in BY_KIND["places"]
            for on in (True, False)
        ]
    return found


def fault(folder: Path, given: dict[str, Any]) -> str | None:
    """What went wrong that planning could have told; "" for a load, None for a refusal."""
    try:
        plan = loadkit.plan(folder, **given)
    except loadkit.PlanError:
        return None
    except Exception as error:  # a bare traceback
        return f"planning {given}: {type(error).__name__}: {error}"
    try:
        loadkit.load(plan)
    except Exception as error:
        return f"loading {given}: {type(error).__name__}: {error}"
    return ""


def swept(folder: Path, chosen: list[dict[str, Any]], seconds: float) -> tuple[int, list[str]]:
    end, loaded, faults = time.monotonic() + seconds, 0, list[str]()
    for given in chosen:
        if time.monotonic() > end:
            break
        found = fault(folder, given)
        loaded += found == ""
        faults += [found] if found else []
    return loaded, faults


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_what_is_planned_is_loaded(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    chosen = cases()
    random.Random(0).shuffle(chosen)
    loaded, faults = swept(tiny("mistral"), chosen, SECONDS)
    assert loaded > 100
    assert not faults, "\n".join(faults)


@pytest.mark.filterwarnings("ignore")
def test_a_sample_of_it(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded, faults = swept(tiny("mistral"), random.Random(2).sample(cases(), 24), 10)
    assert loaded > 3
    assert not faults, "\n".join(faults)

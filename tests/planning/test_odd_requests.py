"""Requests that were lost in silence, or refused by transformers after the weights were read: told before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from examples import A100, CPU, GEMMA3, MISTRAL, NF4, checkpoint, planned, problems

import loadkit

Tiny = Callable[..., Path]
OFFLOAD = {"llm_int8_enable_fp32_cpu_offload": True}


@pytest.mark.parametrize("width", ["load_in_4bit", "load_in_8bit"])
def test_offloading_on_a_cpu_quantizes_nothing(tiny: Tiny, width: str) -> None:
    asked: list[dict[str, Any]] = [
        {width: True, **OFFLOAD},
        {"quantization_config": {width: True, **OFFLOAD}},
        {width: True, **OFFLOAD, "device_map": "cpu:0"},
        {width: True, **OFFLOAD, "device_map": {"": "cpu"}},
    ]
    for options in asked:
        told = problems(machine=CPU, **options)["nothing-to-quantize"]
        assert "every part on the CPU" in told
    assert planned(machine=A100, **asked[0]).quantization is not None


def test_parts_on_the_cpu_beside_a_gpu() -> None:
    beside = {"device_map": {"": 0, "model.layers.1": "cpu"}, "load_in_4bit": True}
    assert "llm_int8_enable_fp32_cpu_offload=True" in problems(machine=A100, **beside)["quantized-offload"]
    plan = planned(machine=A100, **beside, **OFFLOAD)
    assert plan.quantization is not None
    assert plan.quantization.options["llm_int8_enable_fp32_cpu_offload"] is True
    whole = planned(machine=A100, load_in_4bit=True)
    assert plan.memory is not None
    assert whole.memory is not None
    assert plan.memory.quantized < whole.memory.quantized
    assert "offloaded-unquantized" in {warning.code for warning in plan.warnings}
    first = {"device_map": {"": "cpu", "lm_head": 0}, "load_in_4bit": True}  # an empty path is in every path
    assert "nothing-to-quantize" in problems(machine=A100, **first, **OFFLOAD)


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"text_config": {"tie_word_embeddings": False}}, "text_config.tie_word_embeddings"),
        ({"text_config": {"_attn_implementation": "eager"}}, "text_config._attn_implementation"),
        ({"vision_config": {"dtype": "float64"}}, "vision_config.dtype"),
        ({"text_config": {"quantization_config": {"load_in_4bit": True}}}, "text_config.quantization_config"),
        ({"text_config": {"model_type": "llama"}}, "text_config.model_type"),
        ({"text_config": {"use_cache": False}}, "text_config.use_cache"),
    ],
)
def test_owned_keys_in_nested_configs(given: dict[str, Any], path: str) -> None:
    told = problems(checkpoint(GEMMA3), model_kwargs=given)["owned-kwarg"]
    assert repr(path) in told
    assert "model_kwargs" in told


def test_a_whole_nested_config_says_again_what_is_there(tiny: Tiny) -> None:
    import transformers

    config = transformers.AutoConfig.from_pretrained(tiny("gemma3"))
    given = {**config.text_config.to_dict(), "attention_dropout": 0.25}
    loaded = loadkit.load(tiny("gemma3"), model_kwargs={"text_config": given})
    assert loaded.model.config.text_config.attention_dropout == 0.25


@pytest.mark.parametrize(
    ("given", "role"),
    [({"pad_token_id": 7}, "pad"), ({"eos_token_id": 7}, "eos"), ({"eos_token_id": [5, 6]}, "eos"), ({"pad_token_id": [0, 3]}, "pad")],
)  # fmt: skip
def test_ids_that_the_tokenizers_go_over(given: dict[str, Any], role: str) -> None:
    assert f"give {role}_token=" in problems(model_kwargs=given)["token-id-overruled"]


@pytest.mark.parametrize(
    "given", [{"pad_token_id": 0}, {"eos_token_id": 2}, {"eos_token_id": [7, 2]}, {"bos_token_id": 5}]
)
def test_ids_that_stay(tiny: Tiny, given: dict[str, Any]) -> None:
    config = loadkit.load(tiny("mistral"), model_kwargs=given).model.config
    assert {name: getattr(config, name) for name in given} == given


def test_a_method_named_with_its_width(tiny: Tiny, tmp_path: Path) -> None:
    for bits in (4, 8):
        given = {"quant_method": f"bitsandbytes_{bits}bit", f"load_in_{bits}bit": True}
        plan = planned(quantization_config=given)
        assert plan.quantization is not None
        assert (plan.quantization.method, plan.quantization.bits) == ("bitsandbytes", bits)
    loaded = loadkit.load(tiny("mistral"), quantization_config=given)
    assert loaded.model.is_quantized
    stored = planned(
        checkpoint({**MISTRAL, "quantization_config": {**NF4, "quant_method": "bitsandbytes_4bit"}})
    )
    assert stored.quantization is not None
    assert (stored.quantization.method, stored.quantization.bits) == ("bitsandbytes", 4)
    bare = {"quant_method": "bitsandbytes_4bit"}
    assert (
        "neither load_in_4bit"
        in problems(checkpoint({**MISTRAL, "quantization_config": bare}))["format-config"]
    )


def test_an_old_name_for_the_config_of_a_stored_format(tiny: Tiny, tmp_path: Path) -> None:
    from stored_formats import store_compressed

    folder = store_compressed(tmp_path / "m", tiny("mistral"), "pack-quantized")
    config = json.loads((folder / "config.json").read_text())
    config["compression_config"] = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(loadkit.PlanError, match="compression_config isn't read any more"):
        loadkit.plan(folder)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"adapter_dtype": "floot32", "profile": "lora"}, "unknown-dtype"),
        ({"additional_special_tokens": [" "]}, "blank-token"),
        ({"device_map": "cpu:1"}, "no-such-device"),
    ],
)
def test_values_that_stand_for_nothing(options: dict[str, Any], code: str) -> None:
    assert code in problems(**options)


def test_values_by_other_spellings_are_loaded(tiny: Tiny) -> None:
    loaded = loadkit.load(
        tiny("mistral"),
        quantization_config={"load_in_8bit": True, "llm_int8_threshold": 5},
        device_map="cpu:0",
    )
    assert loaded.plan.placement.device_map == {"": "cpu"}
    twice = loadkit.load(
        tiny("mistral"),
        "lora",
        peft_config={"modules_to_save": ["lm_head"] * 2, "target_modules": ["q_proj"] * 2},
    )
    assert twice.report.findings == ()


# --- Files ---


def damaged(folder: Path, copy: Path) -> Path:
    return Path(shutil.copytree(folder, copy))


def test_files_that_arent_what_index_and_headers_say(tiny: Tiny, tmp_path: Path) -> None:
    def told(folder: Path) -> set[str]:
        with pytest.raises(loadkit.PlanError) as caught:
            loadkit.plan(folder)
        return {problem.code for problem in caught.value.problems}

    sharded = tiny("mistral", shards=3)
    missing = damaged(sharded, tmp_path / "missing")
    next(missing.glob("model-*.safetensors")).unlink()
    assert "missing-weight-file" in told(missing)

    moved = damaged(sharded, tmp_path / "moved")
    index = json.loads((moved / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.layers.9.mlp.up_proj.weight"] = index["weight_map"]["lm_head.weight"]
    (moved / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "index-mismatch" in told(moved)

    cut = damaged(tiny("mistral"), tmp_path / "cut")
    file = cut / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    assert "truncated-weights" in told(cut)

    lying = damaged(tiny("mistral"), tmp_path / "lying")
    file = lying / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = next(key for key in header if key != "__metadata__" and header[key]["data_offsets"][0] > 0)
    begin, end = header[name]["data_offsets"]
    header[name]["data_offsets"] = [begin - 2, end - 2]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    assert "bad-header" in told(lying)

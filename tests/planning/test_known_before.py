"""What the facts can tell is a problem of the plan, not an error after the weights were read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from examples import A100, MISTRAL, NF4, checkpoint, problems

import loadkit
from loadkit.plugins import TensorHeader

Tiny = Callable[..., Path]


def refused(*args: Any, **options: Any) -> dict[str, str]:
    with pytest.raises(loadkit.PlanError) as caught:
        loadkit.plan(*args, **options)
    return {p.code: f"{p.message} | {p.remedy}" for p in caught.value.problems}


def edited(folder: Path, copy: Path, **fields: Any) -> Path:
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **fields}))
    return copy


# --- Files and config ---


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_hidden_layers": 1_000_000}, "would be random"),
        ({"num_hidden_layers": 1}, "would be left out"),
        ({"vocab_size": 640}, "vocab_size=640"),
        ({"hidden_size": 128}, "hidden_size=128"),
        ({"intermediate_size": 64}, "mlp.down_proj.weight is 64 × 64"),
        ({"num_key_value_heads": 1}, "self_attn.k_proj.weight is 16 × 64"),
        ({"num_attention_heads": 8}, "by config.json model.layers.0.self_attn."),
    ],
)
def test_a_config_that_isnt_the_files(tiny: Tiny, tmp_path: Path, fields: dict[str, int], said: str) -> None:
    folder = edited(tiny("mistral"), tmp_path / "m", **fields)
    assert said in refused(folder)["config-differs"]
    assert said in refused(tiny("mistral"), model_kwargs=fields)["config-differs"]


@pytest.mark.parametrize(
    ("architecture", "fields", "said"),
    [
        ("t5", {"num_layers": 1}, "num_layers=1, and the weight files have 2 layers (encoder.block.0 to 1)"),
        ("t5", {"num_hidden_layers": 3}, "num_layers=3, and the weight files have 2 layers (encoder.block.0 to 1): the other 1"),
        ("t5", {"num_decoder_layers": 1}, "num_decoder_layers=1, and the weight files have 2 layers (decoder.block.0"),
        ("gpt2", {"n_layer": 1}, "num_hidden_layers=1, and the weight files have 2 layers (transformer.h.0"),
        ("gpt2", {"num_hidden_layers": 3}, "the other 1 would be random"),
    ],
)  # fmt: skip
def test_layers_are_counted_by_the_names_that_the_config_has_for_them(
    tiny: Tiny, architecture: str, fields: dict[str, int], said: str
) -> None:
    assert said in refused(tiny(architecture), model_kwargs=fields)["config-differs"]
    assert loadkit.plan(tiny(architecture)).decisions


def test_a_classifier_s_files_have_no_words_to_give(tiny: Tiny) -> None:
    folder = tiny("qwen2-sequence-classification")
    assert "no output head in the files" in refused(folder, task="causal-lm")["head-missing"]
    assert loadkit.plan(folder).model_class.task == "sequence-classification"
    assert loadkit.plan(folder, task="causal-lm", allow_weights=["lm_head", "score"]).decisions


def test_a_config_that_says_quantized_over_floating_point_files(tiny: Tiny, tmp_path: Path) -> None:
    for n, method in enumerate(("bitsandbytes", "fp8", "mxfp4", "nope")):
        folder = edited(
            tiny("mistral"),
            tmp_path / str(n),
            quantization_config={"quant_method": method, "load_in_4bit": True},
        )
        assert repr(method) in refused(folder)["quantized-config-differs"]


def test_quantized_files_whose_config_says_nothing() -> None:
    facts = checkpoint()
    packed = {"model.layers.0.mlp.up_proj.weight.absmax": TensorHeader("F32", (64,), 256, "a")}
    told = problems(checkpoint(tensors={**facts.tensors, **packed}))["quantized-config-differs"]
    assert "absmax" in told
    stored = checkpoint({**MISTRAL, "quantization_config": NF4}, tensors={**facts.tensors, **packed})
    assert stored.looks_quantized


def test_a_tensor_in_two_shards(tiny: Tiny, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny("mistral", shards=3), tmp_path / "m"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    key = "model.embed_tokens.weight"
    other = next(path for path in sorted(folder.glob("model-*.safetensors")) if path.name != index[key])
    save_file({**load_file(other), key: load_file(folder / index[key])[key] + 1}, other, {"format": "pt"})
    assert key in refused(folder)["tensor-twice"]


# --- Tokenizers and templates ---


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for message in messages %}{{ message }}", "line 1"),
        ("{{ messages | nosuchfilter }}", "nosuchfilter"),
        ("{{ bos_token }}", "never reads `messages`"),
    ],
)
def test_a_template_that_isnt_one(tiny: Tiny, template: str, said: str) -> None:
    assert said in refused(tiny("mistral"), chat_template=template)["bad-template"]


def test_a_template_too_long_for_a_path(tiny: Tiny) -> None:
    assert "asked for" in " ".join(refused(tiny("mistral"), chat_template="a" * 5000).values())


@pytest.mark.parametrize("text", ["{}", "not json"])
def test_a_tokenizer_whose_file_is_damaged_has_a_remedy_of_its_own(
    tiny: Tiny, tmp_path: Path, text: str
) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(loadkit.LoadkitError, match="damaged") as caught:
        loadkit.load(tiny("mistral"), tokenizer=str(tmp_path))
    assert "loadkit plan" not in str(caught.value)


def test_a_template_with_transformers_own_tags(tiny: Tiny) -> None:
    text = "{% for m in messages %}{% generation %}{{ m }}{% endgeneration %}{% continue %}{% endfor %}"
    assert loadkit.plan(tiny("mistral"), chat_template=text).processing.chat_template == text


def test_tokens_that_the_tokenizer_doesnt_have(tiny: Tiny) -> None:
    for role in ("eos_token", "pad_token"):
        told = refused(tiny("mistral"), **{role: "<pd>"})["unknown-token"]
        assert "did you mean '<pad>'" in told
    assert (
        loadkit.plan(tiny("mistral"), pad_token="<pd>", additional_special_tokens=["<pd>"]).tokens.pad_token
        == "<pd>"
    )


# --- Placement, experts ---


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({"device_map": "auot"}, "no-such-device", "did you mean 'auto'"),
        ({"device_map": "cuda:9"}, "no-such-device", "cuda:9"),
        ({"device_map": {}}, "empty-device-map", "places nothing"),
        ({"device_map": {"model.layesr": 0, "": "cpu"}}, "device-map-matches-nothing", "did you mean 'layers'"),
        ({"device_map": "auto", "max_memory": {}}, "bad-max-memory", "names no device"),
        ({"device_map": "auto", "max_memory": {"cuda:0": "20GiB"}}, "bad-max-memory", "'cuda:0' is no device"),
        ({"device_map": "auto", "max_memory": {"0": "lots"}}, "bad-max-memory", "'lots' is no size"),
        ({"device_map": "auto", "max_memory": {"3": "20GiB"}}, "bad-max-memory", "no GPU 3"),
        ({"device_map": "auto", "max_memory": {"0": 0}}, "bad-max-memory", "leaves no room"),
    ],
)  # fmt: skip
def test_places_that_cant_be(options: dict[str, Any], code: str, said: str) -> None:
    assert said in problems(machine=A100, **options)[code]


def test_an_experts_implementation_that_isnt_there() -> None:
    told = problems(model_kwargs={"experts_implementation": "gruoped_mm"})["unknown-experts-implementation"]
    assert "did you mean 'grouped_mm'" in told

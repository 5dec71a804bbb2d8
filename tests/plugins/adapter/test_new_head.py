"""Heads of several layers, by whatever name: never quantized, trained whole, saved, and read again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import loadkit

SIZES = {
    "vocab_size": 64, "hidden_size": 64, "d_model": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "num_layers": 1, "num_heads": 2, "d_ff": 64, "d_kv": 32, "dim": 64, "hidden_dim": 64,
    "n_layers": 1, "n_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
HEADS = {
    "bart": {"classification_head"},
    "deberta-v2": {"pooler", "classifier"},
    "distilbert": {"pre_classifier", "classifier"},
    "roberta": {"classifier"},
    "mt5": {"classification_head"},
    "electra": {"classifier"},
}
DEFAULT = {("bart", "qlora"), ("deberta-v2", "qlora-8bit"), ("distilbert", "lora"), ("roberta", "lora")}
CASES = [
    pytest.param(kind, profile, marks=[] if (kind, profile) in DEFAULT else pytest.mark.slow)
    for kind in HEADS
    for profile in ("lora", "qlora", "qlora-8bit")
]


@pytest.fixture
def base(tmp_path: Path) -> Callable[[str], Path]:
    """A checkpoint without a classifier: of the language model, as most are, or of the bare one."""

    def make(kind: str) -> Path:
        config = transformers.AutoConfig.for_model(kind)
        small = type(config)(**{n: v for n, v in SIZES.items() if hasattr(config, n)})
        bare = kind in ("distilbert", "electra", "deberta-v2")
        auto = (
            transformers.AutoModelForSeq2SeqLM
            if small.is_encoder_decoder
            else transformers.AutoModelForMaskedLM
        )
        (transformers.AutoModel if bare else auto).from_config(small).save_pretrained(tmp_path / kind)
        return tmp_path / kind

    return make


def head_of(loaded: loadkit.Loaded) -> dict[str, Any]:
    model = loaded.model.get_base_model()
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if not name.startswith(f"{model.base_model_prefix}.")
    }


@pytest.mark.parametrize(("kind", "profile"), CASES)
def test_the_head_trains_whole_and_comes_back(
    base: Callable[[str], Path], tmp_path: Path, kind: str, profile: str
) -> None:
    about = {"task": "sequence-classification", "num_labels": 3}
    loaded = loadkit.load(base(kind), profile, **about)
    assert not [finding for finding in loaded.report.findings if finding.severity == "error"]
    whole = {n: p for n, p in head_of(loaded).items() if ".modules_to_save." in n}
    assert {name.split(".")[0] for name in whole} == HEADS[kind]
    assert all(p.requires_grad and p.is_floating_point() for p in whole.values())
    assert not any(".lora_" in name for name in head_of(loaded))
    with torch.no_grad():
        for parameter in whole.values():
            parameter.add_(1.0)  # as training would
    loaded.save_pretrained(tmp_path / "saved")
    again = head_of(loadkit.load(tmp_path / "saved", profile))
    assert all(torch.equal(again[name], parameter) for name, parameter in whole.items())


def test_a_plain_head_is_pefts_own(tiny: Callable[[str], Path]) -> None:
    plan = loadkit.plan(tiny("mistral"), "lora", task="sequence-classification", num_labels=3)
    options = plan.adapters.members[0].options
    assert not {"modules_to_save", "exclude_modules"} & options.keys()


def test_a_list_of_yours_stays(base: Callable[[str], Path]) -> None:
    about = {"task": "sequence-classification", "num_labels": 3}
    plan = loadkit.plan(base("bart"), "lora", lora_modules_to_save=["embed_positions"], **about)
    assert plan.adapters.members[0].options["modules_to_save"] == ["embed_positions", "classification_head"]

"""Weights that are initialised anew on purpose: from no file, aloud, and beside nothing that needs files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import loadkit

Tiny = Callable[..., Path]


def test_no_weight_is_the_checkpoints(tiny: Tiny, tmp_path: Path) -> None:
    source = tmp_path / "model"
    shutil.copytree(tiny("mistral"), source)
    stored = dict(loadkit.load(source, dtype="bfloat16").model.named_parameters())
    for file in source.glob("*.safetensors"):  # headers are read to plan, and values never
        content = bytearray(file.read_bytes())
        header = 8 + int.from_bytes(content[:8], "little")
        file.write_bytes(content[:header] + b"\xff" * (len(content) - header))
    torch.manual_seed(3)
    loaded = loadkit.load(source, random_weights=True, training=True, dtype="bfloat16")
    again = dict(loaded.model.named_parameters())
    assert again.keys() == stored.keys()
    for name, parameter in again.items():
        assert parameter.dtype == torch.bfloat16
        if parameter.dim() > 1:
            assert 0.01 < float(parameter.detach().float().std()) < 0.04, name
            assert not torch.equal(parameter, stored[name]), name
    assert loaded.model.training
    assert [(f.code, f.severity) for f in loaded.report.findings] == [("random-weights", "warning")]
    assert [w.severity for w in loaded.plan.warnings if w.code == "random-weights"] == ["warning"]
    torch.manual_seed(3)
    same = loadkit.load(source, random_weights=True, training=True, dtype="bfloat16").model
    assert all(torch.equal(p, again[n]) for n, p in same.named_parameters())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"load_in_4bit": True}, "bitsandbytes"),
        ({"verify": "full"}, "verify"),
        ({"device_map": "auto"}, "spread over devices"),
        ({"model_kwargs": {"variant": "fp16"}}, "variant"),
    ],
)
def test_what_it_cant_go_with(tiny: Tiny, options: dict[str, Any], named: str) -> None:
    with pytest.raises(loadkit.PlanError, match=named):
        loadkit.plan(tiny("mistral"), random_weights=True, **options)
    assert loadkit.plan(tiny("mistral"), random_weights=False).warnings == ()


@pytest.mark.parametrize(
    "text",
    [
        "base_model: BASE\nreinit_weights: true\nadapter: lora\nlora_r: 4\nlora_alpha: 8\nlora_target_linear: true\n",
        "model_name_or_path: BASE\ntrain_from_scratch: true\nfinetuning_type: full\ndo_train: true\n",
    ],
)
def test_recipes_that_start_anew(tiny: Tiny, tmp_path: Path, text: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text.replace("BASE", str(tiny("mistral"))), encoding="utf-8")
    loaded = loadkit.load(recipe=recipe)
    told = next(f for f in loaded.report.findings if f.code == "random-weights")
    assert "recipe 'recipe.yaml' asked" in told.message
    assert any(p.requires_grad for p in loaded.model.parameters())


def test_weights_of_the_files_fail_the_audit(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads the files after all is found: the comparison is turned round."""
    monkeypatch.setattr("loadkit.loading.from_pretrained.starts_anew", lambda plan: False)
    with pytest.raises(loadkit.AuditError, match="from-the-files"):
        loadkit.load(tiny("mistral"), random_weights=True)

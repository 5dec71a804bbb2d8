"""Fusions: those that are there, and for the one load that asks for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

import loadkit

fusion_mapping = pytest.importorskip("transformers.fusion_mapping", reason="a transformers without fusions")

FUSED = {"fusion_config": {"patch_embeddings": True}}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose patch embeddings are a three-dimensional convolution."""
    folder = tmp_path_factory.mktemp("pictures")
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Qwen3VLConfig(
        text_config={**text, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 64},
        vision_config={"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32, "deepstack_visual_indexes": [0]},
    )  # fmt: skip
    transformers.Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    return folder


def fused(loaded: loadkit.Loaded) -> bool:
    return type(loaded.model.model.visual.patch_embed).__name__.startswith("Fused")


def test_a_fusion_is_for_one_load(pictures: Path) -> None:
    """transformers 5.23 goes on fusing every model of the type that the process loads."""
    kwargs: dict[str, Any] = {"processing_class": "none"}
    asked = loadkit.load(pictures, model_kwargs=FUSED, verify="full", **kwargs)
    assert fused(asked)
    assert not fused(loadkit.load(pictures, verify="full", **kwargs))
    assert fused(loadkit.load(pictures, model_kwargs=FUSED, **kwargs))


def test_one_that_nobody_asked_for_is_found(pictures: Path) -> None:
    from transformers import monkey_patching

    config = transformers.AutoConfig.from_pretrained(pictures)
    fusion_mapping.register_fusion_patches(
        transformers.Qwen3VLForConditionalGeneration, config, FUSED["fusion_config"]
    )
    try:
        with pytest.raises(loadkit.AuditError, match="fused modules"):
            loadkit.load(pictures, processing_class="none")
    finally:
        monkey_patching.clear_patch_mapping()


@pytest.mark.parametrize(
    ("given", "code"),
    [({"patch_embedings": True}, "unknown-fusion"), ({"patch_embeddings": {}}, "fusion-matches-nothing")],
)
def test_what_cant_be_fused_is_refused(tiny: Any, given: dict[str, Any], code: str) -> None:
    with pytest.raises(loadkit.PlanError) as refused:
        loadkit.plan(tiny("llama"), model_kwargs={"fusion_config": given})
    assert [p.code for p in refused.value.problems] == [code]
    loadkit.plan(tiny("llama"), model_kwargs={"fusion_config": dict.fromkeys(["patch_embeddings"], False)})


def test_a_config_that_asks_for_one(tiny: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("llama"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **FUSED}))
    assert "fusion-matches-nothing" in {w.code for w in loadkit.plan(folder).warnings}


def test_the_table_has_every_fusion() -> None:
    from loadkit_plugins.fusion import FUSIONS

    assert FUSIONS.keys() == fusion_mapping._FUSION_REGISTRY.keys()
    assert all(hasattr(fusion_mapping, mixin) for _, _, mixin in FUSIONS.values())

"""Every model type: what the cache gives is what would have been quantized, or the load notices and quantizes
again."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from zoo.expected import model_types
from zoo.sweeping import make

import loadkit
from loadkit_plugins.quantized_cache.writer import finish_writing

NOT_KEPT = {
    "deepseek_ocr2": "transformers 5.23 renames parts of its stored form again",
    "inkling2": "the same",
    "inkling2_text": "the same",
    "laguna": "the same",
    "mistral_large4": "parts of its stored form are renamed again",
    "pi0": "the same",
    "unlimited_ocr": "the same",
}
"""Model types whose stored form doesn't load as it was: loads notice, and quantize again."""

NOT_KEPT_8BIT = ("qwen4_exp", "qwen4_exp_text")
"""The same, in 8 bits only."""

UNSAVED = ("kimi_k25", "mistral_large4", "molmo2", "nemotron_h_omni", "step3p7")
"""Model types whose quantized models transformers 5.23 can't save: undoing a conversion, it permutes or joins
what is packed."""

METHODS: dict[str, dict[str, Any]] = {
    "4-bit": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    "8-bit": {"load_in_8bit": True},
}


def swept() -> list[str]:
    """Every third type, in 8 bits every ninth, and all that are known to differ; all of them with
    LOADKIT_EVERY_TYPE=1, in about a quarter of an hour."""
    every = sorted(model_types())
    some = {*every[::3], *NOT_KEPT, *NOT_KEPT_8BIT, *UNSAVED} & set(every)
    return every if os.environ.get("LOADKIT_EVERY_TYPE") else sorted(some)


def bits(model: Any) -> dict[str, tuple[torch.dtype, torch.Tensor]]:
    tensors = {**model.state_dict(), **dict(model.named_buffers())}
    return {n: (t.dtype, t.detach().contiguous().reshape(-1).view(torch.uint8)) for n, t in tensors.items()}


def same(first: Any, second: Any) -> list[str]:
    a, b = bits(first), bits(second)
    names = sorted(a.keys() | b.keys())
    return [
        n
        for n in names
        if n not in a or n not in b or a[n][0] != b[n][0] or not torch.equal(a[n][1], b[n][1])
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", swept())
def test_the_cache_gives_the_same_bits(model_type: str, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    if impossible := make(model_type, folder):
        pytest.skip(f"transformers can't make it here: {impossible}")
    for method, options in METHODS.items():
        if method == "8-bit" and model_type not in {*sorted(model_types())[::9], *NOT_KEPT_8BIT}:
            continue
        try:
            plain = loadkit.load(folder, strict=False, quantized_cache=False, **options)
        except loadkit.LoadkitError:
            continue  # refused with the reason, as the zoo's own sweep holds
        if plain.report.loading.missing:
            continue  # random values are nothing to keep
        loadkit.load(folder, strict=False, **options)
        finish_writing()
        again = loadkit.load(folder, strict=False, **options)
        finish_writing()
        served = any("from the cache" in line for line in again.report.shortcuts)
        otherwise = model_type in NOT_KEPT or (method == "8-bit" and model_type in NOT_KEPT_8BIT)
        assert served != otherwise, (method, again.report.shortcuts)
        assert same(plain.model, again.model) == [], method
        assert again.report.loading == plain.report.loading
        if model_type in UNSAVED:
            continue
        for name, loaded in (("plain", plain), ("again", again)):
            loaded.model.save_pretrained(tmp_path / method / name)
        saved = [
            loadkit.plugins.file_checksums(tmp_path / method / n / "model.safetensors")
            for n in ("plain", "again")
        ]
        assert saved[0] == saved[1], method
    gc.collect()

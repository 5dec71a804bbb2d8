"""Mistral's own tokenizer: refused without its package or files, not chosen because it is installed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import loadkit
from loadkit.facts.machine.machine import Machine, this_machine


def machine(**packages: str) -> Machine:
    """This machine with just these of the packages in question."""
    here = this_machine()
    others = {n: v for n, v in here.packages.items() if n not in ("mistral-common", "pillow")}
    given = {name.replace("_", "-"): version for name, version in packages.items()}
    return msgspec.structs.replace(here, packages={**others, **given})


@pytest.fixture
def with_tekken(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    """A checkpoint that has a file of that name, for plans; it isn't read for them."""
    folder = tmp_path / "both"
    shutil.copytree(tiny("mistral"), folder)
    (folder / "tekken.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("packages", "missing"),
    [
        ({"pillow": "11.0"}, "isn't installed"),
        ({"mistral_common": "1.9.1", "pillow": "11.0"}, "is 1.9.1"),
        ({"mistral_common": "1.13.1"}, "pillow isn't installed"),
    ],
)
def test_without_its_package(with_tekken: Path, packages: dict[str, str], missing: str) -> None:
    with pytest.raises(loadkit.PlanError, match=missing) as caught:
        loadkit.plan(with_tekken, tokenizer_backend="mistral-common", machine=machine(**packages))
    assert [p.code for p in caught.value.problems if p.severity == "error"] == ["no-mistral-common"]


def test_without_a_file_of_it(tiny: Callable[..., Path]) -> None:
    there = machine(mistral_common="1.13.1", pillow="11.0")
    with pytest.raises(loadkit.PlanError, match=r"tekken\.json"):
        loadkit.plan(tiny("mistral"), tokenizer_backend="mistral-common", machine=there)


def test_what_it_cant_be_told(with_tekken: Path) -> None:
    there = machine(mistral_common="1.13.1", pillow="11.0")
    plan = loadkit.plan(with_tekken, tokenizer_backend="mistral-common", training=True, machine=there)
    assert plan.processing.processing_class.endswith(":MistralCommonBackend")
    assert plan.processing.options == {"mode": "finetuning"}
    assert plan.tokens == loadkit.Tokens()
    for name, value in {
        "pad_token": "<pad>",
        "additional_special_tokens": ["<a>"],
        "processing_class": "none",
    }.items():
        with pytest.raises(loadkit.PlanError, match=name):
            loadkit.plan(with_tekken, tokenizer_backend="mistral-common", machine=there, **{name: value})


def test_it_isnt_chosen_because_it_is_installed(with_tekken: Path) -> None:
    """transformers 5.23 takes it where there is a tekken.json; it couldn't be given a pad token then."""
    there = machine(mistral_common="1.13.1", pillow="11.0")
    assert loadkit.plan(with_tekken, machine=there).processing.options == {"mistral_format": False}
    assert loadkit.plan(with_tekken, machine=machine(pillow="11.0")).processing.options == {}


def test_a_recipe_that_wants_it(with_tekken: Path, tmp_path: Path) -> None:
    """A recipe's wish falls back in plain sight; axolotl has it for Magistral models without being asked."""
    recipe = tmp_path / "recipe.yaml"
    renamed = tmp_path / "Magistral-Small"
    shutil.copytree(with_tekken, renamed)
    for text, folder in (("tokenizer_use_mistral_common: true\n", with_tekken), ("", renamed)):
        recipe.write_text(f"base_model: {folder}\nsequence_len: 8\n{text}", encoding="utf-8")
        there = machine(mistral_common="1.13.1", pillow="11.0")
        assert loadkit.plan(recipe=recipe, machine=there).processing.processing_class
        told = loadkit.plan(recipe=recipe, machine=machine(pillow="11.0")).warnings
        assert [p.severity for p in told if p.code == "no-mistral-common"] == ["warning"]
    recipe.write_text(
        f"base_model: {renamed}\nsequence_len: 8\ntokenizer_use_mistral_common: false\n", encoding="utf-8"
    )
    assert not loadkit.plan(recipe=recipe, machine=there).processing.processing_class


def test_it_is_loaded(tmp_path: Path) -> None:
    mistral_common = pytest.importorskip(
        "mistral_common", "1.11.5", reason="mistral-common wants an older numpy than the tests have"
    )
    import transformers

    data = Path(mistral_common.__file__).parent / "data"
    shutil.copy(data / "mistral_instruct_tokenizer_240323.model.v3", tmp_path / "tokenizer.model.v3")
    config = transformers.MistralConfig(
        vocab_size=32768, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    transformers.MistralForCausalLM(config).save_pretrained(tmp_path)
    loaded = loadkit.load(tmp_path, tokenizer_backend="mistral-common", training=True)
    tokenizer: Any = loaded.tokenizer
    assert type(tokenizer).__name__ == "MistralCommonBackend"
    assert tokenizer.mode.value == "finetuning"
    assert loaded.model.config.pad_token_id == tokenizer.pad_token_id
    assert loaded.report.findings == ()

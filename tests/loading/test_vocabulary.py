"""The tokenizer and the model belong together: added tokens, padded embeddings, eos and pad, over real
checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from model_outputs import batch, logits

import loadkit
from loadkit.testing.checkpoints import ARCHITECTURES, make_prequantized

Tiny = Callable[..., Path]
NEW = ["<|tool|>", "<|think|>"]


def edited(folder: Path, target: Path, **configs: Any) -> Path:
    """A copy of a checkpoint with other values in its tokenizer_config.json, config.json…; None removes a
    key."""
    copy = Path(shutil.copytree(folder, target))
    for name, values in configs.items():
        path = copy / f"{name}.json"
        content = json.loads(path.read_text())
        content.update({k: v for k, v in values.items() if v is not None})
        for key in (k for k, v in values.items() if v is None):
            content.pop(key, None)
        path.write_text(json.dumps(content))
    return copy


def renamed(folder: Path, *tokens: str) -> Path:
    """Give tokens of the vocabulary names that don't tell what they are for."""
    path = folder / "tokenizer.json"
    text = path.read_text()
    for token in tokens:
        text = text.replace(token, f"<a{len(token)}{token[-2]}>")
    path.write_text(text)
    return folder


@pytest.mark.parametrize("arch", [a for a in ARCHITECTURES if a != "remote-code"])
def test_added_tokens_grow_the_embeddings_of_every_architecture(tiny: Tiny, arch: str) -> None:
    before = loadkit.load(tiny(arch), dtype="float32").model.get_input_embeddings().weight
    loaded = loadkit.load(tiny(arch), dtype="float32", additional_special_tokens=NEW, pad_to_multiple_of=64)
    model, tokenizer = loaded.model, loaded.tokenizer
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    ids = tokenizer.convert_tokens_to_ids(NEW)
    assert ids == [512, 513]
    assert inputs.weight.shape[0] == 576 == model.config.get_text_config().vocab_size
    assert torch.equal(inputs.weight[:512], before)
    for row in (*ids, 575):
        assert torch.equal(inputs.weight[row], before.mean(dim=0))
    if outputs is not None:
        assert outputs.weight.shape[0] == 576
        tied = model.config.get_text_config().tie_word_embeddings
        assert (outputs.weight is inputs.weight) == tied
    given = batch(loaded)
    if "input_ids" in given and given["labels"].shape == given["input_ids"].shape:
        given["input_ids"][:, -1] = given["labels"][:, -1] = ids[1]
    assert torch.isfinite(model.eval()(**given).loss)
    assert [c.kind for c in loaded.report.changes if c.phase == "vocabulary"] == ["resized"]


def test_a_resized_model_saves_and_loads_again(tiny: Tiny, tmp_path: Path) -> None:
    loaded = loadkit.load(tiny("gemma3"), dtype="float32", additional_special_tokens=NEW)
    loaded.save_pretrained(tmp_path / "saved")
    again = loadkit.load(tmp_path / "saved", dtype="float32")
    plain = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "saved", dtype="float32")
    given = batch(loaded)
    assert again.tokenizer.convert_tokens_to_ids(NEW) == loaded.tokenizer.convert_tokens_to_ids(NEW)
    assert torch.equal(logits(loaded.model, given), logits(again.model, given))
    assert torch.equal(logits(loaded.model, given), logits(plain, given))


def test_padding_rows_that_new_tokens_take_are_new_too(tiny: Tiny, tmp_path: Path) -> None:
    """TRAPS 19: rows beyond the vocabulary were never trained; what lies in them isn't an embedding."""
    padded = loadkit.load(tiny("llama"), additional_special_tokens=["<x>"], pad_to_multiple_of=64)
    with torch.no_grad():
        for module in (padded.model.get_input_embeddings(), padded.model.get_output_embeddings()):
            module.weight[512:] = 1000.0
    padded.model.save_pretrained(tmp_path / "padded")
    transformers.AutoTokenizer.from_pretrained(tiny("llama")).save_pretrained(tmp_path / "padded")
    untouched = loadkit.load(tmp_path / "padded")  # a padded embedding isn't an error
    assert untouched.model.get_input_embeddings().weight.shape[0] == 576
    assert [c for c in untouched.report.changes if c.phase == "vocabulary"] == []
    loaded = loadkit.load(tmp_path / "padded", additional_special_tokens=NEW)
    for module in (loaded.model.get_input_embeddings(), loaded.model.get_output_embeddings()):
        mean = module.weight[:512].float().mean(dim=0).to(module.weight.dtype)
        assert module.weight.shape[0] == 576
        assert torch.equal(module.weight[512], mean)
        assert torch.equal(module.weight[513], mean)
        assert (module.weight[514:] == 1000.0).all()


def test_a_vocabulary_larger_than_the_embeddings_is_an_error(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("mistral"), tmp_path / "m"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<beyond>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(loadkit.LoadError, match=r"513 tokens, and the embeddings of .* have 512 rows"):
        loadkit.load(folder)


@pytest.mark.parametrize("profile", ["qlora", "qlora-8bit"])
def test_tokens_are_added_over_a_base_quantized_on_the_fly(tiny: Tiny, profile: str) -> None:
    loaded = loadkit.load(tiny("mistral"), profile, adapter=False, additional_special_tokens=NEW)
    assert loaded.model.get_input_embeddings().weight.shape[0] == 514
    assert loaded.model.lm_head.weight.shape[0] == 514
    assert loaded.model.lm_head.weight.dtype == torch.bfloat16
    assert torch.isfinite(loaded.model(**batch(loaded)).loss)


def test_embeddings_that_are_quantized_themselves_dont_grow(tiny: Tiny, tmp_path: Path) -> None:
    folder = make_prequantized(tmp_path / "nf4", tiny("mistral"), bits=4)
    with pytest.raises(loadkit.PlanError, match="embeddings can't be resized"):
        loadkit.load(folder, additional_special_tokens=NEW)


def test_the_new_pad_token_is_one_of_its_own(tiny: Tiny, tmp_path: Path) -> None:
    """TRAPS 18: with transformers' own collator, labels of the pad token are left out of the loss."""
    folder = edited(tiny("mistral"), tmp_path / "m", tokenizer_config={"pad_token": "</s>"})
    named = loadkit.load(folder, "lora")
    assert named.tokenizer.pad_token == "<pad>"
    reserved = loadkit.load(renamed(folder, "<pad>"), "lora")
    assert reserved.tokenizer.pad_token == "<reserved_0>"
    assert reserved.model.get_base_model().config.pad_token_id == 4
    added = loadkit.load(renamed(folder, "<reserved_0>", "<reserved_1>"), "lora")
    assert added.tokenizer.pad_token == "<|pad|>"
    assert added.tokenizer.pad_token_id == 512 == added.model.generation_config.pad_token_id
    for loaded in (named, reserved, added):
        tokenizer = loaded.tokenizer
        collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
        texts = [tokenizer("The oven")["input_ids"] + [tokenizer.eos_token_id], [5, tokenizer.eos_token_id]]
        labels = collate([{"input_ids": ids} for ids in texts])["labels"]
        assert (labels == tokenizer.eos_token_id).sum() == 2
        assert (labels == -100).sum() == abs(len(texts[0]) - 2)


def test_inference_leaves_the_pad_token_alone(tiny: Tiny, tmp_path: Path) -> None:
    folder = edited(tiny("mistral"), tmp_path / "m", tokenizer_config={"pad_token": "</s>"})
    assert loadkit.load(folder, "inference").tokenizer.pad_token == "</s>"


def test_eos_is_the_same_in_tokenizer_config_and_generation_config(tiny: Tiny, tmp_path: Path) -> None:
    for arch in ("mistral", "gemma3"):
        loaded = loadkit.load(tiny(arch), "lora", eos_token="<reserved_1>")
        base = loaded.model.get_base_model()
        assert loaded.tokenizer.eos_token_id == 5
        assert base.config.get_text_config().eos_token_id == 5
        assert base.generation_config.eos_token_id == [5, 2]
    disagreeing = edited(
        tiny("mistral"),
        tmp_path / "m",
        config={"eos_token_id": 3},
        generation_config={"eos_token_id": [3, 1]},
    )
    loaded = loadkit.load(disagreeing, "full")
    assert loaded.model.config.eos_token_id == 2
    assert loaded.model.generation_config.eos_token_id == [2, 3, 1]
    listed = edited(tiny("mistral"), tmp_path / "l", generation_config={"eos_token_id": [1, 2]})
    assert loadkit.load(listed, "full").model.generation_config.eos_token_id == [1, 2]


def test_a_token_that_isnt_in_the_vocabulary_is_refused_before_the_weights_are_read(
    tiny: Tiny, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny("mistral"), tmp_path / "m"))
    with pytest.raises(loadkit.PlanError, match=r"no such token \(did you mean '<reserved_0>'\?\)") as caught:
        loadkit.load(folder, eos_token="<reserve_0>")
    assert "additional_special_tokens=['<reserve_0>']" in str(caught.value)
    both = loadkit.load(folder, eos_token="<|end|>", additional_special_tokens=["<|end|>"])
    assert both.model.config.eos_token_id == 512


def test_a_template_comes_from_text_a_file_or_another_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("mistral"), tmp_path / "m"))
    (folder / "chat_template.jinja").unlink()
    chat = [{"role": "user", "content": "Hi"}]
    (tmp_path / "mine.jinja").write_text("{{ messages[0]['content'] }}!")
    (tmp_path / "mine.json").write_text(json.dumps({"chat_template": "{{ messages[0]['content'] }}?"}))
    given = {
        "{{ messages[0]['content'] }}.": "Hi.",
        str(tmp_path / "mine.jinja"): "Hi!",
        str(tmp_path / "mine.json"): "Hi?",
    }
    for template, expected in given.items():
        loaded = loadkit.load(folder, chat_template=template)
        assert loaded.tokenizer.apply_chat_template(chat, tokenize=False) == expected
    theirs = loadkit.load(folder, chat_template=str(tiny("llama")))
    own = transformers.AutoTokenizer.from_pretrained(tiny("llama"))
    assert theirs.tokenizer.chat_template == own.chat_template
    assert str(tiny("llama")) in theirs.plan.explained()
    (tmp_path / "empty.jinja").write_text("  ")
    for wrong, code in (
        ("empty.jinja", "bad-template-file"),
        ("m", "no-template-there"),
        ("no/x", "no-such"),
    ):
        with pytest.raises(loadkit.PlanError, match=code):
            loadkit.plan(folder, chat_template=str(tmp_path / wrong))


def test_another_tokenizer_can_be_named(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("mistral"), tmp_path / "m"))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    assert loadkit.load(folder).tokenizer is None
    loaded = loadkit.load(folder, tokenizer=str(tiny("llama")))
    assert loaded.tokenizer("The oven")["input_ids"]
    assert "you asked for it" in loaded.plan.why("processing").because
    with pytest.raises(loadkit.PlanError, match=r"tokenizer='.*' was asked for: .*no folder"):
        loadkit.plan(folder, tokenizer=str(tmp_path / "nowhere"))

"""What was asked is loaded or refused: requests that were once lost without a word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import loadkit

Tiny = Callable[..., Path]


def refused(*args: Any, **options: Any) -> dict[str, str]:
    with pytest.raises(loadkit.PlanError) as caught:
        loadkit.plan(*args, **options)
    return {p.code: f"{p.message} | {p.remedy}" for p in caught.value.problems}


def test_a_reward_adapters_folder_is_all_that_is_needed(tiny: Tiny, tmp_path: Path) -> None:
    """Its task, its labels and its head are the adapter's; none of them is random."""
    first = loadkit.load(tiny("mistral"), "lora", task="sequence-classification", num_labels=1)
    assert first.model.config.num_labels == 1
    with torch.no_grad():
        for parameter in first.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    first.model.eval().save_pretrained(tmp_path / "reward")
    inputs = {"input_ids": torch.arange(5, 25)[None]}
    for options in ({}, {"task": "sequence-classification"}, {"num_labels": 1}):
        again = loadkit.load(tmp_path / "reward", **options)
        assert not [f for f in again.report.findings if "score" in f.message]
        with torch.no_grad():
            assert torch.allclose(again.model(**inputs).logits, first.model(**inputs).logits, atol=0.05)
    assert "the adapter was made for it" in again.plan.why("architecture").because
    assert "the adapter's head has 1" in refused(tmp_path / "reward", num_labels=2)["num-labels-differ"]
    assert (
        "was made for sequence-classification"
        in refused(tmp_path / "reward", task="causal-lm")["adapter-task-differs"]
    )
    assert loadkit.plan(tmp_path / "reward", adapter=False).model_class.task == "causal-lm"


@pytest.mark.parametrize(
    ("task", "labels", "more"),
    [
        ("token-classification", 4, {}),
        pytest.param(
            "token-classification", 4, {"lora_target_modules": ["q_proj", "v_proj"]}, marks=pytest.mark.slow
        ),
        ("sequence-classification", 3, {"lora_modules_to_save": ["score", "norm"]}),
    ],
)
def test_a_head_comes_back_whatever_is_saved_beside_it(
    tiny: Tiny, tmp_path: Path, task: str, labels: int, more: dict[str, Any]
) -> None:
    first = loadkit.load(tiny("mistral"), "lora", task=task, num_labels=labels, **more)
    with torch.no_grad():
        for parameter in first.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    first.save_pretrained(tmp_path / "head")
    again = loadkit.load(tmp_path / "head")
    assert (again.plan.model_class.task, again.model.config.num_labels) == (task, labels)
    assert not [f for f in again.report.findings if f.severity == "error" or "score" in f.message]
    inputs = {"input_ids": torch.arange(5, 25)[None]}
    with torch.no_grad():
        assert torch.equal(again.model.eval()(**inputs).logits, first.model.eval()(**inputs).logits)


def test_labels_need_a_head(tiny: Tiny) -> None:
    assert "no classification head" in refused(tiny("mistral"), num_labels=2)["num-labels-unused"]
    assert "bad-num-labels" in refused(tiny("mistral"), task="sequence-classification", num_labels=0)


def test_a_folder_without_a_tokenizer(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    told = refused(tiny("mistral"), tokenizer=str(tmp_path / "empty"))
    assert "it has none of tokenizer.json" in told["no-tokenizer"]
    both = refused(tiny("mistral"), tokenizer=str(tiny("mistral")), processing_class="none")
    assert "leave one of the two out" in both["processing-option-unused"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_type", "llama"),
        ("tie_word_embeddings", True),
        ("architectures", ["LlamaForCausalLM"]),
        ("_attn_implementation", "eager"),
    ],
)
def test_what_belongs_to_the_checkpoint_or_a_stage_isnt_a_further_argument(
    tiny: Tiny, name: str, value: Any
) -> None:
    assert repr(name) in refused(tiny("mistral"), model_kwargs={name: value})["owned-kwarg"]


def test_a_training_load_in_which_nothing_trains(tiny: Tiny) -> None:
    told = refused(tiny("mistral"), "full", load_in_4bit=True)["nothing-trains"]
    assert "the quantized base is frozen" in told
    assert "is frozen" in refused(tiny("mistral"), "full", load_in_8bit=True)["nothing-trains"]
    config = {"target_modules": ["q_proj"], "inference_mode": True}
    assert "inference_mode=False" in refused(tiny("mistral"), "lora", peft_config=config)["nothing-trains"]


def test_an_mllama_has_more_rows_by_design(tiny: Tiny, tmp_path: Path) -> None:
    """Its embedding has the image token's rows beside vocab_size."""
    import transformers

    text = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "cross_attention_layers": [1], "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_global_layers": 1, "attention_heads": 2,
              "image_size": 28, "patch_size": 14, "vision_output_dim": 64, "intermediate_layers_indices": [0], "max_num_tiles": 1,
              "supported_aspect_ratios": [[1, 1]]}  # fmt: skip
    config = transformers.MllamaConfig(text_config=text, vision_config=vision, dtype="float32")
    transformers.MllamaForConditionalGeneration(config).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(tiny("mistral")).save_pretrained(tmp_path)
    loaded = loadkit.load(tmp_path)
    rows = loaded.model.get_input_embeddings().weight.shape[0]
    assert rows == loaded.model.config.text_config.vocab_size + 8
    assert loaded.processing_class is not None
    assert not [f for f in loaded.report.findings if f.severity == "error"]


def test_a_note_of_a_recipe_hides_no_missing_model(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "lora_r: 8\nuse_peft: true\ntorch_dtype: auto\nchat_template: chatml\nload_in_4bit: true\nadapter: qlora\n"
    )
    with pytest.raises(loadkit.PlanError) as caught:
        loadkit.plan(recipe=recipe)
    assert [p for p in caught.value.problems if p.severity == "error"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 17179869184 bytes"),
    ],
)
def test_memory_that_runs_out_has_a_remedy_of_its_own(
    tiny: Tiny, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fails)
    with pytest.raises(loadkit.LoadError, match="memory ran out") as caught:
        loadkit.load(tiny("mistral"))
    assert "of memory for the model" in str(caught.value)
    assert "load_in_4bit=True" in str(caught.value)


def test_memory_that_runs_out_in_a_phase(tiny: Tiny) -> None:
    class Large:
        @loadkit.hookimpl
        def loadkit_attach_adapters(self, model: Any) -> Any:
            raise MemoryError

    manager = loadkit.PluginManager(environ={})
    manager.register(Large(), "aaa-large")
    with pytest.raises(loadkit.LoadError, match="memory ran out while attaching the adapter"):
        loadkit.load(tiny("mistral"), "lora", plugin_manager=manager)


@pytest.mark.parametrize("device_map", ["disk", {"": "disk"}, "meta"])
def test_places_without_memory_are_as_asked(tiny: Tiny, tmp_path: Path, device_map: Any) -> None:
    """transformers keeps a whole model on the disk, or its shapes alone, and so does loadkit."""
    folder = {"offload_folder": str(tmp_path)}
    loaded = loadkit.load(tiny("mistral"), device_map=device_map, model_kwargs=folder)
    assert {p.device.type for p in loaded.model.parameters()} == {"meta"}
    assert ("no-values" in {w.code for w in loaded.plan.warnings}) is (device_map == "meta")
    if device_map != "meta":
        assert loaded.model(input_ids=torch.arange(5)[None]).logits.isfinite().all()

"""Callers of the alignment-handbook's, open-r1's and TRL's loading change one import line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
import trl
from model_outputs import logits

import loadkit
from loadkit.compat import (
    from_model_config,
    from_training_arguments,
    get_kbit_device_map,
    get_model,
    get_peft_config,
    get_quantization_config,
    get_tokenizer,
)
from loadkit.testing.checkpoints import make_adapter

Tiny = Callable[..., Path]
# trl 1.16 sets gradient_checkpointing, which transformers 5.23 calls activation_checkpointing.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing.*is deprecated:FutureWarning")


@dataclass
class OldModelConfig:
    """TRL's and the handbook's arguments before `torch_dtype` became `dtype`."""

    model_name_or_path: str
    model_revision: str = "main"
    torch_dtype: str | None = None
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    use_peft: bool = False
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    lora_target_modules: list[str] | None = None
    lora_modules_to_save: list[str] | None = None
    lora_task_type: str = "CAUSAL_LM"
    use_rslora: bool = False
    load_in_8bit: bool = False
    load_in_4bit: bool = False
    bnb_4bit_quant_type: str = "nf4"
    use_bnb_nested_quant: bool = False


@dataclass
class Training:
    """What of a trainer's config the loading reads."""

    gradient_checkpointing: bool = True
    gradient_checkpointing_kwargs: dict[str, Any] | None = field(
        default_factory=lambda: {"use_reentrant": False}
    )
    chat_template: str | None = None


def ids() -> torch.Tensor:
    return torch.arange(8, 20).reshape(2, 6)


def test_get_model_on_an_adapter_is_the_base_with_it(tiny: Tiny, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", tiny("mistral"))
    ours = get_model(trl.ModelConfig(model_name_or_path=str(adapter), dtype="float32"), Training())
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny("mistral"), dtype=torch.float32)
    plain = peft.PeftModel.from_pretrained(base, adapter)
    inputs = {"input_ids": ids()}
    assert torch.equal(logits(ours, inputs), logits(plain.eval(), inputs))


def test_an_adapter_is_frozen_as_by_the_original(tiny: Tiny, tmp_path: Path) -> None:
    """transformers' own way, which the originals go, attaches it to run."""
    adapter = make_adapter(tmp_path / "adapter", tiny("mistral"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(adapter)
    for more in (
        {},
        {"use_peft": True},
        {"load_in_4bit": True},
        {"load_in_8bit": True},
        {"dtype": "bfloat16"},
    ):
        ours = get_model(trl.ModelConfig(model_name_or_path=str(adapter), **more), Training())
        assert any("lora_" in name for name, _ in ours.named_parameters())
        assert not any(p.requires_grad for m in (ours, theirs) for p in m.parameters())
        assert (ours.training, ours.config.use_cache) == (theirs.training, False)
        assert getattr(ours.get_base_model(), "is_quantized", False) is (
            "load_in_4bit" in more or "load_in_8bit" in more
        )
    scores = trl.ModelConfig(model_name_or_path=str(adapter), lora_task_type="SEQ_CLS")
    with pytest.raises(loadkit.PlanError, match="merge it first"):
        get_model(scores, Training())


@pytest.mark.parametrize(
    ("spelt", "dtype"),
    [("torch.bfloat16", "bfloat16"), ("bf16", "bfloat16"), (torch.float16, "float16"), ("half", "float16"), ("auto", "bfloat16")],
)  # fmt: skip
def test_dtypes_in_every_spelling(tiny: Tiny, spelt: Any, dtype: str) -> None:
    for name in ("dtype", "torch_dtype"):
        model_args = type("Args", (), {"model_name_or_path": str(tiny("mistral")), name: spelt})()
        assert get_model(model_args, Training()).dtype == getattr(torch, dtype)


def test_stored_formats_stay_as_they_are(tiny: Tiny, tmp_path: Path) -> None:
    """What a ModelConfig prefers gives way to what the files fix, unless they can be decoded."""
    from stored_formats import store_fp8

    from loadkit.testing.checkpoints import make_prequantized

    stored = {
        "fp8": store_fp8(tmp_path / "fp8", tiny("mistral")),
        "bnb": make_prequantized(tmp_path / "bnb", tiny("mistral")),
    }
    for name, folder in stored.items():
        for more in ({}, {"load_in_4bit": True}, {"load_in_8bit": True}):
            model_args = trl.ModelConfig(model_name_or_path=str(folder), dtype="bfloat16", **more)
            model = get_model(model_args, Training())
            assert model.dtype == torch.bfloat16, (name, more)
            config = get_quantization_config(model_args)
            if name == "bnb" or not more:
                assert config is None, (name, more)
                continue
            (asked,) = more
            assert getattr(config, asked)  # fp8 is quantized again: get_model does it, transformers refuses
            packed = {type(m).__name__ for m in model.modules()} & {"Linear4bit", "Linear8bitLt"}
            assert packed == {"Linear4bit" if asked == "load_in_4bit" else "Linear8bitLt"}
            with pytest.raises(ValueError, match="quantized with FineGrainedFP8Config"):
                transformers.AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)


def test_a_quantization_config_among_the_trainers_model_init_kwargs(tiny: Tiny, tmp_path: Path) -> None:
    """As TRL's scripts put it there."""
    model_args = trl.ModelConfig(
        model_name_or_path=str(tiny("mistral")),
        load_in_4bit=True,
        use_bnb_nested_quant=True,
        bnb_4bit_quant_type="fp4",
        dtype="bfloat16",
    )
    given = {
        "quantization_config": get_quantization_config(model_args), "device_map": get_kbit_device_map(), "dtype": "bfloat16", "revision": "main",
        "attn_implementation": "eager",
    }  # fmt: skip
    args = trl.SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, model_init_kwargs=given)
    plain = trl.ModelConfig(model_name_or_path=str(tiny("mistral")))
    for config in (plain, model_args):
        model = get_model(config, args)
        held = model.config.quantization_config
        assert (held.bnb_4bit_quant_type, held.bnb_4bit_use_double_quant) == ("fp4", True)
        assert (model.dtype, model.config._attn_implementation) == (torch.bfloat16, "eager")


@pytest.mark.parametrize("config", [trl.ModelConfig, OldModelConfig])
@pytest.mark.parametrize(
    "quantized", [{}, {"load_in_4bit": True, "use_bnb_nested_quant": True}, {"load_in_8bit": True}]
)
def test_get_model_returns_the_bare_model_that_the_original_returns(
    tiny: Tiny, config: Any, quantized: dict[str, bool]
) -> None:
    folder, dtype = tiny("mistral"), {"torch_dtype" if config is OldModelConfig else "dtype": "float32"}
    model_args = config(model_name_or_path=str(folder), use_peft=True, **quantized, **dtype)
    ours = get_model(model_args, Training())
    settings = {
        "load_in_4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32, "bnb_4bit_use_double_quant": True},
        "load_in_8bit": {"load_in_8bit": True},
    }  # fmt: skip
    chosen = next((settings[name] for name in quantized if name in settings), None)
    plain = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        use_cache=False,
        quantization_config=transformers.BitsAndBytesConfig(**chosen) if chosen else None,
    )
    assert type(ours) is type(plain)
    assert not hasattr(ours, "peft_config")
    assert ours.config.use_cache is False
    assert ours.training == plain.training
    assert {n: (p.dtype, p.requires_grad) for n, p in ours.named_parameters()} == {
        n: (p.dtype, p.requires_grad) for n, p in plain.named_parameters()
    }
    inputs = {"input_ids": ids()}
    assert torch.equal(logits(ours, inputs), logits(plain, inputs))


def test_the_cache_is_on_without_gradient_checkpointing(tiny: Tiny) -> None:
    model_args = trl.ModelConfig(model_name_or_path=str(tiny("mistral")))
    assert get_model(model_args, Training(gradient_checkpointing=False)).config.use_cache is True


@pytest.mark.parametrize("dtype", ["auto", None])
def test_the_compute_dtype_is_the_resolved_one(tiny: Tiny, dtype: str | None) -> None:
    """TRAPS 2: TRL hands "auto" on, which raises an AttributeError, and None, which computes in float32."""
    if dtype == "auto":
        with pytest.raises(AttributeError):
            transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype)
    model_args = trl.ModelConfig(model_name_or_path=str(tiny("mistral")), dtype=dtype, load_in_4bit=True)
    config = get_quantization_config(model_args)
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == ("nf4", False)


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_the_quantization_config_is_trls(tiny: Tiny, bits: str) -> None:
    from trl.trainer.utils import get_quantization_config as original

    model_args = trl.ModelConfig(model_name_or_path=str(tiny("mistral")), dtype="bfloat16", **{bits: True})
    ours, theirs = get_quantization_config(model_args).to_dict(), original(model_args).to_dict()
    ours["bnb_4bit_quant_storage"] = ours["bnb_4bit_quant_storage"] or theirs["bnb_4bit_quant_storage"]
    assert ours == theirs
    assert get_quantization_config(trl.ModelConfig(model_name_or_path="x")) is None


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "use_rslora": True, "use_dora": True},
        {"lora_target_modules": ["q_proj", "v_proj"], "lora_modules_to_save": ["lm_head"]},
        {"lora_target_modules": ["all-linear"], "lora_task_type": "SEQ_CLS"},
        {"lora_target_parameters": ["mlp.experts.gate_up_proj"]},
    ],
)
def test_the_peft_config_is_trls(fields: dict[str, Any]) -> None:
    from trl.trainer.utils import get_peft_config as original

    model_args = trl.ModelConfig(use_peft=True, **fields)
    assert get_peft_config(model_args).to_dict() == original(model_args).to_dict()
    assert get_peft_config(trl.ModelConfig()) is None


def test_a_reward_model_has_its_head(tiny: Tiny) -> None:
    model_args = trl.ModelConfig(model_name_or_path=str(tiny("mistral")), lora_task_type="SEQ_CLS")
    assert type(get_model(model_args, Training())).__name__ == "MistralForSequenceClassification"


def test_get_tokenizer(tiny: Tiny, tmp_path: Path) -> None:
    model_args = trl.ModelConfig(model_name_or_path=str(tiny("mistral")))
    plain = transformers.AutoTokenizer.from_pretrained(tiny("mistral"))
    ours = get_tokenizer(model_args, Training())
    assert (ours.get_vocab(), ours.chat_template, ours.pad_token) == (
        plain.get_vocab(),
        plain.chat_template,
        plain.pad_token,
    )
    assert (
        get_tokenizer(model_args, Training(chat_template="{{ messages }}")).chat_template == "{{ messages }}"
    )
    sft = trl.SFTConfig(
        output_dir=str(tmp_path),
        chat_template_path=str(tiny("llama")),
        eos_token="<reserved_0>",
        use_cpu=True,
        bf16=False,
    )
    tokenizer, model = get_tokenizer(model_args, sft), get_model(model_args, sft)
    assert tokenizer.chat_template == transformers.AutoTokenizer.from_pretrained(tiny("llama")).chat_template
    assert tokenizer.eos_token_id == model.config.eos_token_id == 4
    images = trl.ModelConfig(model_name_or_path=str(tiny("gemma3")))
    assert hasattr(get_tokenizer(images, Training()), "image_processor")


def test_the_device_map_is_this_ranks_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRAPS 9: the global rank names a GPU of another node."""
    assert get_kbit_device_map() == ({"": 0} if torch.cuda.is_available() else None)
    from examples import EIGHT_H100, TWO_NODES

    from loadkit.compat import trl as ours

    monkeypatch.setattr(ours, "read_machine", lambda: EIGHT_H100)
    monkeypatch.setattr(ours, "read_topology", lambda: TWO_NODES)
    assert get_kbit_device_map() == {"": 3}


def test_an_attention_that_cant_be_had_falls_back_in_plain_sight(tiny: Tiny) -> None:
    model_args = trl.ModelConfig(
        model_name_or_path=str(tiny("mistral")), attn_implementation="flash_attention_2"
    )
    model = get_model(model_args, Training())
    assert model.config._attn_implementation == "sdpa"


def test_arguments_become_options(tmp_path: Path, tiny: Tiny) -> None:
    model_args = trl.ModelConfig(
        model_name_or_path="a/b",
        model_revision="v1",
        dtype="bfloat16",
        load_in_8bit=True,
        use_bnb_nested_quant=True,
    )
    assert from_model_config(model_args) == {"revision": "v1", "dtype": "bfloat16", "load_in_8bit": True}
    args = trl.SFTConfig(
        output_dir=str(tmp_path),
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": True},
        use_cpu=True,
        bf16=False,
    )
    options = from_training_arguments(args)
    assert options == {
        "training": True, "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True},
        "optim": "adamw_torch_fused", "trainer_fields": ["use_cpu"],
    }  # fmt: skip
    plan = loadkit.plan(tiny("mistral"), "qlora", **options)
    assert plan.preparation.gradient_checkpointing_kwargs == {"use_reentrant": True}
    plain = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert from_training_arguments(plain) == {
        "training": True, "gradient_checkpointing": False, "optim": "adamw_torch_fused", "trainer_fields": ["use_cpu"],
    }  # fmt: skip
    assert from_training_arguments(
        trl.RewardConfig(
            output_dir=str(tmp_path), trust_remote_code=True, optim="sgd", use_cpu=True, bf16=False
        )
    )["trust_remote_code"]
    with pytest.raises(loadkit.LoadkitError, match="names no model"):
        get_model(trl.ModelConfig(), Training())
    assert isinstance(get_peft_config(trl.ModelConfig(use_peft=True)), peft.LoraConfig)

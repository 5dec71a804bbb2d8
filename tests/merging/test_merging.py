"""A merge on the disk against PEFT's in memory, tensor by tensor, and every other tensor against the base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from hub_server import HubServer
from merging.conftest import Make, moved, same_as_peft
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import loadkit

Tiny = Callable[..., Path]
LINEAR = ["q_proj", "o_proj", "up_proj"]


def lora(*targets: str, **about: Any) -> Any:
    return peft.LoraConfig(r=4, target_modules=list(targets), **{"task_type": "CAUSAL_LM", **about})


EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
PLAIN: dict[str, tuple[str, Any]] = {
    "lora": ("mistral", lora(*LINEAR)),
    "rslora and patterns": ("mistral", lora(*LINEAR, use_rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"up_proj": 3})),
    "dora": ("mistral", lora(*LINEAR, use_dora=True)),
    "embeddings and whole modules": ("mistral", lora("q_proj", "embed_tokens", modules_to_save=["lm_head", "norm"])),
    "dora on embeddings": ("mistral", lora("embed_tokens", use_dora=True)),
    "rows of tokens": ("mistral", lora("q_proj", trainable_token_indices=[3, 7])),
    "transposed layers, trained biases": ("gpt2", lora("c_attn", fan_in_fan_out=True, bias="all")),
    "transposed dora": ("gpt2", lora("c_attn", "c_fc", fan_in_fan_out=True, use_dora=True)),
    "biases of the adapter": ("qwen2", lora("q_proj", lora_bias=True)),
    "biases of its layers": ("qwen2", lora("q_proj", bias="lora_only")),
    "fused experts, single in the files": ("mixtral", lora("q_proj", target_parameters=EXPERTS)),
    "a prefix in the files": ("llava", lora("q_proj")),
}  # fmt: skip


SLOW = {"dora on embeddings", "transposed dora", "biases of its layers", "rslora and patterns", "a prefix in the files",
        "the head alone", "each its own", "rows of both", "whole, as one"}  # fmt: skip


def kinds(table: dict[str, Any]) -> list[Any]:
    """Every kind of a table, the less common ones in the slow run."""
    return [pytest.param(kind, marks=pytest.mark.slow if kind in SLOW else ()) for kind in table]


@pytest.mark.parametrize("kind", kinds(PLAIN))
def test_is_pefts_and_nothing_else_moves(kind: str, tiny: Tiny, adapted: Make, tmp_path: Path) -> None:
    arch, config = PLAIN[kind]
    base = tiny(arch)
    adapter = adapted(base, config)
    done = loadkit.merge(adapter, tmp_path / "out")
    assert same_as_peft(tmp_path / "out", adapter, base) == []
    changed = {name for name, how in done.tensors.items() if how != "copied"}
    assert changed == moved(tmp_path / "out", base)
    assert changed


OTHERS = {
    "loha": peft.LoHaConfig(target_modules=["q_proj"]),
    "lokr": peft.LoKrConfig(target_modules=["q_proj"]),
    "ia3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "oft": peft.OFTConfig(target_modules=["q_proj"], oft_block_size=16),
    "boft": peft.BOFTConfig(target_modules=["q_proj"], boft_block_size=4),
    "hra": peft.HRAConfig(target_modules=["q_proj"]),
    "vera": peft.VeraConfig(target_modules=["q_proj"], r=8),
    "fourierft": peft.FourierFTConfig(target_modules=["q_proj"], n_frequency=100),
    "ln tuning": peft.LNTuningConfig(target_modules=["input_layernorm", "norm"]),
    "trainable tokens": peft.TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=[1, 2]),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_other_types_are_pefts(kind: str, tiny: Tiny, adapted: Make, tmp_path: Path) -> None:
    adapter = adapted(tiny("mistral"), OTHERS[kind])
    loadkit.merge(adapter, tmp_path / "out")
    assert same_as_peft(tmp_path / "out", adapter, tiny("mistral")) == []


@pytest.mark.parametrize(
    ("stored", "dtype"), [("float32", None), ("bfloat16", "float32"), ("float32", "bf16")]
)
def test_dtypes(stored: str, dtype: str | None, tiny: Tiny, adapted: Make, tmp_path: Path) -> None:
    base = tiny("mistral", dtype=stored)
    adapter = adapted(base, lora("q_proj", "embed_tokens"))
    done = loadkit.merge(adapter, tmp_path / "out", dtype=dtype)
    assert same_as_peft(tmp_path / "out", adapter, base) == []
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == {"bf16": "bfloat16", None: stored}.get(dtype, dtype)
    assert done.changed == (() if dtype is None else ("dtype",))


def test_shards_keep_their_files(tiny: Tiny, adapted: Make, tmp_path: Path) -> None:
    base = tiny("mistral", shards=3)
    adapter = adapted(base, lora(*LINEAR, modules_to_save=["embed_tokens"]))
    loadkit.merge(adapter, tmp_path / "out")
    names = [json.loads((f / "model.safetensors.index.json").read_text()) for f in (base, tmp_path / "out")]
    assert names[0] == names[1]
    assert same_as_peft(tmp_path / "out", adapter, base) == []


def test_whatever_else_the_files_hold(tiny: Tiny, adapted: Make, tmp_path: Path) -> None:
    """Tensors of no use to the class, of other kinds and sizes, files in folders, numbers that JSON lacks."""
    base = Path(shutil.copytree(tiny("mistral"), tmp_path / "base"))
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    tensors |= {
        "mtp.weight": torch.ones(3, 3),
        "ids": torch.arange(5),
        "on": torch.tensor(True),
        "no": torch.empty(0, 4),
    }
    tensors |= {name: tensor.float() for name, tensor in tensors.items() if "norm" in name}
    (base / "in").mkdir()
    save_file(tensors, base / "in" / "weights.safetensors", {"format": "pt", "more": "x"})
    index = {"metadata": {"more": "y"}, "weight_map": dict.fromkeys(tensors, "./in/weights.safetensors")}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"limit": [0.0, float("inf")]}))
    adapter = adapted(base, lora("q_proj"))
    done = loadkit.merge(adapter, tmp_path / "out")
    assert [n for n, how in done.tensors.items() if how != "copied"] == sorted(
        n for n in tensors if "q_proj" in n
    )
    made = load_file(tmp_path / "out" / "in" / "weights.safetensors")
    assert {n: (t.dtype, t.shape) for n, t in made.items()} == {
        n: (t.dtype, t.shape) for n, t in tensors.items()
    }
    assert all(torch.equal(made[name], tensors[name]) for name in tensors if "q_proj" not in name)
    loadkit.merge(adapter, tmp_path / "half", dtype="float16")
    made = load_file(tmp_path / "half" / "in" / "weights.safetensors")
    assert {str(tensor.dtype) for tensor in made.values()} == {"torch.float16", "torch.int64", "torch.bool"}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["limit"] == [0.0, float("inf")]


def test_single_experts_of_an_older_adapter(tiny: Tiny, tmp_path: Path) -> None:
    """Made before the experts were fused in transformers: PEFT fuses its matrices too."""
    base = tiny("mixtral")
    config = json.loads((base / "config.json").read_text())
    outer, inner = config["hidden_size"], config["intermediate_size"]
    torch.manual_seed(0)
    held = {}
    for layer in range(config["num_hidden_layers"]):
        for expert in range(config["num_local_experts"]):
            for name, (into, out) in {
                "w1": (outer, inner),
                "w3": (outer, inner),
                "w2": (inner, outer),
            }.items():
                path = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}"
                held[f"{path}.lora_A.weight"] = torch.randn(4, into) * 0.1
                held[f"{path}.lora_B.weight"] = torch.randn(out, 4) * 0.1
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_file(held, adapter / "adapter_model.safetensors", {"format": "pt"})
    about = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "target_modules": ["w1", "w2", "w3"]}
    (adapter / "adapter_config.json").write_text(json.dumps({**about, "base_model_name_or_path": str(base)}))
    loadkit.merge(adapter, tmp_path / "out")
    assert same_as_peft(tmp_path / "out", adapter, base) == []


TIED = {
    "embeddings alone": (lora("q_proj", "embed_tokens"), True, True),
    "the head alone": (lora("lm_head"), True, True),
    "each its own": (lora("embed_tokens", "lm_head"), True, True),
    "whole embeddings": (lora("q_proj", modules_to_save=["embed_tokens"]), True, True),
    "whole, as one": (lora("q_proj", modules_to_save=["embed_tokens"], ensure_weight_tying=True), False, False),
    "rows of both": (lora("q_proj", trainable_token_indices=[3, 7]), False, False),
    "as one": (lora("embed_tokens", "lm_head", ensure_weight_tying=True), False, None),
}  # fmt: skip


@pytest.mark.parametrize("kind", kinds(TIED))
def test_tied_heads_compute_what_the_adapter_did(
    kind: str, tiny: Tiny, adapted: Make, tmp_path: Path
) -> None:
    """PEFT's own merge moves one tensor twice where the adapter is tied too: that is held by the logits."""
    config, apart, untied = TIED[kind]
    base = tiny("qwen2-tied")
    adapter = adapted(base, config)
    loadkit.merge(adapter, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is not apart
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert ("lm_head.weight" in file.keys()) is apart  # noqa: SIM118
    if untied is not None:
        assert same_as_peft(tmp_path / "out", adapter, base, untied=untied) == []
    loadkit.merge(adapter, tmp_path / "wide", dtype="float32")
    tokens = torch.arange(2, 18).reshape(2, 8)
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    unmerged = peft.PeftModel.from_pretrained(plain, adapter).eval()
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "wide").eval()
    with torch.no_grad():
        gap = (unmerged(input_ids=tokens).logits - merged(input_ids=tokens).logits).abs().max()
    assert gap < 1e-5


def test_a_classifier_over_a_language_model(tiny: Tiny, adapted: Make, tmp_path: Path) -> None:
    base, klass = tiny("mistral"), transformers.MistralForSequenceClassification
    adapter = adapted(base, lora("q_proj", task_type="SEQ_CLS"), klass=klass, num_labels=3)
    done = loadkit.merge(adapter, tmp_path / "out")
    assert same_as_peft(tmp_path / "out", adapter, base, klass=klass, num_labels=3) == []
    assert done.left_out == ("lm_head.weight",)
    loaded = loadkit.load(tmp_path / "out", verify="full")
    assert type(loaded.model) is klass
    assert loaded.model.config.num_labels == 3
    assert not loaded.report.findings


@pytest.mark.parametrize("whole", [["embed_tokens", "lm_head"], None])
def test_a_grown_vocabulary(whole: list[str] | None, tiny: Tiny, adapted: Make, tmp_path: Path) -> None:
    adapter = adapted(tiny("mistral"), lora("q_proj", modules_to_save=whole), rows=520)
    loadkit.merge(adapter, tmp_path / "out")
    assert same_as_peft(tmp_path / "out", adapter, tiny("mistral"), rows=520) == []
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 520


def test_what_loadkit_trained_with_new_tokens(tiny: Tiny, tmp_path: Path) -> None:
    """The rows of an adapter's new tokens, those beside them, and its tokenizer: as a merge in memory."""
    loaded = loadkit.load(
        tiny("mistral"), "lora", lora_r=4, additional_special_tokens=["<one>", "<two>"], vocabulary_to_multiple_of=64
    )  # fmt: skip
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.03)
    loaded.save_pretrained(tmp_path / "adapter")
    loadkit.merge(tmp_path / "adapter", tmp_path / "out")
    wanted = loadkit.load(tmp_path / "adapter", merge_adapter=True, dtype="float32").model.state_dict()
    again = loadkit.load(tmp_path / "out", verify="full")
    assert not again.report.findings
    assert "<two>" in again.tokenizer.get_vocab()
    found = again.model.state_dict()
    assert [n for n in found if not torch.equal(found[n], wanted[n].to(found[n].dtype))] == []


def test_from_the_hub_at_the_adapters_revision(
    hub: HubServer, tiny: Tiny, adapted: Make, tmp_path: Path
) -> None:
    adapter = adapted(tiny("mistral"), lora(*LINEAR))
    first = hub.add("owner/base", tiny("mistral"))
    hub.add("owner/base", tiny("mistral", seed=1))
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": "owner/base", "revision": first}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    hub.add("owner/adapter", adapter)
    done = loadkit.merge("owner/adapter", tmp_path / "out")
    assert same_as_peft(tmp_path / "out", adapter, tiny("mistral")) == []
    plan = done.manifest.plan
    assert (plan.checkpoint.location, plan.checkpoint.commit) == ("owner/base", first)
    assert (plan.adapter.source, len(plan.adapter.revision)) == ("owner/adapter", 40)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "about"),
    [
        ("Qwen3Moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
        ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
        ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("Jamba", {"num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}),
        ("Phimoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    ],
)  # fmt: skip
def test_experts_of_other_families(kind: str, about: dict[str, Any], adapted: Make, tmp_path: Path) -> None:
    sizes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}  # fmt: skip
    klass = getattr(transformers, f"{kind}ForCausalLM")
    base = tmp_path / "base"
    torch.manual_seed(0)
    klass(getattr(transformers, f"{kind}Config")(**sizes, **about)).to(torch.bfloat16).save_pretrained(base)
    for number, parameters in enumerate((EXPERTS, EXPERTS[:1])):
        config = lora("q_proj", "o_proj", target_parameters=parameters)
        adapter = adapted(base, config, name=f"adapter-{number}")
        loadkit.merge(adapter, tmp_path / f"out-{number}")
        assert same_as_peft(tmp_path / f"out-{number}", adapter, base) == []

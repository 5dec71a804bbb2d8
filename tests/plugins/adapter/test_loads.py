"""Adapters on real models: attached, resumed, several, merged; what doesn't fit is an error that names the
tensors."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from hub_server import HubServer
from model_outputs import batch, images_and_text, logits
from safetensors.torch import load_file, save_file

import loadkit
from loadkit.testing.checkpoints import make_adapter, make_prequantized

Tiny = Callable[..., Path]
# peft 0.21.2 reads the attribute that transformers 5.23 renamed; loadkit keeps it from its users, plain PEFT
# doesn't.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def plain(adapter: Path, base: Path, **kwargs: Any) -> Any:
    """The model by transformers and PEFT alone."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, **kwargs)
    return peft.PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).eval()


def ids(loaded: loadkit.Loaded) -> dict[str, Any]:
    inputs = batch(loaded)
    inputs.pop("labels", None)
    return inputs


@pytest.fixture(scope="module")
def adapter(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapters") / "one", tiny("mistral"))


@pytest.fixture(scope="module")
def another(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapters") / "two", tiny("mistral"), seed=1)


def edited(adapter: Path, target: Path, **tensors: Any) -> Path:
    """A copy of an adapter with other tensors in it: None removes one, "first" stands for the first."""
    copy = Path(shutil.copytree(adapter, target))
    held = load_file(copy / "adapter_model.safetensors")
    first = sorted(held)[0]
    for name, value in tensors.items():
        key = first if name == "first" else name
        if value is None:
            del held[key]
        else:
            held[key] = value
    save_file(held, copy / "adapter_model.safetensors", {"format": "pt"})
    return copy


# --- New ones


def test_a_target_that_matches_nothing_is_an_error(tiny: Tiny) -> None:
    """PEFT is content where one of several targets is found; the plan can tell, before weights are read."""

    def refused(**options: Any) -> str:
        with pytest.raises(loadkit.PlanError) as caught:
            loadkit.plan(tiny("mistral"), "lora", **options)
        return str(caught.value)

    assert "is called 'k_projj' (did you mean 'k_proj'?)" in refused(
        lora_target_modules=["q_proj", "k_projj"]
    )
    both = refused(lora_target_modules=["q_porj"], lora_modules_to_save=["lm_haed"])
    assert "'lm_haed' (did you mean 'lm_head'?)" in both
    assert "'q_porj' (did you mean" in both  # all at once
    assert "no module's whole path matches it" in refused(lora_target_modules="q_pr.j")
    assert "a list means the ends of paths: ['q_proj']" in refused(lora_target_modules="q_proj")
    assert "isn't a regular expression" in refused(lora_target_modules="(q_proj")
    assert "lora_target_parameters=['mlp.gate']" in refused(lora_target_parameters=["mlp.gate"])
    assert "'self_atn.q_proj'" in refused(peft_config={"r": 2, "target_modules": ["self_atn.q_proj"]})
    assert "rank_pattern" in refused(
        peft_config={"target_modules": ["q_proj"], "rank_pattern": {"q_porj": 4}}
    )
    with pytest.raises(loadkit.LoadError, match=r"the pattern .* matches nothing"):
        loadkit.load(
            tiny("mixtral"), "lora", lora_target_modules=r"layers\.7\..*q_proj"
        )  # PEFT's own to tell


@pytest.mark.parametrize("profile", [None, "lora", "qlora"])
@pytest.mark.parametrize("as_object", [True, False], ids=["object", "dict"])
def test_a_peft_config_is_met_field_by_field(tiny: Tiny, profile: str | None, as_object: bool) -> None:
    """TRAPS 31: a profile's LoRA doesn't go over the user's config."""
    wanted = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["q_proj"]}
    given: Any = peft.LoraConfig(task_type="CAUSAL_LM", **wanted) if as_object else wanted
    loaded = loadkit.load(tiny("mistral"), profile, peft_config=given)
    held = loaded.model.peft_config["default"]
    assert {**{k: getattr(held, k) for k in wanted}, "target_modules": sorted(held.target_modules)} == wanted
    if profile:
        gave_way = [p.value for p in loaded.plan.why("adapter").passed_over]
        assert (
            f"lora_r=16 by profile {'lora'!r}" in gave_way or f"lora_r=16 by profile {profile!r}" in gave_way
        )
        assert "instead of lora_r=16" in loaded.plan.explained()


def test_targets_by_pattern_path_and_parameter(tiny: Tiny) -> None:
    def adapted(arch: str = "mistral", **options: Any) -> set[str]:
        model = loadkit.load(tiny(arch), "lora", **options).model
        return {
            n.split(".lora_")[0].removeprefix("base_model.model.")
            for n, _ in model.named_parameters()
            if ".lora_A" in n
        }

    assert adapted(lora_target_modules=r".*layers\.1\..*\.q_proj") == {"model.layers.1.self_attn.q_proj"}
    assert adapted(lora_target_modules=["layers.0.mlp.up_proj"]) == {"model.layers.0.mlp.up_proj"}
    experts = adapted(
        "mixtral", lora_target_parameters=["mlp.experts.gate_up_proj"], lora_target_modules=["q_proj"]
    )
    assert any("experts" in name for name in experts)
    towers = adapted("gemma3", lora_target_modules=["q_proj"])
    assert towers
    assert not any("vision" in name for name in towers)
    assert any(
        "vision" in name for name in adapted("gemma3", lora_target_modules=["q_proj"], lora_vision=True)
    )


@pytest.mark.parametrize("profile", ["lora", "qlora", "qlora-8bit"])
@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"init_lora_weights": "gaussian"},
        {"lora_modules_to_save": ["lm_head"]},
    ],
)
def test_variants_of_lora_train(tiny: Tiny, profile: str, options: dict[str, Any]) -> None:
    if profile == "qlora-8bit" and "use_dora" in options:
        with pytest.raises(loadkit.PlanError, match="dora-8bit"):
            loadkit.load(tiny("mistral"), profile, **options)
        return
    loaded = loadkit.load(tiny("mistral"), profile, **options)
    loaded.model(**batch(loaded)).loss.backward()
    trained = {n: p for n, p in loaded.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.bfloat16}
    assert all(p.grad is not None for p in trained.values())
    assert loaded.report.findings == ()


@pytest.mark.parametrize("arch", ["mistral", "qwen2-tied", "gemma3"])
@pytest.mark.parametrize("profile", ["lora", "qlora"])
def test_rows_of_new_tokens_train_and_come_back(tiny: Tiny, tmp_path: Path, arch: str, profile: str) -> None:
    """TRAPS 19: rows that nobody trains are silent garbage; an adapter saved without them is too."""
    new = ["<|tool|>", "<|think|>"]
    loaded = loadkit.load(tiny(arch), profile, additional_special_tokens=new, lora_dropout=0.0)
    rows = [
        p for n, p in loaded.model.named_parameters() if "trainable_tokens_delta" in n and p.requires_grad
    ]
    base = loaded.model.get_base_model()
    tied = base.config.get_text_config().tie_word_embeddings
    assert [tuple(p.shape) for p in rows] == [(2, 64)] * (1 if tied else 2)
    inputs = images_and_text(loaded.processing_class) if arch == "gemma3" else batch(loaded)
    inputs["input_ids"][:, -2:] = torch.tensor([512, 513])
    optimizer = torch.optim.SGD([p for p in loaded.model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        loaded.model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    before = logits(loaded.model, inputs)
    saved = loaded.save_pretrained(tmp_path / "adapter")
    again = loadkit.load(saved, profile)
    assert again.tokenizer.convert_tokens_to_ids(new) == [512, 513]
    assert "the adapter was saved with its own" in again.plan.why("processing").because
    assert torch.equal(logits(again.model, inputs), before)


# --- Existing ones


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_an_adapter_over_its_base_says_what_plain_peft_says(
    tiny: Tiny, adapter: Path, bits: int | None
) -> None:
    options = {} if bits is None else {f"load_in_{bits}bit": True}
    loaded = loadkit.load(adapter, **options)
    settings = transformers.BitsAndBytesConfig(
        bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16, **options
    )  # fmt: skip
    reference = plain(
        adapter, tiny("mistral"), dtype=torch.bfloat16, quantization_config=settings if bits else None
    )
    for parameter in reference.parameters():
        if parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(torch.bfloat16)
    assert torch.equal(logits(loaded.model, ids(loaded)), logits(reference, ids(loaded)))
    assert not any(p.requires_grad for p in loaded.model.parameters())
    by_option = loadkit.load(tiny("mistral"), adapter=str(adapter), **options)
    assert torch.equal(logits(by_option.model, ids(loaded)), logits(loaded.model, ids(loaded)))


def test_an_adapter_is_in_the_planned_dtype_on_the_bases_device(
    tiny: Tiny, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRAPS 20: PEFT casts 16-bit adapters to float32, and loads them to a GPU wherever the base lies."""
    asked: list[str | None] = []
    original = peft.peft_model.load_peft_weights

    def watched(source: str, device: str | None = None, **more: Any) -> Any:
        asked.append(device)
        return original(source, device=device, **more)

    monkeypatch.setattr(peft.peft_model, "load_peft_weights", watched)
    monkeypatch.setattr(peft.peft_model, "infer_device", lambda: "cuda")  # as on a machine with a GPU
    loaded = loadkit.load(adapter, "qlora")
    assert asked == ["cpu"]
    own = [p for n, p in loaded.model.named_parameters() if "lora_" in n]
    assert {p.dtype for p in own} == {torch.bfloat16}
    assert all(p.requires_grad for p in own)
    exact = loadkit.load(adapter, dtype="float32")
    assert {p.dtype for n, p in exact.model.named_parameters() if "lora_" in n} == {torch.float32}


def test_missing_and_unexpected_tensors_are_errors(tiny: Tiny, adapter: Path, tmp_path: Path) -> None:
    """TRAPS 20: PEFT only warns, and the missing half stays random."""
    with pytest.raises(
        loadkit.LoadError, match=r"1 tensors are missing from its file: base_model\.model\.model\.layers\.0"
    ):
        loadkit.load(edited(adapter, tmp_path / "missing", first=None))
    strange = edited(
        adapter,
        tmp_path / "more",
        **{"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.ones(8, 64)},
    )
    with pytest.raises(loadkit.LoadError, match=r"nowhere in the model: base_model\.model\.model\.layers\.9"):
        loadkit.load(strange)
    misshapen = edited(adapter, tmp_path / "shape", first=torch.ones(8, 128, 1))
    with pytest.raises(loadkit.LoadError, match="doesn't fit"):
        loadkit.load(misshapen)
    narrow = edited(adapter, tmp_path / "narrow", first=torch.ones(8, 32))
    with pytest.raises(loadkit.PlanError, match="adapter-shape"):
        loadkit.load(narrow)


@pytest.mark.parametrize(
    "targets", [{"modules_to_save": ["embed_tokens", "lm_head"]}, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}]
)  # fmt: skip
def test_an_adapter_of_a_grown_vocabulary(targets: dict[str, Any], tiny: Tiny, tmp_path: Path) -> None:
    """PEFT saves embeddings that were resized once for each name that they have in its wrapper."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny("mistral"))
    model.resize_token_embeddings(520, mean_resizing=False)
    config = peft.LoraConfig(task_type="CAUSAL_LM", **{"target_modules": ["q_proj"], **targets})
    with pytest.warns(UserWarning, match="save_embedding_layers"):
        peft.get_peft_model(model, config).save_pretrained(tmp_path / "grown")
    loaded = loadkit.load(tmp_path / "grown")
    assert loaded.model.get_input_embeddings().weight.shape[0] == 520
    held = load_file(tmp_path / "grown" / "adapter_model.safetensors")
    saved = next(held[name] for name in held if re.search(r"embed_tokens\.(base_layer\.)?weight$", name))
    embeddings = loaded.model.get_base_model().get_input_embeddings()
    rows = getattr(embeddings, "modules_to_save", {"default": getattr(embeddings, "base_layer", None)})[
        "default"
    ].weight
    assert torch.equal(rows, saved.to(rows.dtype))


def test_several_adapters_one_active(tiny: Tiny, adapter: Path, another: Path) -> None:
    named = {"style": str(adapter), "tone": str(another)}
    loaded = loadkit.load(tiny("mistral"), "lora", adapter=named)
    assert loaded.model.active_adapter == "style"
    trains = {n for n, p in loaded.model.named_parameters() if p.requires_grad}
    assert trains
    assert all(".style" in n for n in trains)
    one, two = (loadkit.load(path) for path in (adapter, another))
    assert torch.equal(logits(loaded.model, ids(one)), logits(one.model, ids(one)))
    other = loadkit.load(tiny("mistral"), adapter=named, active_adapter="tone")
    assert torch.equal(logits(other.model, ids(one)), logits(two.model, ids(one)))
    other.model.set_adapter("style")
    assert torch.equal(logits(other.model, ids(one)), logits(one.model, ids(one)))
    with pytest.raises(loadkit.LoadError, match="can't be called 'mlp'"):
        loadkit.load(tiny("mistral"), adapter={"mlp": str(adapter)})


def test_what_a_request_names_must_be_an_adapter(tiny: Tiny, adapter: Path, tmp_path: Path) -> None:
    def codes(**options: Any) -> set[str]:
        with pytest.raises(loadkit.PlanError) as caught:
            loadkit.plan(options.pop("source", tiny("mistral")), **options)
        return {p.code for p in caught.value.problems}

    assert "no-such-folder" in codes(adapter=str(tmp_path / "nowhere"))
    assert "not-an-adapter" in codes(adapter=str(tiny("mistral")))
    assert "bad-adapter" in codes(adapter={"a": 5})
    assert "adapter-name-taken" in codes(source=adapter, adapter=str(adapter))
    assert "adapter-base-differs" in codes(source=tiny("llama"), adapter=str(adapter))
    assert loadkit.plan(adapter, adapter={"more": str(adapter)}).adapters is not None


def test_a_folder_that_is_model_and_adapter_is_attached_once(
    tiny: Tiny, adapter: Path, tmp_path: Path
) -> None:
    """transformers injects an adapter that it finds beside the weights, by itself."""
    both = Path(shutil.copytree(tiny("mistral"), tmp_path / "both"))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, both / name)
    loaded = loadkit.load(both)
    assert list(loaded.model.peft_config) == ["default"]
    assert sum("lora_A" in n for n, _ in loaded.model.named_parameters()) == 14
    alone = loadkit.load(adapter)
    assert torch.equal(logits(loaded.model, ids(alone)), logits(alone.model, ids(alone)))
    bare = loadkit.load(both, adapter=False)
    assert not any("lora" in n for n, _ in bare.model.named_parameters())


def test_adapter_and_base_from_the_hub_each_at_its_revision(
    hub: HubServer, tiny: Tiny, adapter: Path, another: Path, tmp_path: Path
) -> None:
    hub.add("owner/base", tiny("mistral"))
    commits = {}
    for branch, folder in (("old", adapter), ("main", another)):
        copy = Path(shutil.copytree(folder, tmp_path / branch))
        config = json.loads((copy / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = "owner/base"
        (copy / "adapter_config.json").write_text(json.dumps(config))
        commits[branch] = hub.add("me/adapter", copy, branch=branch)
    old, new = loadkit.load(adapter), loadkit.load(another)
    for loaded, branch, like in (
        (loadkit.load("owner/base", adapter="me/adapter", adapter_revision="old"), "old", old),
        (loadkit.load("owner/base", adapter="me/adapter@old"), "old", old),
        (loadkit.load("owner/base", adapter="me/adapter"), "main", new),
        (loadkit.load("me/adapter", adapter_revision="old"), "old", old),
    ):
        assert loaded.plan.adapter is not None
        assert loaded.plan.adapter.revision == commits[branch]
        assert torch.equal(logits(loaded.model, ids(old)), logits(like.model, ids(old)))


# --- Merging


def test_merging_gives_a_bare_model(tiny: Tiny, adapter: Path, tmp_path: Path) -> None:
    apart = loadkit.load(adapter, dtype="float32")
    merged = loadkit.load(adapter, dtype="float32", merge_adapter=True)
    assert type(merged.model).__name__ == "MistralForCausalLM"
    assert not any("lora" in n for n, _ in merged.model.named_parameters())
    assert not hasattr(merged.model, "peft_config")
    inputs = ids(apart)
    # The same sums in another order: W x + B A x, and (W + B A) x.
    torch.testing.assert_close(logits(merged.model, inputs), logits(apart.model, inputs), atol=2e-5, rtol=0)
    merged.save_pretrained(tmp_path / "merged")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="float32")
    assert torch.equal(logits(again, inputs), logits(merged.model, inputs))
    assert [c.kind for c in merged.report.changes if c.phase == "merge"] == ["removed"]


@pytest.mark.parametrize("bits", [4, 8])
def test_merging_into_a_dequantized_base(tiny: Tiny, adapter: Path, tmp_path: Path, bits: int) -> None:
    """TRAPS 21: never into quantized weights."""
    options = {f"load_in_{bits}bit": True, "merge_adapter": True}
    with pytest.raises(loadkit.PlanError, match="dequantize=True"):
        loadkit.load(adapter, **options)
    merged = loadkit.load(adapter, dequantize=True, **options)
    assert {p.dtype for p in merged.model.parameters()} == {torch.bfloat16}
    assert getattr(merged.model.config, "quantization_config", None) is None
    change = next(c for c in merged.report.changes if c.phase == "dequantization")
    assert change.bytes_after > change.bytes_before
    apart = loadkit.load(adapter, **{f"load_in_{bits}bit": True})
    inputs = ids(apart)
    difference = (logits(merged.model, inputs) - logits(apart.model, inputs)).abs().max()
    assert difference < 0.1 * logits(apart.model, inputs).abs().max()  # another rounding, the same model
    merged.save_pretrained(tmp_path / "merged")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(again, inputs), logits(merged.model, inputs))


def test_merging_over_a_prequantized_checkpoint(tiny: Tiny, adapter: Path, tmp_path: Path) -> None:
    stored = make_prequantized(tmp_path / "nf4", tiny("mistral"), bits=4)
    merged = loadkit.load(
        stored, adapter=str(adapter), check_adapter_base=False, merge_adapter=True, dequantize=True
    )
    assert not any("lora" in n for n, _ in merged.model.named_parameters())
    assert {p.dtype for p in merged.model.parameters()} == {torch.bfloat16}


def test_an_adapter_of_float32_over_a_base_of_16_bits_keeps_every_bit(tiny: Tiny, tmp_path: Path) -> None:
    """PEFT reads its file into tensors of the base's dtype, and they were widened afterwards: rounded."""
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    first = loadkit.load(tiny("mistral"), "lora", dtype="float32", peft_config=config)
    first.save_pretrained(tmp_path / "wide")
    again = loadkit.load(tmp_path / "wide", dtype="bfloat16", adapter_dtype="float32")
    held = dict(again.model.named_parameters())
    of_it = {name: p for name, p in first.model.named_parameters() if "lora_" in name}
    assert of_it
    assert all(torch.equal(p, held[name]) for name, p in of_it.items())

"""What `load` promises: the plan is run as it is, the result is audited, and what can't be had is refused."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from model_outputs import batch, images_and_text, logits
from safetensors.torch import load_file, save_file

import loadkit
from loadkit.loading import load as loading
from loadkit.testing.checkpoints import make_adapter, make_pickle_only, make_prequantized


def copy(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def codes(caught: pytest.ExceptionInfo[Any]) -> list[str]:
    error = caught.value
    items = error.problems if isinstance(error, loadkit.PlanError) else error.findings
    return [item.code for item in items if item.severity == "error"]


def test_a_plan_is_run_as_it_is(tiny) -> None:
    plan = loadkit.plan(tiny("mistral"), "lora", lora_r=4)
    loaded = loadkit.load(loadkit.Plan.from_json(plan.to_json()))
    assert loaded.plan == plan
    assert loaded.model.peft_config["default"].r == 4
    model, tokenizer = loaded
    assert (model, tokenizer) == (loaded.model, loaded.processing_class)
    with pytest.raises(loadkit.LoadkitError, match="a plan is run as it is"):
        loadkit.load(plan, dtype="float32")


def test_the_report_counts_what_is_there(tiny) -> None:
    report = loadkit.load(tiny("mistral"), "qlora").report
    measured = report.measurements
    assert measured.modules["Linear4bit"] == 14
    assert measured.model_class == "MistralForCausalLM"
    assert 0 < measured.trainable < measured.parameters
    assert sum(measured.bytes_by_dtype.values()) == measured.footprint == sum(measured.devices.values())
    assert list(report.seconds) == [
        "plan", "import", "processing", "load", "comparison", "vocabulary", "k-bit preparation", "gradient checkpointing",
        "input gradients", "adapter", "audit",
    ]  # fmt: skip
    assert report.peak_memory["host"] > measured.footprint
    assert "what was planned is what was loaded" in str(report)
    assert report.findings == ()


def test_the_report_counts_all_of_the_planning(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loading.plan_load

    def slowly(*given, **options):
        time.sleep(0.2)
        return real(*given, **options)

    monkeypatch.setattr(loading, "plan_load", slowly)
    assert loadkit.load(tiny("mistral"), "inference").report.seconds["plan"] > 0.2


@pytest.mark.parametrize("profile", ["inference", "inference-4bit", "inference-8bit"])
def test_the_footprint_is_transformers_own_and_the_constants(tiny, profile: str) -> None:
    loaded = loadkit.load(tiny("mistral"), profile)
    ours, theirs = loaded.report.measurements.footprint, loaded.model.get_memory_footprint()
    constants = 0
    for parameter in loaded.model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            parts = [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
            constants += sum(t.numel() * t.element_size() for t in {t.data_ptr(): t for t in parts}.values())
        elif getattr(parameter, "SCB", None) is not None:
            constants += parameter.SCB.numel() * parameter.SCB.element_size()
    assert ours == theirs + constants


def test_missing_weights_fail_the_load(tiny, tmp_path: Path) -> None:
    folder = copy(tiny("mistral"), tmp_path / "cut")
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(loadkit.AuditError) as caught:
        loadkit.load(folder)
    assert codes(caught) == ["missing-weights"]
    assert "model.layers.1.mlp.up_proj.weight" in str(caught.value)
    assert caught.value.loaded.model.config.model_type == "mistral"
    with pytest.warns(loadkit.LoadkitWarning, match="hold random values"):
        loadkit.load(folder, strict=False)


def test_a_tensor_of_another_shape_is_refused_before_the_load(tiny, tmp_path: Path) -> None:
    folder = copy(tiny("mistral"), tmp_path / "cut")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(32, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        loadkit.PlanError, match=r"model\.norm\.weight is 64, and in the weight files it is 32"
    ):
        loadkit.load(folder)


def test_a_tensor_of_another_shape_fails_the_load(tiny, tmp_path: Path) -> None:
    """One whose shape no plan knows: GPT-2's norms are torch's."""
    folder = copy(tiny("gpt2"), tmp_path / "cut")
    tensors = load_file(folder / "model.safetensors")
    (name,) = (each for each in tensors if each.endswith("ln_f.weight"))
    tensors[name] = torch.ones(32, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        loadkit.AuditError, match=r"ln_f\.weight: \(32,\) in the file, \(64,\) in the model"
    ) as caught:
        loadkit.load(folder)
    assert codes(caught) == ["mismatched-weights"]


def test_a_new_head_is_a_warning_in_the_report(tiny) -> None:
    loaded = loadkit.load(tiny("mistral"), task="sequence-classification")
    assert [(f.code, f.severity) for f in loaded.report.findings] == [
        ("missing-weights", "warning"),
        ("unexpected-weights", "warning"),
    ]


def test_the_cache_is_off_at_every_depth(tiny) -> None:
    """TRAPS 1: as a keyword argument, use_cache=False raises for a config without a top-level field."""
    loaded = loadkit.load(tiny("gemma3"), use_cache=False)
    assert loaded.model.config.text_config.use_cache is False
    assert not hasattr(loaded.model.config, "use_cache")


def test_skip_modules_add_to_the_automatic_ones(tiny) -> None:
    """TRAPS 4: transformers takes the user's list instead of its own, and quantizes the output head."""
    model = loadkit.load(
        tiny("mistral"), "inference-4bit", skip_modules=["q_proj", "layers.1.mlp.up_proj"]
    ).model
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    assert kinds["lm_head"] == "Linear"
    assert kinds["model.layers.0.self_attn.q_proj"] == kinds["model.layers.1.self_attn.q_proj"] == "Linear"
    assert kinds["model.layers.1.mlp.up_proj"] == "Linear"
    assert kinds["model.layers.0.mlp.up_proj"] == "Linear4bit"


def test_a_skip_path_that_no_module_has_is_refused(tiny) -> None:
    with pytest.raises(loadkit.LoadError, match=r"'layers\.7\.mlp\.up_proj'"):
        loadkit.load(tiny("mistral"), "inference-4bit", skip_modules=["layers.7.mlp.up_proj"])


def test_compute_dtype_is_the_load_dtype(tiny) -> None:
    """TRAPS 2 and 3."""
    model = loadkit.load(tiny("mistral"), load_in_4bit=True, dtype="float32").model
    layer = model.model.layers[0].mlp.up_proj
    assert layer.compute_dtype is torch.float32
    assert layer.weight.quant_state.quant_type == "nf4"


def test_a_quantized_checkpoint_loads_as_it_is_stored(tiny, tmp_path: Path) -> None:
    """TRAPS 5."""
    folder = make_prequantized(tmp_path / "nf4", tiny("mistral"))
    loaded = loadkit.load(folder, "qlora")
    assert loaded.report.measurements.modules["Linear4bit"] == 14
    assert loaded.plan.quantization.prequantized
    loaded.model(**batch(loaded)).loss.backward()
    with pytest.raises(loadkit.PlanError) as caught:
        loadkit.load(folder, load_in_4bit=True, bnb_4bit_quant_type="fp4")
    assert codes(caught) == ["quantized-already"]


def test_an_adapter_repository_brings_its_base(tiny, tmp_path: Path) -> None:
    base = tiny("mistral")
    adapter = make_adapter(tmp_path / "adapter", base)
    loaded = loadkit.load(adapter)
    inputs = batch(loaded)
    import peft

    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="bfloat16", device_map={"": "cpu"})
    theirs = peft.PeftModel.from_pretrained(plain, adapter, autocast_adapter_dtype=False)
    assert torch.equal(logits(loaded.model, inputs), logits(theirs, inputs))
    assert not any(p.requires_grad for p in loaded.model.parameters())
    resumed = loadkit.load(adapter, "lora")
    assert any(p.requires_grad for p in resumed.model.parameters())


def test_the_text_half_of_a_vision_language_checkpoint(tiny) -> None:
    """The language model alone gives the logits that the whole model gives for text."""
    for arch in ("gemma3", "llava"):
        whole, text = loadkit.load(tiny(arch)), loadkit.load(tiny(arch), task="text")
        assert text.plan.model_class.config_key == "text_config"
        assert "vision" not in " ".join(n for n, _ in text.model.named_parameters())
        ids = torch.arange(5, 17).reshape(1, -1)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        assert torch.equal(logits(whole.model, inputs), logits(text.model, inputs))
        assert [f for f in text.report.findings if f.severity == "error"] == []


def test_lora_leaves_the_vision_tower_alone(tiny) -> None:
    model = loadkit.load(tiny("gemma3"), "lora").model
    adapted = {name for name, _ in model.named_parameters() if "lora_" in name}
    assert adapted
    assert not any("vision_tower" in name for name in adapted)


def test_remote_code_needs_consent(tiny) -> None:
    with pytest.raises(loadkit.PlanError) as caught:
        loadkit.load(tiny("remote-code"))
    assert codes(caught) == ["remote-code-needed"]
    assert (
        loadkit.load(tiny("remote-code"), trust_remote_code=True).plan.model_class.implementation
        == "remote code"
    )


def test_eight_bit_layers_say_once_that_they_cast(tiny, caplog: pytest.LogCaptureFixture) -> None:
    """TRAPS 24: bitsandbytes logs a line for each product."""
    with caplog.at_level(0):
        loaded = loadkit.load(tiny("mistral"), "inference-8bit")
        for _ in range(2):
            loaded.model(input_ids=torch.arange(6, 18)[None])
    casts = [r for r in caplog.records if r.name.startswith("bitsandbytes") and "cast" in r.getMessage()]
    assert len(casts) <= 1


def test_a_pickle_beside_safetensors_is_not_opened(tiny, tmp_path: Path) -> None:
    """TRAPS 16: a second line of defence, for a file that comes after planning."""
    folder = copy(tiny("mistral"), tmp_path / "both")
    plan = loadkit.plan(folder)
    assert plan.kwargs["use_safetensors"] is True
    (folder / "model.safetensors").rename(folder / "hidden")
    (folder / "pytorch_model.bin").write_bytes(b"poison")
    with pytest.raises(loadkit.LoadError):
        loadkit.load(plan)


def test_pickles_need_consent(tiny, tmp_path: Path) -> None:
    folder = make_pickle_only(tmp_path / "pickle", tiny("mistral"))
    with pytest.raises(loadkit.PlanError) as caught:
        loadkit.load(folder)
    assert codes(caught) == ["pickle-weights"]
    loaded = loadkit.load(folder, allow_pickle=True)
    assert torch.equal(
        logits(loaded.model, batch(loaded)), logits(loadkit.load(tiny("mistral")).model, batch(loaded))
    )


def test_no_tokenizer_is_a_warning_and_a_demand_is_refused(tiny) -> None:
    folder = tiny("mistral", tokenizer=False)
    loaded = loadkit.load(folder)
    assert loaded.processing_class is None
    assert [w.code for w in loaded.plan.warnings] == ["no-processing-class"]
    with pytest.raises(loadkit.PlanError) as caught:
        loadkit.plan(folder, processing_class="tokenizer")
    assert codes(caught) == ["no-tokenizer"]


def test_a_processor_comes_with_a_vision_language_model(tiny) -> None:
    loaded = loadkit.load(tiny("gemma3"), "lora", processing_class="processor")
    assert loaded.tokenizer is loaded.processing_class.tokenizer
    assert torch.isfinite(loaded.model(**images_and_text(loaded.processing_class)).loss)


@pytest.mark.parametrize("profile", ["full", "lora"])
def test_what_is_saved_loads_again(tiny, tmp_path: Path, profile: str) -> None:
    loaded = loadkit.load(tiny("mistral"), profile)
    inputs = batch(loaded)
    folder = loaded.save_pretrained(tmp_path / "saved")
    again = loadkit.load(folder)
    assert torch.equal(logits(loaded.model, inputs), logits(again.model, inputs))
    assert again.tokenizer.get_vocab() == loaded.tokenizer.get_vocab()


class OneDtype:
    """A plain third-party plugin."""

    @loadkit.hookimpl
    def loadkit_choose_dtype(self, context: loadkit.Context) -> loadkit.Claim[str] | None:
        if context.checkpoint.model_type != "mistral":
            return None
        return loadkit.Claim(value="float32", because="this family overflows in 16 bits")


def test_a_third_party_plugin_changes_one_decision(tiny) -> None:
    manager = loadkit.PluginManager()
    manager.register(OneDtype(), "one-dtype")
    loaded = loadkit.load(tiny("mistral"), plugin_manager=manager)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    decision = loaded.plan.why("dtype")
    assert (decision.plugin, decision.because) == ("one-dtype", "this family overflows in 16 bits")
    assert [(o.plugin, o.value) for o in decision.instead_of] == [("dtype", "bfloat16")]
    untouched = loadkit.plan(tiny("llama"), plugin_manager=manager).why("dtype")
    assert untouched.plugin == "dtype"


class LeavesTheHeadRandom:
    """A loader that does the wrong thing, for the audit to catch."""

    @loadkit.hookimpl
    def loadkit_load_model(self, plan: loadkit.Plan) -> Any:
        config = transformers.AutoConfig.from_pretrained(
            plan.checkpoint.location, attn_implementation="eager"
        )
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def test_the_audit_catches_a_loader_that_does_something_else(tiny) -> None:
    manager = loadkit.PluginManager()
    manager.register(LeavesTheHeadRandom(), "wrong")
    with pytest.raises(loadkit.AuditError) as caught:
        loadkit.load(tiny("mistral"), "inference-4bit", plugin_manager=manager)
    assert set(codes(caught)) >= {"attention", "dtype", "not-quantized"}


def test_packed_weights_may_be_stored_in_a_dtype_of_their_own(tiny) -> None:
    loaded = loadkit.load(
        tiny("mistral"), load_in_4bit=True, dtype="float32", bnb_4bit_quant_storage="bfloat16"
    )
    assert loaded.report.findings == ()

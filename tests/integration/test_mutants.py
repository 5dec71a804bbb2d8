"""Loaders and phases that do something wrong, each caught by the check that is for it: the audit isn't a rubber stamp."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from integration.comparing import plain

import loadkit

Tiny = Callable[..., Path]
Wrong = Callable[[Any], Any]


def errors(caught: loadkit.AuditError) -> set[str]:
    return {f.code for f in caught.findings if f.severity == "error"}


def audited(folder: Path, profile: str | None, plugin: object, **options: Any) -> set[str]:
    """Codes of the errors that the audit finds where this plugin takes part."""
    manager = loadkit.PluginManager(environ={})
    manager.register(plugin, "aaa-mutant")  # asked first
    with pytest.raises(loadkit.AuditError) as caught:
        loadkit.load(folder, profile, plugin_manager=manager, **options)
    assert all(f.message and f.plugin for f in caught.value.findings)
    return errors(caught.value)


class Loader:
    """Loads as plain transformers would, and then does something to the model."""

    def __init__(self, wrong: Wrong) -> None:
        self.wrong = wrong

    @loadkit.hookimpl
    def loadkit_load_model(self, plan: loadkit.Plan) -> Any:
        model = plain(plan)
        if plan.use_cache is not None:
            for config in (model.config, model.config.get_text_config()):
                config.use_cache = plan.use_cache
        result = self.wrong(model)
        return model if result is None else result


def changed(name: str, by: Callable[[torch.Tensor], Any]) -> Wrong:
    def wrong(model: Any) -> None:
        with torch.no_grad():
            by(model.get_parameter(name))

    return wrong


def unquantized(model: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        model.name_or_path, dtype=torch.bfloat16, use_cache=False
    )


def other_type(model: Any) -> Any:
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_pretrained(
        model.name_or_path, dtype=torch.bfloat16, use_cache=False, quantization_config=config
    )


def on_meta(model: Any) -> None:
    model.model.norm.to("meta")


def doubled_rotary(model: Any) -> None:
    model.model.rotary_emb.inv_freq.mul_(2)


def other_attention(model: Any) -> None:
    model.set_attn_implementation("eager")


def attention_of_its_own(model: Any) -> None:
    config = type(model.config)(**model.config.to_dict())
    config._attn_implementation = "eager"
    for layer in model.model.layers:
        layer.self_attn.config = config


def cache_on(model: Any) -> None:
    model.config.use_cache = True


MUTANTS: dict[str, tuple[str | None, Wrong, set[str]]] = {
    "a random output head": (None, changed("lm_head.weight", lambda p: p.normal_()), {"other-values"}),
    "one weight that isn't the file's": (None, changed("lm_head.weight", lambda p: p[0, 0].add_(1)), {"other-values"}),
    "an infinite norm": (None, changed("model.norm.weight", lambda p: p.fill_(float("inf"))), {"not-finite", "other-values"}),
    "another dtype": (None, lambda model: model.float(), {"dtype"}),
    "not quantized": ("qlora", unquantized, {"not-quantized"}),
    "fp4 for nf4": ("qlora", other_type, {"4bit-setting"}),
    "quantized codes that aren't the file's": (
        "qlora", changed("model.layers.0.mlp.down_proj.weight", lambda p: p.data.fill_(7)), {"other-values"},
    ),
    "8-bit codes that aren't the file's": (
        "qlora-8bit", changed("model.layers.0.mlp.down_proj.weight", lambda p: p.data.fill_(7)), {"other-values"},
    ),
    "another attention": (None, other_attention, {"attention"}),
    "attention modules with a config of their own": (None, attention_of_its_own, {"attention-called"}),
    "the cache on while training": ("full", cache_on, {"use-cache"}),
    "left on meta": (None, on_meta, {"on-meta", "device"}),
    "corrupted rotary frequencies": (None, doubled_rotary, {"computed-buffers"}),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_loader_is_caught_by_the_check_that_is_for_it(tiny: Tiny, name: str) -> None:
    profile, wrong, codes = MUTANTS[name]
    assert audited(tiny("mistral"), profile, Loader(wrong)) == codes


def test_the_right_loader_passes(tiny: Tiny) -> None:
    for profile in (None, "full", "qlora", "qlora-8bit"):
        manager = loadkit.PluginManager(environ={})
        manager.register(Loader(lambda model: None), "right")
        assert loadkit.load(tiny("mistral"), profile, plugin_manager=manager).report.findings == ()


# --- Phases that do something wrong -------------------------------------------------------------------------------------


def phase(name: str, wrong: Callable[..., Any]) -> object:
    """A plugin that carries out one phase, wrongly."""

    def carried_out(self: object, plan: Any, model: Any) -> Any:
        result = wrong(plan, model)
        return model if result is None else result

    return type("Mutant", (), {name: loadkit.hookimpl(carried_out, specname=name)})()


def adapted(plan: Any, model: Any, dtype: torch.dtype = torch.bfloat16) -> Any:
    import peft

    result = peft.get_peft_model(model, peft.LoraConfig(**plan.adapter.options), autocast_adapter_dtype=False)
    for parameter in result.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return result


def adapter_in_float32(plan: Any, model: Any) -> Any:
    return adapted(plan, model, torch.float32)


def frozen_adapter(plan: Any, model: Any) -> Any:
    return adapted(plan, model).requires_grad_(False)


def thawed_base(plan: Any, model: Any) -> Any:
    result = adapted(plan, model)
    result.get_base_model().get_input_embeddings().weight.requires_grad_(True)
    return result


PHASES: dict[str, tuple[str, str, Callable[..., Any], set[str]]] = {
    "the adapter is forgotten": ("lora", "loadkit_attach_adapters", lambda plan, model: None, {"adapter"}),
    "the adapter is frozen": ("lora", "loadkit_attach_adapters", frozen_adapter, {"trainable"}),
    "the base trains too": ("lora", "loadkit_attach_adapters", thawed_base, {"trainable"}),
    "the adapter is in float32": ("lora", "loadkit_attach_adapters", adapter_in_float32, {"adapter-dtype"}),
    "checkpointing is left off": ("full", "loadkit_checkpoint_activations", lambda plan, model: None, {"gradient-checkpointing"}),
    "embeddings are cut": (
        "full", "loadkit_fit_vocabulary", lambda plan, model: model.resize_token_embeddings(100) and None,
        {"vocabulary-size"},
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", PHASES)
def test_a_wrong_phase_is_caught_by_the_check_that_is_for_it(tiny: Tiny, name: str) -> None:
    profile, hook, wrong, codes = PHASES[name]
    assert audited(tiny("mistral"), profile, phase(hook, wrong)) == codes


def test_special_tokens_that_disagree_are_caught(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("mistral"), tmp_path / "m"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": 9}))
    assert audited(folder, "full", phase("loadkit_fit_vocabulary", lambda plan, model: None)) == {"eos-token"}
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "pad_token": "</s>"}))
    manager = loadkit.PluginManager(environ={"LOADKIT_DISABLE": "tokens"})
    with pytest.raises(loadkit.AuditError) as caught:
        loadkit.load(folder, "full", plugin_manager=manager)
    assert errors(caught.value) == {"pad-is-eos"}


# --- Strict weights ------------------------------------------------------------------------------------------------------


def test_tensors_without_a_place_are_an_error_unless_allowed(tiny: Tiny, tmp_path: Path) -> None:
    """TRAPS 17, 26: a class that loads half of a checkpoint says so in a warning at most."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny("mistral"), tmp_path / "more"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.extra.weight"] = torch.ones(2)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(loadkit.AuditError, match=r"no place in the model: model\.layers\.0\.extra") as caught:
        loadkit.load(folder)
    assert errors(caught.value) == {"unexpected-weights"}
    assert loadkit.load(folder, allow_weights=[r"\.extra\."]).report.findings == ()
    with pytest.warns(loadkit.LoadkitWarning, match="extra"):
        loadkit.load(folder, strict=False)
    with pytest.raises(loadkit.PlanError, match="bad-pattern"):
        loadkit.plan(folder, allow_weights=["("])


def test_what_is_meant_to_be_new_is_allowed(tiny: Tiny, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny("mistral"), tmp_path / "less"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(loadkit.AuditError, match="allow_weights"):
        loadkit.load(folder)
    assert loadkit.load(folder, allow_weights=["lm_head"]).report.findings == ()


def test_reports_and_plans_show_in_a_notebook(tiny: Tiny) -> None:
    loaded = loadkit.load(tiny("mistral"), "qlora")
    for shown, words in (
        (loaded.report, "what was planned is what was loaded"),
        (loaded.plan, "architecture"),
    ):
        text = shown._repr_html_()
        assert text.startswith("<pre")
        assert words in text
        assert "<script" not in text

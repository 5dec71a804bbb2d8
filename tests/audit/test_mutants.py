"""Loaders and phases that do something wrong, each caught by the check that is for it: the audit isn't a
rubber stamp."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from model_outputs import plain

import loadkit
from loadkit.testing.checkpoints import make_adapter

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


def not_nested(model: Any) -> Any:
    return four_bit(model, bnb_4bit_use_double_quant=False)


def stored_otherwise(model: Any) -> Any:
    return four_bit(model, bnb_4bit_use_double_quant=True, bnb_4bit_quant_storage="bfloat16")


def four_bit(model: Any, **settings: Any) -> Any:
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16, **settings
    )
    return transformers.AutoModelForCausalLM.from_pretrained(
        model.name_or_path, dtype=torch.bfloat16, use_cache=False, quantization_config=config
    )


def computes_in_float32(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.float32
            module.compute_type_is_set = True  # bitsandbytes takes the first input's dtype otherwise


def infinite_scale(model: Any) -> None:
    weight = model.model.layers[0].mlp.down_proj.weight
    scales = weight.SCB if hasattr(weight, "SCB") else weight.quant_state.state2.absmax
    scales[0] = float("inf")


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
    "fp4 for nf4": ("qlora", other_type, {"4bit-setting", "quantization-config"}),
    "scales that aren't quantized": ("qlora", not_nested, {"4bit-setting", "quantization-config"}),
    "4 bits stored in bfloat16": ("qlora", stored_otherwise, {"4bit-setting", "quantization-config"}),
    "computing in float32": ("qlora", computes_in_float32, {"4bit-setting"}),
    "quantized codes that aren't the file's": (
        "qlora", changed("model.layers.0.mlp.down_proj.weight", lambda p: p.data.fill_(7)), {"other-values"},
    ),
    "8-bit codes that aren't the file's": (
        "qlora-8bit", changed("model.layers.0.mlp.down_proj.weight", lambda p: p.data.fill_(7)), {"other-values"},
    ),
    "an infinite scale": ("qlora-8bit", infinite_scale, {"scales-not-finite", "other-values"}),
    "an infinite 4-bit scale": ("inference-4bit", infinite_scale, {"scales-not-finite"}),
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


# --- Phases that do something wrong


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


def attached(plan: Any, model: Any) -> Any:
    """An existing adapter as PEFT attaches it."""
    import peft

    return peft.PeftModel.from_pretrained(
        model, plan.adapter.source, is_trainable=plan.adapter.trainable, autocast_adapter_dtype=False
    )


def forgotten_tensor(plan: Any, model: Any) -> Any:
    result = attached(plan, model)
    name = next(n for n, _ in result.named_parameters() if "lora_B" in n)
    with torch.no_grad():
        result.get_parameter(name).zero_()
    return result


PHASES: dict[str, tuple[str, str, Callable[..., Any], set[str]]] = {
    "the adapter is forgotten": ("lora", "loadkit_attach_adapters", lambda plan, model: None, {"adapter"}),
    "the adapter is frozen": ("lora", "loadkit_attach_adapters", frozen_adapter, {"trainable", "nothing-trains"}),
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


def several(plan: Any, model: Any) -> Any:
    """Both adapters, with the wrong one on."""
    import peft

    first, second = plan.adapters.members
    result = peft.PeftModel.from_pretrained(
        model, first.source, adapter_name=first.name, autocast_adapter_dtype=False
    )
    result.load_adapter(second.source, second.name, autocast_adapter_dtype=False)
    result.set_adapter(next(a.name for a in plan.adapters.members if a.name != plan.adapters.active))
    return result.requires_grad_(False)


def test_an_existing_adapter_is_held_against_its_file(tiny: Tiny, tmp_path: Path) -> None:
    """TRAPS 20: a key that is missing leaves zeros or noise where it was, with a warning at most."""
    adapter = make_adapter(tmp_path / "adapter", tiny("mistral"))
    assert audited(adapter, None, phase("loadkit_attach_adapters", forgotten_tensor)) == {"adapter-values"}
    assert (
        loadkit.load(adapter, plugin_manager=with_phase("loadkit_attach_adapters", attached)).report.findings
        == ()
    )
    both = {"mine": str(adapter), "yours": str(make_adapter(tmp_path / "other", tiny("mistral"), seed=1))}
    assert audited(tiny("mistral"), None, phase("loadkit_attach_adapters", several), adapter=both) == {
        "active-adapter"
    }


def with_phase(name: str, carried_out: Callable[..., Any]) -> loadkit.PluginManager:
    manager = loadkit.PluginManager(environ={})
    manager.register(phase(name, carried_out), "aaa")
    return manager


@pytest.mark.filterwarnings("ignore:Merge lora module to 4-bit linear:UserWarning")
def test_a_base_that_stays_quantized_is_caught(tiny: Tiny, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", tiny("mistral"))
    options = {"load_in_4bit": True, "merge_adapter": True, "dequantize": True}
    assert "not-dequantized" in audited(
        adapter, None, phase("loadkit_dequantize", lambda plan, model: None), **options
    )


def test_the_mode_and_a_config_that_lies(tiny: Tiny) -> None:
    def stays_small(plan: Any, model: Any) -> None:
        model.config.vocab_size = 7

    assert audited(tiny("mistral"), "full", phase("loadkit_fit_vocabulary", stays_small)) == {
        "vocab-size-config"
    }

    class Late:
        """Changes the mode when everything is done, which only a plugin's own audit comes late enough for."""

        @loadkit.hookimpl
        def loadkit_audit_model(self, model: Any) -> list[loadkit.Finding]:
            model.eval()
            return []

    assert audited(tiny("mistral"), "full", Late()) == {"training-mode"}

    class Freezing(Late):
        @loadkit.hookimpl
        def loadkit_audit_model(self, model: Any) -> list[loadkit.Finding]:
            model.requires_grad_(False)
            return []

    assert audited(tiny("mistral"), "full", Freezing()) == {"nothing-trains"}


def test_a_tower_with_another_attention_is_caught(tiny: Tiny) -> None:
    """TRAPS 13: sub-configs don't follow."""

    class Tower(Loader):
        @loadkit.hookimpl
        def loadkit_load_model(self, plan: loadkit.Plan) -> Any:
            model = plain(plan)
            model.config.vision_config._attn_implementation = "eager"
            return model

    assert "attention" in audited(tiny("gemma3"), None, Tower(lambda model: None))


def test_a_part_that_trains_though_it_was_to_be_frozen_is_caught(tiny: Tiny) -> None:
    class Melting:
        @loadkit.hookimpl
        def loadkit_freeze(self, plan: loadkit.Plan, model: Any) -> Any:
            return model

    assert audited(tiny("gemma3"), "full", Melting(), frozen_parts=["towers"]) == {"frozen"}


def test_what_the_loader_could_not_convert_is_an_error(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from loadkit.loading import from_pretrained

    real = from_pretrained.load_model

    def failing(*args: Any) -> Any:
        found = real(*args)
        return found._replace(loading=loadkit.Loading(errors=("experts: two of eight are missing",)))

    monkeypatch.setattr(from_pretrained, "load_model", failing)
    with pytest.raises(loadkit.AuditError, match="two of eight") as caught:
        loadkit.load(tiny("mistral"))
    assert errors(caught.value) == {"conversion-errors"}


def test_every_check_has_a_mutant() -> None:
    """Codes of findings that fail a load, read off the source, against those that some mutant here is caught
    by."""
    import loadkit_plugins

    caught = set().union(
        *(codes for _, _, codes in MUTANTS.values()), *(codes for *_, codes in PHASES.values())
    )
    beside = ("test_read_back.py", "test_packed_modules.py", "test_packed_mutants.py")
    files = (Path(__file__), *(Path(__file__).parent / name for name in beside))
    here = "".join(file.read_text(encoding="utf-8") for file in files)
    elsewhere = {
        "conversion-errors",
        "missing-weights",
        "mismatched-weights",
        "other-method",
        "stored-setting",
        "not-initialised",
    }  # test_load.py, test_weights below, prequantized/test_audit.py, test_fresh_weights.py
    codes = set()
    sources = [Path(loadkit_plugins.__file__).parent, Path(loadkit.__file__).parent / "audit"]
    for path in (file for folder in sources for file in sorted(folder.rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Finding", "_finding"):
                given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                place = 2 if getattr(node.func, "id", "") == "Finding" else 0  # after a stage and a plugin
                first = getattr(node.args[place], "value", None) if node.args[place:] else None
                code = given.get("code") or first
                if given.get("severity", "error") in ("error", None) and isinstance(code, str):
                    codes.add(code)
            elif isinstance(node, ast.Call):  # a reading
                given_codes = [k.value for k in node.keywords if k.arg == "code"]
                codes |= {c.value for each in given_codes for c in ast.walk(each) if _is_text(c)}
    assert len(codes) > 20
    assert {code for code in codes - caught - elsewhere if f'"{code}"' not in here} == set()


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


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


# --- Strict weights


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
        assert text.startswith("<style>")
        assert words in text
        assert "<script" not in text

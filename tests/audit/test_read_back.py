"""Asked, planned, loaded: demands are read from the model, and one that loading drops is found."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import loadkit
from loadkit.audit.audit import audit, audit_settings
from loadkit.hooks.manager import default_manager
from loadkit.schema.plan_text import asked_table
from loadkit.schema.readings import alike
from loadkit.schema.rendering import plain_text

Tiny = Callable[..., Path]
Options = Mapping[str, Any]

QUANTIZED: Options = {"load_in_4bit": True}
CLASSIFIER: Options = {"task": "sequence-classification", "num_labels": 2}

DEMANDS: dict[str, list[tuple[str, Options]]] = {
    "adapter": [("", {"adapter": True}), ("lora", {"adapter": False})],
    "adapter_dtype": [("lora", {"adapter_dtype": "float32"})],
    "additional_special_tokens": [("", {"additional_special_tokens": ["<x>"]})],
    "attn_implementation": [("", {"attn_implementation": "eager"})],
    "bnb_4bit_compute_dtype": [("qlora", {"bnb_4bit_compute_dtype": "float32"})],
    "bnb_4bit_quant_storage": [("qlora", {"bnb_4bit_quant_storage": "bfloat16"})],
    "bnb_4bit_quant_type": [("qlora", {"bnb_4bit_quant_type": "fp4"})],
    "bnb_4bit_use_double_quant": [("qlora", {"bnb_4bit_use_double_quant": False})],
    "bos_token": [("", {"bos_token": "<unk>"})],
    "chat_template": [("", {"chat_template": "{{ messages }}"})],
    "dtype": [("", {"dtype": "float32"}), ("lora", {"dtype": "fp16"})],
    "float32_norms": [("qlora", {"float32_norms": False})],
    "eos_token": [("", {"eos_token": "<unk>"})],
    "gradient_checkpointing": [("lora", {"gradient_checkpointing": False})],
    "gradient_checkpointing_kwargs": [("lora", {"gradient_checkpointing_kwargs": {"use_reentrant": True}})],
    "init_lora_weights": [("lora", {"init_lora_weights": "gaussian"})],
    "llm_int8_has_fp16_weight": [("qlora-8bit", {"llm_int8_has_fp16_weight": True})],
    "llm_int8_threshold": [("qlora-8bit", {"llm_int8_threshold": 4.5})],
    "load_in_4bit": [("", QUANTIZED)],
    "load_in_8bit": [("", {"load_in_8bit": True})],
    "lora_alpha": [("lora", {"lora_alpha": 5}), ("qlora", {"lora_alpha": 7.5})],
    "lora_dropout": [("lora", {"lora_dropout": 0.25})],
    "lora_exclude_modules": [("lora", {"lora_exclude_modules": ["q_proj"]})],
    "lora_modules_to_save": [("lora", {"lora_modules_to_save": ["lm_head"]})],
    "lora_r": [("lora", {"lora_r": 3}), ("qlora", {"lora_r": 64})],
    "lora_target_modules": [
        ("lora", {"lora_target_modules": ["q_proj"]}),
        ("lora", {"lora_target_modules": r".*\.0\..*v_proj"}),
    ],
    "merge_adapter": [("lora", {"merge_adapter": True, "training": False})],
    "model_kwargs": [
        ("", {"model_kwargs": {"attention_dropout": 0.5}}),
        ("", {"model_kwargs": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}}),
    ],
    "num_labels": [("classifier", {"num_labels": 5})],
    "pad_token": [("", {"pad_token": "</s>"})],
    "padding_side": [("", {"padding_side": "left"})],
    "peft_config": [
        ("lora", {"peft_config": {"r": 3, "target_modules": ["v_proj"]}}),
        ("lora", {"peft_config": peft.LoHaConfig(r=3, target_modules=["v_proj"])}),
    ],
    "processing_class": [("", {"processing_class": "none"})],
    "quantization_config": [
        ("qlora", {"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}}),
        ("", {"quantization_config": {"load_in_8bit": True, "llm_int8_threshold": 5.0}}),
    ],
    "skip_modules": [("qlora", {"skip_modules": ["q_proj"]})],
    "task": [("", {"task": "sequence-classification"})],
    "train_layers": [("full", {"train_layers": {"count": 1}})],
    "train_only": [("full", {"train_only": ["model.layers.0"]})],
    "trainable_dtype": [("full", {"trainable_dtype": "float32"})],
    "training": [("", {"training": True}), ("lora", {"training": False})],
    "use_cache": [("full", {"use_cache": True, "gradient_checkpointing": False})],
    "unk_token": [("", {"unk_token": "</s>"})],
    "vocabulary_to_multiple_of": [("", {"vocabulary_to_multiple_of": 1000})],
    "use_dora": [("lora", {"use_dora": True})],
    "use_rslora": [("lora", {"use_rslora": True})],
}  # fmt: skip
"""Option to demands that differ from what its profile loads; "classifier" is a model of that kind."""

SHOWN_ELSEWHERE: dict[str, str] = {
    "active_adapter": "test_mutants: of two existing adapters",
    "adapter_trainable": "test_mutants: of an existing adapter",
    "dequantize": "test_mutants: a base that stays quantized",
    "dequantize_stored": "tests/plugins/prequantized: stored formats that are turned back",
    "device_map": "test_device_map_is_read",
    "frozen_parts": "test_mutants: of a multimodal model",
    "lora_experts": "test_fused_experts",
    "lora_target_parameters": "test_fused_experts",
    "model_class": "test_mutants: another class",
    "lora_vision": "test_towers_are_left_alone",
    "new_adapter": "tests/loading: over an existing adapter",
    "random_weights": "tests/loading/test_fresh_weights.py: told apart from the files",
    "revision": "test_the_commit_is_read",
    "tokenizer_backend": "tests/plugins/test_mistral_common.py",
    "tp_plan": "tests/ranks: several processes",
    "tp_size": "tests/ranks: several processes",
    "use_fast": "tests/plugins: of a processor",
}
"""Options that a single tiny model can't show, and where they are tested."""

NOT_IN_A_MODEL: dict[str, str] = {
    "adapter_revision": "which files are read",
    "allow_pickle": "which files are read",
    "allow_weights": "what the audit lets pass",
    "cache_dir": "where files are",
    "chat": "what the plan warns of",
    "check_adapter_base": "what the plan refuses",
    "check_memory": "what the plan refuses",
    "cpu_kernels": "what makes the load faster, with the same result",
    "gguf_file": "which files are read",
    "llm_int8_enable_fp32_cpu_offload": "what may lie on a CPU beside a GPU",
    "local_files_only": "where files are",
    "max_memory": "what limits a device map",
    "optim": "the estimate of memory",
    "trainer_fields": "what the trainer carries out, for plan.requested",
    "pad_to_multiple_of": "how far embeddings grow when tokens are new: tests/loading",
    "quantized_cache": "what makes the load faster, with the same result",
    "tokenizer": "which files are read",
    "trust_remote_code": "what code may run",
    "verify": "how much the audit compares",
}
"""Options of which nothing can be read from a model."""


def test_every_option_is_read_back_or_says_why_not() -> None:
    """An option that is added without a reading fails here."""
    own = {info.name for info in default_manager().plugins if info.distribution in ("loadkit", "")}
    declared = {
        option.name
        for plugin, option in default_manager().options.found.values()
        if plugin in own or plugin == "loadkit"
    }
    assert declared == DEMANDS.keys() | SHOWN_ELSEWHERE.keys() | NOT_IN_A_MODEL.keys()
    assert not DEMANDS.keys() & (SHOWN_ELSEWHERE.keys() | NOT_IN_A_MODEL.keys())


@pytest.fixture(scope="module")
def loaded(tiny: Tiny) -> Callable[[str], loadkit.Loaded]:
    """A maker of models as their profile alone loads them, each loaded once."""
    made: dict[str, loadkit.Loaded] = {}

    def make(profile: str) -> loadkit.Loaded:
        if profile not in made:
            more = CLASSIFIER if profile == "classifier" else {}
            made[profile] = loadkit.load(tiny("mistral"), named(profile), **more)
            assert not [f for f in made[profile].report.findings if f.severity == "error"]
        return made[profile]

    return make


def named(profile: str) -> str | None:
    return None if profile in ("", "classifier") else profile


def planned(tiny: Tiny, profile: str, options: Options) -> loadkit.Plan:
    return loadkit.plan(
        tiny("mistral"), named(profile), **{**(CLASSIFIER if profile == "classifier" else {}), **options}
    )


def found(plan: loadkit.Plan, loaded: loadkit.Loaded) -> list[loadkit.Finding]:
    """Errors that the audit of a model against a plan finds: by its settings, else by everything."""
    model, processing_class, manager = loaded.model, loaded.processing_class, default_manager()
    findings, _ = audit_settings(plan, model, processing_class, manager)
    findings = findings or audit(plan, model, loaded.report.loading, processing_class, manager)
    return [finding for finding in findings if finding.severity == "error"]


CASES = [(name, profile, options) for name, demands in DEMANDS.items() for profile, options in demands]


@pytest.mark.parametrize(("name", "profile", "options"), CASES, ids=[f"{p}-{n}" for n, p, _ in CASES])
def test_a_demand_that_loading_drops_is_found(
    tiny: Tiny, loaded: Callable[[str], loadkit.Loaded], name: str, profile: str, options: Options
) -> None:
    """Mutants: the plan has the demand, and the model is loaded as if nobody had asked."""
    errors = found(planned(tiny, profile, options), loaded(profile))
    assert errors
    assert all(error.planned and error.effective != error.planned for error in errors)


SAMPLE = {
    "lora_r",
    "load_in_8bit",
    "llm_int8_threshold",
    "skip_modules",
    "model_kwargs",
    "peft_config",
    "eos_token",
}


@pytest.mark.parametrize(
    ("name", "profile", "options"),
    [pytest.param(*case, marks=() if case[0] in SAMPLE else pytest.mark.slow) for case in CASES],
    ids=[f"{p}-{n}" for n, p, _ in CASES],
)
def test_a_demand_is_in_the_model(tiny: Tiny, name: str, profile: str, options: Options) -> None:
    """The audit passes, and what it read is what was asked."""
    options = {**(CLASSIFIER if profile == "classifier" else {}), **options}
    loaded = loadkit.load(tiny("mistral"), named(profile), **options)
    assert not [f for f in loaded.report.findings if f.severity == "error"]
    asked = [each for each in loaded.plan.requested if each.name.split(".")[0] == name and each.by == "you"]
    assert {each.disposition for each in asked} <= {"decided", "passed on"}
    for each in asked:
        for reading in loaded.report.readings:
            if each.name in reading.names and reading.verbatim:
                assert alike(each.value, reading.effective), (each, reading)


def test_the_way_of_a_demand_can_be_read(tiny: Tiny, loaded: Callable[[str], loadkit.Loaded]) -> None:
    """Asked, planned, loaded: printed side by side, in the report's JSON and in the manifest."""
    model = loaded("lora")
    text = plain_text(asked_table(model.plan, model.report.readings))
    assert "lora_r=16" in text
    assert "planned 16, loaded 16 (peft_config['default'].r)" in text
    assert "planned 16, loaded 16 (r of the layers of 'default')" in text
    read = {reading.where: reading.effective for reading in model.report.readings}
    assert read["peft_config['default'].r"] == 16
    assert any(each["where"] == "config.dtype" for each in model.report.to_dict()["readings"])
    manifest = model.manifest()
    assert loadkit.Manifest.from_json(manifest.to_json()).readings == model.report.readings


def test_a_plan_that_loses_a_demand_is_found(tiny: Tiny) -> None:
    """The plan says another number than was asked, and the model has the plan's."""

    class Losing:
        @loadkit.hookimpl
        def loadkit_attach_adapters(self, plan: loadkit.Plan, model: Any, adapters: loadkit.Adapters) -> Any:
            plan.adapter.options["r"] = 5
            return None

    manager = loadkit.PluginManager(environ={})
    manager.register(Losing(), "aaa-losing")
    with pytest.raises(loadkit.AuditError, match="you gave lora_r=3") as caught:
        loadkit.load(tiny("mistral"), "lora", lora_r=3, plugin_manager=manager)
    assert {f.code for f in caught.value.findings} == {"not-as-asked"}


# --- Fields of PEFT's configs


def configs() -> dict[str, peft.PeftConfig]:
    """A config of every kind that a tiny model takes, with some fields that aren't PEFT's defaults."""
    targets = ["q_proj", "v_proj"]
    return {
        "adalora": peft.AdaLoraConfig(target_modules=targets, total_step=10, init_r=4),
        "boft": peft.BOFTConfig(target_modules=targets, boft_block_size=4),
        "fourierft": peft.FourierFTConfig(target_modules=targets, n_frequency=10, scaling=3.0),
        "hra": peft.HRAConfig(target_modules=targets, r=4, apply_GS=True),
        "ia3": peft.IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
        "ln": peft.LNTuningConfig(target_modules=["input_layernorm"]),
        "loha": peft.LoHaConfig(target_modules=targets, r=4, alpha=3, module_dropout=0.1),
        "lokr": peft.LoKrConfig(target_modules=targets, r=4, rank_dropout=0.1),
        "lora": peft.LoraConfig(
            target_modules=targets, r=4, lora_alpha=3.5, lora_dropout=0.1, use_rslora=True, bias="all",
            modules_to_save=["lm_head"], layers_to_transform=[1], trainable_token_indices=[3, 4],
        ),
        "oft": peft.OFTConfig(target_modules=targets, oft_block_size=4),
        "oft-r": peft.OFTConfig(target_modules=targets, r=4, oft_block_size=0),
        "p-tuning": peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_hidden_size=32),
        "patterns": peft.LoraConfig(target_modules=targets, rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 9}),
        "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
        "vblora": peft.VBLoRAConfig(target_modules=targets, num_vectors=16, vector_length=8),
        "vera": peft.VeraConfig(target_modules=targets, vera_dropout=0.1),
    }  # fmt: skip


OTHER: Mapping[type, Callable[[Any], Any]] = {
    bool: lambda value: not value,
    int: lambda value: value + 1,
    float: lambda value: value + 0.5,
    str: lambda value: f"{value}-other",
    list: lambda value: [*value[1:], "other"],
    set: lambda value: {*sorted(value)[1:], "other"},
    dict: lambda value: {**dict.fromkeys(value, "other"), "another": 1},
}
"""Another value, by the type of a field's."""

LEFT_TO_PEFT = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
    "fan_in_fan_out",
}


@pytest.mark.filterwarnings(
    "ignore:Unsupported layer type:UserWarning",
    "ignore:Failed to load the CUDA:UserWarning",
    "ignore:Setting boft_n_butterfly:UserWarning",
)
@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=() if k in ("lora", "ia3", "prompt") else pytest.mark.slow) for k in configs()],
)
def test_every_field_of_a_peft_config(tiny: Tiny, kind: str) -> None:
    """Each field that is given is what PEFT has; and a field that PEFT has otherwise is found."""
    config = configs()[kind]
    model = loadkit.load(tiny("mistral"), training=True, peft_config=config)
    assert not [f for f in model.report.findings if f.severity == "error"]
    held = model.model.peft_config["default"]
    given = {name for name, value in config.to_dict().items() if value not in (None, {}, [])} - LEFT_TO_PEFT
    tried = 0
    for name in sorted(given - {"peft_type", "task_type", "lora_dropout"}):
        value = getattr(held, name)
        if type(value) not in OTHER:
            continue
        setattr(held, name, OTHER[type(value)](copy.copy(value)))
        errors = found(model.plan, model)
        setattr(held, name, value)
        assert any(f"peft_config.{name}=" in error.message for error in errors), (name, errors)
        tried += 1
    assert tried >= 1
    assert not found(model.plan, model)


LAYERS: dict[str, Callable[[Any], Any]] = {
    "r": lambda layer: layer.r.update(default=9),
    "lora_alpha": lambda layer: layer.lora_alpha.update(default=9),
    "lora_dropout": lambda layer: layer.lora_dropout.update({"default": torch.nn.Dropout(0.9)}),
    "use_rslora": lambda layer: layer.scaling.update(default=9.0),
}
"""Field to a fault in one layer alone."""


@pytest.mark.parametrize("field", LAYERS)
def test_one_layer_that_differs_is_found(
    loaded: Callable[[str], loadkit.Loaded], tiny: Tiny, field: str
) -> None:
    options = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "use_rslora": False}
    plan, model = planned(tiny, "lora", options), loaded("lora")
    assert not found(plan, model)
    layer = model.model.get_submodule("base_model.model.model.layers.1.mlp.up_proj")
    before = {name: dict(getattr(layer, name)) for name in ("r", "lora_alpha", "lora_dropout", "scaling")}
    LAYERS[field](layer)
    errors = found(plan, model)
    for name, values in before.items():
        getattr(layer, name).update(values)
    (error,) = errors
    assert f"you gave {'lora_r' if field == 'r' else field}=" in error.message
    assert error.code == "not-as-planned"


def test_a_layer_that_isnt_adapted_is_found(tiny: Tiny) -> None:
    """A target list that PEFT met in all layers but one."""
    model = loadkit.load(tiny("mistral"), "lora", lora_target_modules=["q_proj"])
    attention = model.model.get_submodule("base_model.model.model.layers.1.self_attn")
    attention.q_proj = attention.q_proj.base_layer
    (error,) = found(model.plan, model)
    assert "layers.1.self_attn.q_proj" in error.planned
    assert "layers.1" not in error.effective


def test_a_long_list_of_targets(tiny: Tiny) -> None:
    """PEFT shortens lists of twenty and more names in its config; the layers are those that were asked."""
    ends = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ]
    paths = [f"model.layers.{layer}.{end}" for layer in range(4) for end in ends]
    model = loadkit.load(tiny("mistral", num_hidden_layers=4), "lora", lora_target_modules=paths)
    assert not model.report.findings
    attention = model.model.get_submodule("base_model.model.model.layers.3.self_attn")
    attention.q_proj = attention.q_proj.base_layer
    assert "lora_target_modules" in found(model.plan, model)[0].message


def test_biases_train_where_they_are_asked_to(tiny: Tiny) -> None:
    """They count as the adapter's own, and one that stays frozen is found."""
    for bias in ("all", "lora_only"):
        options = {"bias": bias, "target_modules": ["q_proj"]}
        model = loadkit.load(tiny("qwen2"), "lora", peft_config=options)
        name = next(n for n, p in model.model.named_parameters() if n.endswith("q_proj.base_layer.bias"))
        model.model.get_parameter(name).requires_grad_(False)
        (error,) = found(model.plan, model)
        assert f"peft_config.bias={bias!r}" in error.message


def test_fused_experts(tiny: Tiny) -> None:
    """What PEFT adapts of them, and with which ranks, is in the plan."""
    options = {"lora_target_modules": ["q_proj"], "lora_target_parameters": ["experts.down_proj"]}
    model = loadkit.load(tiny("mixtral"), "lora", **options)
    model.model.peft_config["default"].target_parameters = []
    assert "lora_target_parameters" in " ".join(f.message for f in found(model.plan, model))
    without = loadkit.load(tiny("mixtral"), "lora")
    for wanted in (True, False):
        asked = loadkit.plan(tiny("mixtral"), "lora", lora_experts=wanted)
        assert ("lora_experts" in " ".join(f.message for f in found(asked, without))) is wanted
        assert not found(asked, loadkit.load(asked))
    missed = loadkit.load(tiny("mixtral"), "lora", lora_experts=True)
    experts = missed.model.get_submodule("base_model.model.model.layers.1.mlp")
    experts.experts = experts.experts.base_layer  # a stack that nobody adapts
    assert "the parameters that 'default' adapts" in " ".join(f.message for f in found(missed.plan, missed))
    every = loadkit.plan(
        tiny("mixtral"), "lora", peft_config={"target_modules": "all-linear", "rank_pattern": {}}
    )
    assert not loadkit.load(every).report.findings
    assert every.adapter is not None
    assert every.adapter.options["rank_pattern"] == {"experts.gate_up_proj": 32}  # as PEFT has it


# --- Further places


def test_norms_that_nobody_upcast_are_found(loaded: Callable[[str], loadkit.Loaded]) -> None:
    model = loaded("qlora")
    norm = model.model.get_submodule("base_model.model.model.norm").to(torch.bfloat16)
    (error,) = found(model.plan, model)
    norm.to(torch.float32)
    assert error.message.startswith("norms of the quantized base")
    assert not found(model.plan, model)


def test_gradients_that_cant_flow_are_found(loaded: Callable[[str], loadkit.Loaded]) -> None:
    model = loaded("qlora")
    base = model.model.get_base_model()
    hooks, base._require_grads_hooks = base._require_grads_hooks, []
    (error,) = found(model.plan, model)
    base._require_grads_hooks = hooks
    assert error.message.startswith("gradients of the embeddings")


def test_towers_are_left_alone(tiny: Tiny) -> None:
    """Whether LoRA is in the towers is what was asked, either way."""
    adapted = loadkit.load(tiny("gemma3"), "lora", lora_vision=True)
    plan = loadkit.plan(tiny("gemma3"), "lora")
    errors = [e for e in found(plan, adapted) if "towers" in e.message]
    assert errors
    assert errors[0].planned == "[]"
    assert not found(adapted.plan, adapted)


def test_device_map_is_read(tiny: Tiny, loaded: Callable[[str], loadkit.Loaded]) -> None:
    places = {"model": "cpu", "lm_head": "cpu"}
    model = loadkit.load(tiny("mistral"), device_map=places)
    read = {n: r for r in model.report.readings for n in r.names}
    assert read["device_map.lm_head"].effective == "cpu"
    model.model.lm_head.to("meta")
    assert "device" in {f.code for f in found(loaded("").plan, model)}


def test_tied_weights_are_as_the_config_says(tiny: Tiny, loaded: Callable[[str], loadkit.Loaded]) -> None:
    tied = loadkit.load(tiny("qwen2-tied"))
    tied.model.lm_head.weight = torch.nn.Parameter(tied.model.lm_head.weight.detach().clone())
    assert {f.code for f in found(tied.plan, tied)} == {"tied-weights"}
    apart = loadkit.load(tiny("mistral"))
    apart.model.lm_head.weight = apart.model.model.embed_tokens.weight
    assert "tied-weights" in {f.code for f in found(apart.plan, apart)}


def test_files_that_contradict_a_tied_config_are_told(tiny: Tiny, tmp_path: Path) -> None:
    """transformers 5.23 keeps both tensors where they differ, and says so in a warning only."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny("qwen2-tied"), tmp_path / "two"))
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert [f.code for f in loadkit.load(folder).report.findings] == ["untied-weights"]


def test_special_ids_of_the_configs(tiny: Tiny) -> None:
    model = loadkit.load(tiny("mistral"), eos_token="<unk>")
    model.model.generation_config.pad_token_id = 9
    assert {f.code for f in found(model.plan, model)} == {"pad-token"}
    model.model.generation_config.pad_token_id = model.tokenizer.pad_token_id
    model.model.config.eos_token_id = 1
    assert "eos-token-id" in {f.code for f in found(model.plan, model)}


@pytest.mark.parametrize(
    ("profile", "option", "code"),
    [
        ("qlora", {"skip_modules": ["q_proj"]}, "skipped-module-quantized"),
        ("qlora-8bit", {"llm_int8_threshold": 4.0}, "8bit-setting"),
    ],
)
def test_settings_of_quantized_layers(
    tiny: Tiny, loaded: Callable[[str], loadkit.Loaded], profile: str, option: Options, code: str
) -> None:
    assert code in {f.code for f in found(planned(tiny, profile, option), loaded(profile))}


def test_the_config_that_will_be_saved(loaded: Callable[[str], loadkit.Loaded]) -> None:
    """Layers as planned beside a config that says something else, or nothing."""
    model = loaded("qlora")
    own = model.model.config.quantization_config
    model.model.config.quantization_config = {**own.to_dict(), "bnb_4bit_quant_type": "fp4"}
    (error,) = found(model.plan, model)
    model.model.config.quantization_config = own
    assert (error.code, error.effective) == ("quantization-config", "fp4")
    assert not found(model.plan, model)


def test_another_class_is_found(tiny: Tiny, loaded: Callable[[str], loadkit.Loaded]) -> None:
    assert "model-class" in {f.code for f in found(planned(tiny, "", CLASSIFIER), loaded(""))}


def test_the_commit_is_read(loaded: Callable[[str], loadkit.Loaded]) -> None:
    """A config of another commit than the plan's."""
    import msgspec

    model = loaded("")
    checkpoint = msgspec.structs.replace(model.plan.checkpoint, commit="a" * 40)
    plan = msgspec.structs.replace(model.plan, checkpoint=checkpoint)
    model.model.config._commit_hash = "b" * 40
    errors = found(plan, model)
    model.model.config._commit_hash = None
    assert [e.planned for e in errors if e.stage == "checkpoint"] == ["a" * 40]

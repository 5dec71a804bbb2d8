"""The first-party plugins' rules, on facts of machines that aren't here: decision and reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from examples import (
    A100,
    A100_FLASH,
    CPU,
    EIGHT_H100,
    EIGHT_RANKS,
    FSDP,
    FSDP2,
    GEMMA3,
    H100_FLASH,
    MISTRAL,
    MPS,
    NF4,
    PACKAGES,
    T4,
    TOKENIZER,
    TWO_NODES,
    ZERO3,
    checkpoint,
    gpu,
    planned,
    problems,
)

from loadkit import (
    Architecture,
    Checkpoint,
    Claim,
    Experimental,
    ModelClass,
    PlanError,
    PluginManager,
    Strength,
    Supported,
    Tokens,
    Unsupported,
    hookimpl,
)
from loadkit.plugins import AdapterFacts, Beside, ProcessingFacts

LLAVA = {
    "model_type": "llava",
    "architectures": ["LlavaForConditionalGeneration"],
    "text_config": {"model_type": "llama"},
    "vision_config": {"model_type": "clip_vision_model"},
}


# --- architecture


@pytest.mark.parametrize(
    ("config", "options", "auto_class", "model_class"),
    [
        (MISTRAL, {}, "AutoModelForCausalLM", "MistralForCausalLM"),
        ({"model_type": "mistral"}, {}, "AutoModelForCausalLM", "MistralForCausalLM"),
        (
            {"model_type": "mistral", "layer_types": ["full_attention"]},
            {},
            "AutoModelForCausalLM",
            "MinistralForCausalLM",
        ),
        (GEMMA3, {}, "AutoModelForImageTextToText", "Gemma3ForConditionalGeneration"),
        (GEMMA3, {"task": "text"}, "", "Gemma3ForCausalLM"),
        (LLAVA, {"task": "text"}, "", "LlamaForCausalLM"),
        (MISTRAL, {"task": "text"}, "AutoModelForCausalLM", "MistralForCausalLM"),
        ({"model_type": "qwen3_5"}, {"task": "text"}, "AutoModelForCausalLM", "Qwen3_5ForCausalLM"),
        ({"model_type": "qwen3_5"}, {}, "AutoModelForImageTextToText", "Qwen3_5ForConditionalGeneration"),
        (
            {"model_type": "qwen3_5", "architectures": ["Qwen3_5ForCausalLM"]},
            {},
            "AutoModelForCausalLM",
            "Qwen3_5ForCausalLM",
        ),
        (
            {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
            {},
            "AutoModelForSeq2SeqLM",
            "T5ForConditionalGeneration",
        ),
        (
            {"model_type": "bert", "architectures": ["BertForSequenceClassification"]},
            {},
            "AutoModelForSequenceClassification",
            "BertForSequenceClassification",
        ),
        (
            {"model_type": "bert", "architectures": ["BertForTokenClassification"]},
            {},
            "AutoModelForTokenClassification",
            "BertForTokenClassification",
        ),
        (
            MISTRAL,
            {"task": "token-classification"},
            "AutoModelForTokenClassification",
            "MistralForTokenClassification",
        ),
    ],
)
def test_the_class(
    config: dict[str, Any], options: dict[str, Any], auto_class: str, model_class: str
) -> None:
    found = planned(checkpoint(config), **options).model_class
    assert (found.auto_class, found.model_class) == (auto_class, model_class)


@pytest.mark.parametrize(
    ("config", "options", "code", "words"),
    [
        (
            {"model_type": "mistrall"},
            {},
            "unknown-model-type",
            ("did you mean 'mistral'?", "plugin", "no code of its own"),
        ),
        (
            {"model_type": "wren", "auto_map": {"AutoModelForCausalLM": "modeling_wren.Wren"}},
            {},
            "remote-code-needed",
            ("modeling_wren.py", "trust_remote_code=True", "plugin"),
        ),
        ({"hidden_size": 4}, {}, "no-model-type", ("model_type",)),
        (MISTRAL, {"task": "image-text-to-text"}, "no-class-for-task", ("causal-lm",)),
        ({"model_type": "evolla"}, {}, "no-class", ("evolla",)),
    ],
)
def test_no_class(config: dict[str, Any], options: dict[str, Any], code: str, words: tuple[str, ...]) -> None:
    told = problems(checkpoint(config), **options)[code]
    for word in words:
        assert word in told


def test_remote_code_runs_with_consent_and_only_where_needed() -> None:
    wren = {"model_type": "wren", "auto_map": {"AutoModelForCausalLM": "modeling_wren.Wren"}}
    told = problems(checkpoint(wren), trust_remote_code=True)
    assert f"revision={checkpoint().commit!r}" in told["remote-code-unpinned"]  # TRAPS 15
    pinned = checkpoint(wren, revision=checkpoint().commit)
    beside = Beside(code={"modeling_wren.py": "ab" * 32})
    plan = planned(pinned, trust_remote_code=True, beside=beside)
    assert plan.model_class.implementation == "remote code"
    assert plan.model_class.code == {"modeling_wren.py": "ab" * 32}
    assert "modeling_wren.py abababababab" in str(plan)
    assert plan.kwargs["trust_remote_code"] is True
    elsewhere = {"model_type": "wren", "auto_map": {"AutoModelForCausalLM": "other/repo--modeling_wren.Wren"}}
    told = problems(checkpoint(elsewhere, revision=checkpoint().commit), trust_remote_code=True)
    assert "other/repo" in told["remote-code-elsewhere"]
    both = {**MISTRAL, "auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}
    native = planned(checkpoint(both), trust_remote_code=True)
    assert native.kwargs["trust_remote_code"] is False
    assert [w.code for w in native.warnings] == ["remote-code-unused"]


class Family:
    """A plugin that registers a model family."""

    def __init__(self, **more: Any) -> None:
        self.architecture = Architecture(
            **{
                "model_type": "wren",
                "models": {"causal-lm": "wren.modeling:Wren"},
                "config": "wren.config:Config",
                **more,
            }
        )

    @hookimpl
    def loadkit_architectures(self) -> list[Architecture]:
        return [self.architecture]


def with_family(**more: Any) -> PluginManager:
    manager = PluginManager(environ={})
    manager.register(Family(**more), "family")
    return manager


def test_a_registered_architecture() -> None:
    plan = planned(
        checkpoint({"model_type": "wren"}),
        "qlora",
        manager=with_family(
            lora_target_modules=("q_proj",),
            skip_modules=("router",),
            attention={"sdpa": Unsupported("it scales by itself")},
        ),
    )
    assert plan.model_class.model_class == "wren.modeling:Wren"
    assert plan.model_class.implementation == "plugin"
    assert plan.adapter is not None
    assert plan.quantization is not None
    assert plan.adapter.options["target_modules"] == ["q_proj"]
    assert plan.quantization.skip_modules == ("router",)
    assert plan.attn_implementation == "eager"
    assert "it scales by itself" in str(plan.why("attention").passed_over)


def test_a_registered_architecture_gives_way_unless_preferred() -> None:
    models = {"causal-lm": "mine:Mistral"}
    assert (
        planned(manager=with_family(model_type="mistral", models=models)).model_class.implementation
        == "transformers"
    )
    preferred = planned(manager=with_family(model_type="mistral", models=models, preferred=True))
    assert preferred.model_class.model_class == "mine:Mistral"
    assert "preferred" in preferred.why("architecture").because


def test_attention_is_said_of_the_classes_that_serve() -> None:
    said = {"attention": {"sdpa": Unsupported("it scales by itself")}, "model_type": "mistral"}
    brings = {**said, "models": {"causal-lm": "mine:Mistral"}}
    assert planned(manager=with_family(**brings)).attn_implementation == "sdpa"
    assert planned(manager=with_family(**brings, preferred=True)).attn_implementation == "eager"
    only_facts = with_family(**said, models={})
    assert planned(manager=only_facts).attn_implementation == "eager"


class Chooses:
    """A plugin that claims a class of its own."""

    def __init__(self, task: str, strength: Strength) -> None:
        self.claim = Claim(
            value=ModelClass(task=task, auto_class="", model_class="mine:Mistral", implementation="plugin"),
            because="it is mine",
            strength=strength,
        )

    @hookimpl
    def loadkit_choose_architecture(self) -> Claim[ModelClass]:
        return self.claim


@pytest.mark.parametrize("task", ["causal-lm", "text"])
def test_a_task_that_both_serve_decides_nothing_between_them(task: str) -> None:
    manager = with_family(model_type="mistral", models={"causal-lm": "mine:Mistral"})
    assert planned(manager=manager, task=task).model_class.implementation == "transformers"
    manager.register(Chooses("causal-lm", Strength.YOU), "chooses")
    plan = planned(manager=manager, task=task)
    assert plan.model_class.model_class == "mine:Mistral"
    assert plan.why("architecture").plugin == "chooses"


def test_a_demanded_task_is_kept_whoever_serves() -> None:
    manager = with_family(model_type="mistral", models={"causal-lm": "mine:Mistral"})
    manager.register(Chooses("seq2seq-lm", Strength.CLAIM), "chooses")
    assert planned(manager=manager).model_class.task == "seq2seq-lm"
    with pytest.raises(PlanError) as caught:
        planned(manager=manager, task="causal-lm")
    assert [p.code for p in caught.value.problems if p.severity == "error"] == ["other-task"]


def test_a_registered_chat_template_is_for_a_tokenizer_without_one() -> None:
    manager = with_family(model_type="mistral", models={}, chat_template="{{ theirs }}")

    def processing(own: str | None, **options: Any) -> tuple[Any, Any]:
        facts = checkpoint(MISTRAL)
        facts = msgspec.structs.replace(
            facts, processing=msgspec.structs.replace(facts.processing, chat_template=own)
        )
        plan = planned(facts, manager=manager, **options)
        return plan.processing.chat_template, plan.processing.template_origin

    assert processing(None) == ("{{ theirs }}", "a plugin's architecture")
    assert processing(None, chat=True)[0] == "{{ theirs }}"
    assert processing("{{ own }}") == (None, "")


# --- dtype


@pytest.mark.parametrize(
    ("stored", "machine", "options", "expected", "reason"),
    [
        ("BF16", CPU, {}, "bfloat16", "the checkpoint's files have it"),
        ("BF16", A100, {}, "bfloat16", "the checkpoint's files have it"),
        ("BF16", MPS, {}, "bfloat16", "the checkpoint's files have it"),
        ("BF16", T4, {}, "float16", "bfloat16 needs sm80"),
        ("F16", CPU, {}, "float32", "no fast arithmetic on a CPU"),
        ("F16", T4, {}, "float16", "the checkpoint's files have it"),
        ("F32", A100, {}, "float32", "(its config says bfloat16)"),
        ("F64", CPU, {}, "float32", "float64 brings nothing"),
        ("BF16", A100, {"dtype": "auto"}, "bfloat16", "dtype='auto'"),
        ("BF16", A100, {"dtype": "float16"}, "float16", "you asked for it"),
    ],
)
def test_dtype(stored: str, machine: Any, options: dict[str, Any], expected: str, reason: str) -> None:
    decision = planned(checkpoint(stored=stored), machine=machine, **options).why("dtype")
    assert decision.value == expected
    assert reason in decision.because


def test_dtype_without_files_is_the_configs() -> None:
    bare = {"tensors": {}, "weight_format": "pickle"}
    assert planned(checkpoint(**bare)).dtype == "bfloat16"
    assert (
        planned(checkpoint({"model_type": "mistral", "torch_dtype": "float16"}, **bare), machine=T4).dtype
        == "float16"
    )
    assert planned(checkpoint({"model_type": "mistral"}, **bare)).dtype == "float32"


def test_dtype_that_cant_be_had_is_refused_to_you_and_falls_back_for_a_profile(tmp_path) -> None:
    assert "sm80" in problems(machine=T4, dtype="bfloat16")["dtype-unavailable"]
    assert "float64" in problems(machine=MPS, dtype="float64")["dtype-unavailable"]
    path = tmp_path / "p.toml"
    path.write_text('description = "x"\n[options]\ndtype = "bfloat16"\n')
    decision = planned(None, str(path), machine=T4).why("dtype")
    assert (decision.value, decision.strength) == ("float16", Strength.PROFILE)
    assert "prefers bfloat16, but Tesla T4 is sm75" in decision.because


# --- attention


@pytest.mark.parametrize(
    ("machine", "options", "expected", "reasons"),
    [
        (
            CPU,
            {},
            "sdpa",
            {"flash_attention_2": "needs a CUDA device", "flash_attention_3": "needs a CUDA device"},
        ),
        (T4, {}, "sdpa", {"flash_attention_2": "it needs sm80 or newer, and Tesla T4 is sm75"}),
        (A100, {}, "sdpa", {"flash_attention_2": "flash-attn isn't installed"}),
        (A100_FLASH, {}, "flash_attention_2", {"flash_attention_3": "sm90 (Hopper)"}),
        (H100_FLASH, {}, "flash_attention_3", {}),
        (A100_FLASH, {"dtype": "float32"}, "sdpa", {"flash_attention_2": "the dtype is float32"}),
    ],
)
def test_the_attention_chain(
    machine: Any, options: dict[str, Any], expected: str, reasons: dict[str, str]
) -> None:
    decision = planned(machine=machine, **options).why("attention")
    assert decision.value == expected
    told = {p.value: p.reason for p in decision.passed_over}
    for link, reason in reasons.items():
        assert reason in told[link]


@pytest.mark.parametrize(
    ("machine", "options", "words"),
    [
        (CPU, {}, "CUDA device"),
        (T4, {}, "sm75"),
        (A100, {}, "flash-attn isn't installed"),
        (A100_FLASH, {"dtype": "float32"}, "the dtype is float32"),
    ],
)
def test_flash_attention_demanded_in_vain(machine: Any, options: dict[str, Any], words: str) -> None:
    told = problems(machine=machine, attn_implementation="flash_attention_2", **options)[
        "attention-unavailable"
    ]
    assert words in told
    assert "attn_implementation='sdpa'" in told


def test_a_profile_says_where_the_chain_starts(tmp_path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('description = "x"\n[options]\nattn_implementation = "flash_attention_2"\n')
    assert planned(None, str(path), machine=A100_FLASH).attn_implementation == "flash_attention_2"
    decision = planned(None, str(path)).why("attention")
    assert (decision.value, decision.strength) == ("sdpa", Strength.PROFILE)
    assert decision.passed_over[0].value == "flash_attention_2"


def test_each_nested_config_for_itself() -> None:
    manager = PluginManager(environ={})
    t5 = checkpoint({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]})
    assert planned(t5, machine=A100_FLASH, manager=manager).attn_implementation == "sdpa"
    assert "T5ForConditionalGeneration doesn't support it" in str(
        planned(t5, machine=A100_FLASH).why("attention").passed_over
    )
    by_part = planned(checkpoint(GEMMA3), attn_implementation={"": "sdpa", "vision_config": "eager"})
    assert by_part.kwargs["attn_implementation"] == {"": "sdpa", "vision_config": "eager"}
    told = problems(checkpoint(GEMMA3), attn_implementation={"": "sdpa", "vison_config": "eager"})
    assert "did you mean 'vision_config'?" in told["unknown-sub-config"]


def test_names_that_nobody_knows_and_kernels() -> None:
    assert "did you mean 'sdpa'?" in problems(attn_implementation="spda")["unknown-attention"]
    told = problems(machine=A100, attn_implementation="kernels-community/flash-attn2")[
        "attention-unavailable"
    ]
    assert "kernels isn't installed" in told
    with_kernels = gpu("NVIDIA A100-SXM4-80GB", (8, 0), 80, packages={**PACKAGES, "kernels": "0.12"})
    assert planned(machine=with_kernels).attn_implementation == "sdpa"  # never chosen, only demanded
    assert planned(machine=with_kernels, attn_implementation="kernels-community/flash-attn2").warnings == ()


def test_experimental_support_is_never_chosen() -> None:
    attention = {"sdpa": Experimental("it is slow"), "eager": Supported()}
    plan = planned(checkpoint({"model_type": "wren"}), manager=with_family(attention=attention))
    assert plan.attn_implementation == "eager"


# --- quantization


CPU_GPTQ = msgspec.structs.replace(
    CPU, packages={**PACKAGES, "gptqmodel": "7.0.0", "optimum": "2.3.0", "torchao": "0.18.0"}
)


def quantized(*args: Any, **kwargs: Any) -> Any:
    return planned(*args, **kwargs).quantization


def test_qlora_is_nf4_with_double_quantization_in_the_load_dtype() -> None:
    for machine, dtype in ((A100, "bfloat16"), (T4, "float16")):
        assert quantized(None, "qlora", machine=machine).options == {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": dtype,
            "bnb_4bit_quant_storage": "uint8",
        }
    assert quantized(None, "qlora", dtype="float32").options["bnb_4bit_compute_dtype"] == "float32"
    assert "nf4" in planned(load_in_4bit=True).why("quantization").because


def test_under_fsdp_it_is_packed_in_the_weights_dtype() -> None:
    """TRAPS 10."""
    for topology in (FSDP, FSDP2):
        assert (
            quantized(None, "qlora", machine=EIGHT_H100, topology=topology).options["bnb_4bit_quant_storage"]
            == "bfloat16"
        )
    told = problems(None, "qlora", machine=EIGHT_H100, topology=FSDP, bnb_4bit_quant_storage="uint8")
    assert "bnb_4bit_quant_storage='bfloat16'" in told["storage-dtype-under-fsdp"]


def test_your_width_beats_the_profiles() -> None:
    plan = planned(None, "qlora", load_in_8bit=True)
    assert plan.quantization is not None
    assert (plan.quantization.bits, plan.quantization.options) == (8, {"load_in_8bit": True})
    assert "is for 4 bits only" in plan.why("quantization").because
    bare = planned(None, "qlora", load_in_4bit=False)
    assert bare.quantization is None
    assert not bare.preparation.kbit
    assert quantized(None, "qlora", load_in_8bit=False).bits == 4


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"load_in_4bit": True, "load_in_8bit": True}, "4bit-and-8bit", "choose one"),
        ({"load_in_8bit": True, "bnb_4bit_use_double_quant": True}, "4bit-setting-with-8bit", "double_quant"),
        ({"load_in_8bit": True, "bnb_4bit_quant_type": "nf4"}, "4bit-setting-with-8bit", "nf4"),
        ({"load_in_4bit": True, "llm_int8_threshold": 5.0}, "8bit-setting-with-4bit", "threshold"),
        ({"bnb_4bit_quant_type": "nf4"}, "setting-without-quantization", "load_in_4bit=True"),
        ({"skip_modules": ["q_proj"]}, "setting-without-quantization", "skip_modules"),
        (
            {"load_in_4bit": True, "skip_modules": ["qq_proj"]},
            "skip-matches-nothing",
            "did you mean 'q_proj'?",
        ),
    ],
)
def test_quantization_refused(options: dict[str, Any], code: str, words: str) -> None:
    assert words in problems(**options)[code]


def test_without_bitsandbytes() -> None:
    machine = gpu("NVIDIA A100-SXM4-80GB", (8, 0), 80, packages={"torch": "2.13.0"})
    assert "pip install bitsandbytes" in problems(None, "inference-4bit", machine=machine)["no-bitsandbytes"]


def test_config_objects_and_mappings() -> None:
    from transformers import BitsAndBytesConfig

    four = quantized(quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"))
    assert (four.bits, four.options["bnb_4bit_quant_type"], four.options["bnb_4bit_compute_dtype"]) == (
        4,
        "nf4",
        "float32",
    )
    assert quantized(quantization_config=BitsAndBytesConfig(load_in_8bit=True)).bits == 8
    assert quantized(quantization_config={"load_in_4bit": True}).options["bnb_4bit_quant_type"] == "nf4"


@pytest.mark.parametrize(
    ("stored", "method", "bits"),
    [
        (NF4, "bitsandbytes", 4),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes", 8),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq", 4),
        ({"quant_method": "awq", "w_bit": 4}, "awq", 4),
        ({"quant_method": "fp8"}, "fp8", 8),
        ({"quant_method": "mxfp4"}, "mxfp4", 4),
    ],
)
def test_a_quantized_checkpoint_is_recognised_whatever_its_method(
    stored: dict[str, Any], method: str, bits: float
) -> None:
    for profile in (None, "lora", "qlora"):
        plan = planned(checkpoint({**MISTRAL, "quantization_config": stored}), profile, machine=CPU_GPTQ)
        assert plan.quantization is not None
        assert (plan.quantization.method, plan.quantization.bits, plan.quantization.prequantized) == (
            method,
            bits,
            True,
        )
        assert "quantization_config" not in plan.kwargs


def test_what_a_quantized_checkpoint_contradicts_is_refused() -> None:
    """TRAPS 5."""
    nf4 = checkpoint({**MISTRAL, "quantization_config": NF4})
    assert "nf4" in problems(nf4, load_in_4bit=True, bnb_4bit_quant_type="fp4")["quantized-already"]
    assert "load_in_8bit=True" in problems(nf4, load_in_8bit=True)["quantized-already"]
    assert planned(nf4, load_in_4bit=True, bnb_4bit_quant_type="nf4").quantization is not None
    for name, value in (("bnb_4bit_compute_dtype", "float16"), ("llm_int8_threshold", 4.0)):
        assert f"{name}={value!r}" in problems(nf4, **{name: value})["quantized-already"]
    assert planned(nf4, llm_int8_threshold=6.0, llm_int8_has_fp16_weight=False).quantization is not None
    stored = {"quant_method": "gptq", "bits": 4}
    gptq = checkpoint({**MISTRAL, "quantization_config": stored})
    assert "gptq" in problems(gptq, load_in_4bit=True)["quantized-already"]
    for name, value in (
        ("bnb_4bit_quant_type", "fp4"),
        ("llm_int8_threshold", 6.0),
        ("skip_modules", ["lm_head"]),
    ):
        # Also where bitsandbytes would do that unasked: a checkpoint of another method has no such setting.
        assert f"which has no {name}" in problems(gptq, **{name: value})["quantized-already"]
    assert "bits=8" in problems(gptq, quantization_config={**stored, "bits": 8})["quantized-already"]
    assert planned(gptq, quantization_config=stored, machine=CPU_GPTQ).quantization is not None


def test_a_quantized_checkpoint_needs_no_quantizers_plugin() -> None:
    """Which method it is stored by, the file says: the rule is `prequantized`'s, and holds with every
    quantizer blocked."""
    gptq = checkpoint({**MISTRAL, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    manager = PluginManager(environ={"LOADKIT_DISABLE": "bitsandbytes"})
    decision = planned(gptq, manager=manager, machine=CPU_GPTQ).why("quantization")
    assert (decision.plugin, decision.value.method, decision.strength) == ("prequantized", "gptq", "you")
    nf4 = checkpoint({**MISTRAL, "quantization_config": NF4})
    assert planned(nf4).why("quantization").plugin == "prequantized"
    assert planned(nf4).plugins.keys() >= {"bitsandbytes", "prequantized"}


# --- device map


@pytest.mark.parametrize(
    ("machine", "topology", "profile", "expected", "reason"),
    [
        (CPU, None, None, {"": "cpu"}, "no accelerator"),
        (MPS, None, None, {"": "mps"}, "shares its memory"),
        (A100, None, "qlora", {"": 0}, "one accelerator"),
        (EIGHT_H100, None, "qlora", {"": 0}, "one process trains on one device"),
        (EIGHT_H100, None, "inference", "auto", "profile 'inference' prefers it"),
        (A100, None, "inference", {"": 0}, "nothing to spread over"),
        (CPU, None, "inference", {"": "cpu"}, "nothing to spread over"),
        (EIGHT_H100, EIGHT_RANKS, "inference", {"": 3}, "several processes were launched"),
        (EIGHT_H100, EIGHT_RANKS, "qlora", {"": 3}, "each of 8 processes"),
        (
            EIGHT_H100,
            TWO_NODES,
            "qlora",
            {"": 3},
            "each of 16 processes",
        ),  # the local rank, not the global 11
        (EIGHT_H100, FSDP, "qlora", None, "fsdp places"),
        (EIGHT_H100, FSDP2, "lora", None, "fsdp2 places"),
        (EIGHT_H100, ZERO3, "full", None, "zero3 places"),
    ],
)
def test_device_map(machine: Any, topology: Any, profile: str | None, expected: Any, reason: str) -> None:
    plan = planned(None, profile, machine=machine, **({"topology": topology} if topology else {}))
    assert plan.placement.device_map == expected
    assert reason in plan.why("device_map").because
    assert ("device_map" in plan.kwargs) == (expected is not None)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"machine": EIGHT_H100, "topology": EIGHT_RANKS, "device_map": "auto"}, "auto-under-launcher"),
        ({"machine": EIGHT_H100, "topology": ZERO3, "device_map": "auto"}, "device-map-under-engine"),
        ({"machine": EIGHT_H100, "topology": FSDP, "device_map": {"": 0}}, "device-map-under-engine"),
        ({"device_map": "cuda:0"}, "no-such-device"),
        ({"machine": A100, "device_map": "1"}, "no-such-device"),
        ({"machine": A100, "device_map": "gpu"}, "no-such-device"),
        ({"machine": A100, "max_memory": {"0": "20GiB"}}, "max-memory-unused"),
    ],
)
def test_device_map_refused(options: dict[str, Any], code: str) -> None:
    assert code in problems(**options)


def test_devices_asked_for() -> None:
    assert planned(machine=A100, device_map="cpu").placement.device_map == {"": "cpu"}
    assert planned(machine=EIGHT_H100, device_map="3").placement.device_map == {"": 3}
    spread = planned(machine=EIGHT_H100, device_map="auto", max_memory={"0": "20GiB"})
    assert spread.kwargs["max_memory"] == {"0": "20GiB"}


# --- preparation and cache


def test_preparation_by_profile() -> None:
    full, lora, qlora, run = (planned(None, p).preparation for p in ("full", "lora", "qlora", "inference"))
    assert (full.kbit, full.gradient_checkpointing, full.input_gradients, full.training) == (
        False,
        True,
        False,
        True,
    )
    assert (lora.kbit, lora.input_gradients) == (False, True)
    assert qlora.kbit
    assert qlora.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert not (run.kbit)
    assert not (run.gradient_checkpointing)
    assert not (run.training)


def test_checkpointing_kwargs_are_kept_and_never_dropped() -> None:
    """TRAPS 11."""
    kwargs = {"use_reentrant": True}
    assert (
        planned(None, "qlora", gradient_checkpointing_kwargs=kwargs).preparation.gradient_checkpointing_kwargs
        == kwargs
    )
    assert "checkpointing-kwargs-unused" in problems(gradient_checkpointing_kwargs=kwargs)


def test_the_cache_follows_the_preparation() -> None:
    assert planned(None, "qlora").use_cache is False
    assert planned(None, "full", gradient_checkpointing=False).use_cache is False
    assert planned(None, "inference").use_cache is True
    assert planned().use_cache is None
    assert (
        "use_cache" not in planned(None, "qlora").kwargs
    )  # TRAPS 1: it goes into the config, at every depth
    told = problems(None, "qlora", use_cache=True)["cache-with-checkpointing"]
    assert "gradient_checkpointing=False" in told


# --- processing


@pytest.mark.parametrize(
    "config",
    [
        {"_attn_implementation": "evil/kernel"},
        {"attn_implementation": "evil/kernel"},
        {"_experts_implementation": "evil/kernel"},
        {"use_kernels": True},
        {"text_config": {"model_type": "llama", "_attn_implementation_internal": "evil/kernel"}},
    ],
)
def test_a_config_cant_have_a_kernel_fetched(config: dict[str, Any]) -> None:
    """TRAPS 14: a field of config.json once fetched and ran code (CVE-2026-4372)."""
    told = problems(checkpoint({**MISTRAL, **config}))
    assert "remove that from config.json" in told["config-selects-code"]
    assert planned(checkpoint({**MISTRAL, "_attn_implementation": "eager"})).warnings == ()


def with_files(*files: str, **config: object) -> Checkpoint:
    """The checkpoint with these files of a tokenizer or processor."""
    facts = msgspec.structs.replace(TOKENIZER, files=files)
    return checkpoint(config or MISTRAL, processing=facts)


def test_processing() -> None:
    assert planned().processing.kind == "tokenizer"
    assert planned().processing.revision == checkpoint().commit
    seeing = with_files("tokenizer.json", "processor_config.json", **GEMMA3)
    assert planned(seeing).processing.kind == "processor"
    assert planned(seeing, task="text").processing.kind == "tokenizer"
    bare = planned(with_files("config.json"))
    assert bare.processing.kind == "none"
    assert [w.code for w in bare.warnings] == ["no-processing-class"]
    assert "no-tokenizer" in problems(with_files(), processing_class="tokenizer")
    assert "no-processor" in problems(processing_class="processor")
    assert "processing-option-unused" in problems(with_files(), padding_side="left")
    assert planned(processing_class="none").processing.kind == "none"


def test_use_fast_names_the_backend_of_image_processors() -> None:
    seeing = with_files("tokenizer.json", "processor_config.json", **GEMMA3)
    machine = msgspec.structs.replace(CPU, packages={**PACKAGES, "torchvision": "0.28.0"})
    assert planned(seeing, use_fast=True, machine=machine).processing.options == {"backend": "torchvision"}
    assert "pip install torchvision" in problems(seeing, use_fast=True)["no-torchvision"]
    assert planned(seeing, use_fast=False).processing.options == {"backend": "pil"}
    assert planned(use_fast=False).processing.options == {}


def test_a_chat_template_is_never_replaced_silently() -> None:
    kept = planned()
    assert kept.processing.chat_template is None
    assert "it keeps its chat template" in kept.why("processing").because
    replaced = planned(chat_template="{{ messages[0] }}")
    assert replaced.processing.chat_template == "{{ messages[0] }}"
    assert [w.code for w in replaced.warnings] == ["template-replaced"]
    same = planned(chat_template=TOKENIZER.chat_template)
    assert same.warnings == ()


def test_a_missing_chat_template_in_a_chat_use_names_the_remedy() -> None:
    silent = checkpoint(processing=msgspec.structs.replace(TOKENIZER, chat_template=None))
    assert "conversations need chat_template" in planned(silent).why("processing").because
    assert "a checkpoint of the same family" in problems(silent, chat=True)["no-chat-template"]
    assert planned(silent, chat=True, chat_template="{{ messages }}").warnings == ()
    assert planned(chat=True).warnings == ()


def test_an_adapter_brings_its_own_tokenizer() -> None:
    own = msgspec.structs.replace(TOKENIZER, location="a/adapter", commit="f" * 40)
    adapter = AdapterFacts(
        source="a/adapter",
        location="a/adapter",
        commit="f" * 40,
        config={"peft_type": "LORA"},
        processing=own,
    )
    plan = planned(checkpoint(adapter=adapter))
    assert (plan.processing.source, plan.processing.revision) == ("a/adapter", "f" * 40)
    assert "saved with its own" in plan.why("processing").because
    without = msgspec.structs.replace(adapter, processing=ProcessingFacts(location="a/adapter"))
    assert planned(checkpoint(adapter=without)).processing.source == "a/b"


# --- tokens


def with_tokens(pad: str | None, *added: str, **more: object) -> Checkpoint:
    """A checkpoint whose tokenizer has this pad token and these added tokens beside eos and unk."""
    config = {"eos_token": "</s>", "unk_token": "<unk>", **({"pad_token": pad} if pad else {})}
    tokens = {token: i for i, token in enumerate(["</s>", "<unk>", *added])}
    facts = msgspec.structs.replace(TOKENIZER, tokenizer_config=config, added_tokens=tokens)
    return checkpoint(**{"processing": facts, **more})


def test_the_pad_token_is_never_the_eos_token() -> None:
    """TRAPS 18: padding is left out of the loss, so a model whose pad is its eos never learns to stop."""
    assert planned(None, "lora").tokens.pad_token is None  # its own is another
    for own in (None, "</s>"):
        facts = with_tokens(own, "<|begin|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>")
        assert planned(facts, "lora").tokens.pad_token == "<|reserved_special_token_0|>"
        assert planned(facts, "lora").tokens.additional == ()
        named = with_tokens(own, "<|reserved_0|>", "<|finetune_right_pad_id|>")
        assert planned(named, "lora").tokens.pad_token == "<|finetune_right_pad_id|>"
        new = planned(with_tokens(own), "lora")
        assert (new.tokens.pad_token, new.tokens.additional) == ("<|pad|>", ("<|pad|>",))
    passed = planned(with_tokens("</s>"), "lora").why("tokens").passed_over
    assert [(p.value, p.reason) for p in passed] == [("</s>", "it is the eos token")]


def test_a_reserved_token_that_the_template_uses_isnt_free() -> None:
    facts = with_tokens(None, "<|reserved_0|>", "<|reserved_1|>")
    used = msgspec.structs.replace(facts.processing, chat_template="{{ '<|reserved_0|>' }}")
    assert planned(checkpoint(processing=used), "lora").tokens.pad_token == "<|reserved_1|>"


def test_inference_adds_no_token() -> None:
    assert planned(with_tokens(None), "inference").tokens == Tokens()
    assert planned(with_tokens("</s>"), "inference").tokens == Tokens()


def test_a_demanded_pad_token_that_is_eos_is_refused_and_a_profiles_gives_way(tmp_path: Path) -> None:
    assert "never learns to stop" in problems(None, "lora", pad_token="</s>")["pad-is-eos"]
    assert "pad-is-eos" in problems(None, "lora", pad_token="<pad>", eos_token="<pad>")
    profile = tmp_path / "mine.toml"
    profile.write_text('description = "x"\nextends = "lora"\n[options]\npad_token = "</s>"\n')
    decision = planned(None, str(profile)).why("tokens")
    assert decision.value.pad_token is None
    assert "only prefers it" in decision.passed_over[0].reason
    assert planned(None, "inference", pad_token="</s>").tokens.pad_token == "</s>"


def test_tokens_cant_be_added_to_a_quantized_checkpoint() -> None:
    """TRAPS 19: the rows of a quantized embedding can't grow."""
    stored = {"config": {**MISTRAL, "quantization_config": NF4}}
    told = problems(with_tokens("<unk>", **stored), "lora", additional_special_tokens=["<new>"])
    assert "quantize it on the fly" in told["resize-prequantized"]
    known = with_tokens("<unk>", "<new>", **stored)
    assert planned(known, "lora", additional_special_tokens=["<new>"]).tokens.additional == ("<new>",)
    decision = planned(with_tokens(None, **stored), "lora").why("tokens")
    assert decision.value == Tokens(pad_token="<unk>")
    assert "can't grow" in decision.passed_over[0].reason


def test_token_options_that_have_no_use_are_told() -> None:
    bare = with_files("config.json")
    assert "token-option-unused" in problems(bare, eos_token="</s>")
    assert [w.code for w in planned(pad_to_multiple_of=8).warnings] == ["multiple-unused"]
    assert "bad-multiple" in problems(additional_special_tokens=["<a>"], pad_to_multiple_of=0)
    tokens = planned(additional_special_tokens=["<a>", "<a>"], pad_to_multiple_of=8).tokens
    assert (tokens.additional, tokens.pad_to_multiple_of) == (("<a>",), 8)

"""The adapter plugin's rules, on facts: what is attached, what trains, and what can't work."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from examples import CPU, MISTRAL, NF4, PACKAGES, checkpoint, planned, problems

from loadkit import Adapters, Checkpoint, Plan
from loadkit.facts.checkpoint.adapters import same_base
from loadkit.plugins import AdapterFacts, Beside, TensorHeader

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def adapter_facts(r: int = 8, *, width: int = 64, base: str = "a/b", **more: Any) -> AdapterFacts:
    """An adapter on the q projections of the example checkpoint."""
    tensors = {}
    for layer in (0, 1):
        path = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{path}.lora_A.weight"] = TensorHeader("F32", (r, width), 4 * r * width, "a")
        tensors[f"{path}.lora_B.weight"] = TensorHeader("F32", (64, r), 4 * r * 64, "a")
    facts: dict[str, Any] = {
        "source": "me/adapter",
        "location": "me/adapter",
        "commit": COMMIT,
        "config": {"peft_type": "LORA", "base_model_name_or_path": base, "r": r},
        "tensors": tensors,
        "base_is_same": True,
    }
    return AdapterFacts(**{**facts, **more})


def attached(plan: Plan) -> Adapters:
    assert plan.adapters is not None
    return plan.adapters


# --- New ones


def test_a_new_adapter_by_plain_options() -> None:
    plan = planned(None, "qlora", lora_r=8, use_rslora=True)
    assert plan.adapter is not None
    assert plan.adapter.options == {
        "r": 8,
        "lora_alpha": 32.0,
        "lora_dropout": 0.05,
        "target_modules": "all-linear",
        "use_rslora": True,
        "task_type": "CAUSAL_LM",
    }
    assert plan.adapter.dtype == plan.dtype
    assert plan.adapter.exclude_vision
    more = planned(
        adapter=True, lora_modules_to_save=["lm_head"], lora_target_parameters=["mlp.gate_proj.weight"],
        use_dora=True, init_lora_weights="gaussian", lora_vision=True,
    ).adapter  # fmt: skip
    assert more is not None
    assert not more.exclude_vision
    assert more.options == {
        "modules_to_save": ["lm_head"],
        "target_parameters": ["mlp.gate_proj.weight"],
        "target_modules": [],
        "use_dora": True,
        "init_lora_weights": "gaussian",
        "task_type": "CAUSAL_LM",
    }


def test_no_adapter() -> None:
    assert planned(None, "qlora", adapter=False).adapters is None
    assert planned().adapters is None
    assert "adapter=True" in problems(lora_r=8)["lora-option-unused"]
    assert "adapter=True" in problems(merge_adapter=True)["lora-option-unused"]
    bare = msgspec.structs.replace(CPU, packages={k: v for k, v in PACKAGES.items() if k != "peft"})
    assert "pip install peft" in problems(None, "lora", machine=bare)["no-peft"]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_peft_config_objects_come_back_as_they_were() -> None:
    import peft

    configs = [
        peft.LoraConfig(r=4, target_modules=["q_proj"], rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 4}),
        peft.LoraConfig(target_modules=["q_proj"], layers_to_transform=[0], layers_pattern="layers"),
        peft.LoraConfig(target_modules=r".*\.q_proj"),
        peft.LoraConfig(target_modules="all-linear", modules_to_save=["lm_head"], bias="lora_only", lora_bias=False),
        peft.LoraConfig(target_modules=["q_proj"], exclude_modules=["k_proj"], trainable_token_indices={"embed_tokens": [1]}),
        peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
        peft.AdaLoraConfig(target_modules=["q_proj"], total_step=10),
        peft.VeraConfig(target_modules=["q_proj"]),
        peft.OFTConfig(target_modules=["q_proj"], r=8, oft_block_size=0),
        peft.LoHaConfig(target_modules=["q_proj"]),
        peft.PromptTuningConfig(num_virtual_tokens=4),
    ]  # fmt: skip
    for config in configs:
        plan = planned(peft_config=config)
        again = Plan.from_json(plan.to_json())
        assert again == plan
        assert again.adapter is not None
        made = peft.get_peft_config({"peft_type": again.adapter.peft_type, **again.adapter.options})
        ours, theirs = made.to_dict(), config.to_dict()
        theirs["task_type"] = theirs["task_type"] or "CAUSAL_LM"
        assert ours == theirs, type(config).__name__


STACKS = ["experts.down_proj", "experts.gate_up_proj"]


@pytest.mark.parametrize(
    ("options", "stacks", "ranks", "words"),
    [
        ({}, None, None, "the experts stay as they are (lora_experts=True adapts them)"),
        ({"lora_experts": True}, STACKS, None, "expert by expert, in the activations; the saved config says"),
        ({"lora_experts": True, "lora_dropout": 0.0}, STACKS, None, "expert by expert, in the activations"),
        ({"lora_target_modules": "all-linear"}, None, None, "the experts stay as they are"),
        ({"lora_experts": True, "lora_target_modules": ["q_proj"]}, STACKS, None, "expert by expert"),
        ({"lora_target_parameters": ["experts.down_proj"]}, STACKS[:1], None, "experts.down_proj are adapted"),
        ({"peft_config": {"target_modules": "all-linear", "r": 4, "lora_alpha": 8}}, STACKS, {STACKS[1]: 8}, "in the activations"),
    ],
)  # fmt: skip
def test_who_adapts_experts(
    options: dict[str, Any], stacks: list[str] | None, ranks: dict[str, int] | None, words: str
) -> None:
    """By default nobody; PEFT's own "all-linear" does, and gives pairs the rank of both."""
    mixtral = checkpoint({"model_type": "mixtral", "num_local_experts": 4})
    decision = planned(mixtral, "lora", **options).why("adapter")
    found = decision.value.members[0].options
    assert found["lora_dropout"] == options.get("lora_dropout", 0.05)
    assert found.get("target_parameters") == stacks
    assert found.get("rank_pattern") == ranks
    assert words in decision.because
    told = " ".join(f"{p.value}: {p.reason}" for p in decision.passed_over)
    assert ("all-linear: PEFT 0.21 would have it adapt" in told) == (
        found["target_modules"] == "every-linear"
    )


@pytest.mark.parametrize(
    ("model_type", "options", "code", "words"),
    [
        ("mistral", {"lora_experts": True}, "no-experts", "has no stacks of experts"),
        ("dbrx", {"lora_experts": True}, "no-experts", "which another module reads"),
        ("mixtral", {"lora_experts": True, "use_dora": True}, "experts-refuse", "use_dora"),
        ("mixtral", {"lora_experts": True, "init_lora_weights": "pissa"}, "experts-refuse", "init_lora_weights"),
        ("mixtral", {"lora_experts": True, "peft_config": {"peft_type": "IA3"}}, "no-experts", "one of IA3"),
        ("mixtral", {"lora_experts": False, "lora_target_parameters": STACKS}, "fields-contradict", "a stack of experts"),
        ("mixtral", {"lora_experts": True, "adapter": False}, "lora-option-unused", "lora_experts"),
    ],
)  # fmt: skip
def test_what_experts_refuse(model_type: str, options: dict[str, Any], code: str, words: str) -> None:
    found = problems(checkpoint({"model_type": model_type}), profile="lora", **options)
    assert words in found[code]


def test_a_wish_for_experts_where_there_are_none_gives_way(tmp_path: Path) -> None:
    profile = tmp_path / "mine.toml"
    profile.write_text('extends = "lora"\ndescription = "mine"\n[options]\nlora_experts = true\n')
    decision = planned(checkpoint({"model_type": "mistral"}), str(profile)).why("adapter")
    assert "lora_experts=True" in [p.value for p in decision.passed_over]
    assert "target_parameters" not in decision.value.members[0].options


def test_routers_that_are_plain_layers_are_left_alone() -> None:
    for given in (None, ["q_proj"], r".*q_proj"):
        more = {} if given is None else {"lora_exclude_modules": given}
        decision = planned(checkpoint({"model_type": "hunyuan_v1_moe"}), "lora", **more).why("adapter")
        left = decision.value.members[0].options["exclude_modules"]
        if isinstance(left, str):
            assert re.fullmatch(left, "model.layers.0.mlp.gate.wg")
            assert re.fullmatch(left, "model.layers.0.self_attn.q_proj")
        else:
            assert {"gate.wg", *(given or ())} <= set(left)
        assert "gate.wg" in [p.value for p in decision.passed_over]


@pytest.mark.parametrize(
    ("options", "dtype", "words"),
    [
        ({"dtype": "bfloat16"}, "bfloat16", ""),
        ({"dtype": "float16"}, "float32", "gradient scaling refuses float16"),
        ({"dtype": "float16", "adapter_dtype": "fp16"}, "float16", ""),
        ({"dtype": "bfloat16", "adapter_dtype": "float32"}, "float32", "you asked for it"),
        ({"dtype": "bfloat16", "adapter_dtype": "auto"}, "bfloat16", ""),
        ({"dtype": "float16", "training": False}, "float16", ""),
    ],
)
def test_the_dtype_of_an_adapter_has_a_reason(options: dict[str, Any], dtype: str, words: str) -> None:
    """GradScaler refuses float16 gradients."""
    decision = planned(checkpoint({"model_type": "mistral"}), "lora", **options).why("adapter")
    assert decision.value.members[0].dtype == dtype
    assert words in decision.because


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "loftq", "corda", "mica", "orthogonal"])
def test_an_initialisation_that_needs_the_weights(init: str, tmp_path: Path) -> None:
    told = problems(None, "qlora", init_lora_weights=init)["init-needs-weights"]
    assert "load without quantization" in told
    profile = tmp_path / "mine.toml"
    profile.write_text(f'description = "x"\nextends = "qlora"\n[options]\ninit_lora_weights = "{init}"\n')
    decision = planned(None, str(profile)).why("adapter")
    assert "init_lora_weights" not in decision.value.members[0].options
    assert decision.passed_over[0].value == f"init_lora_weights={init}"


def test_other_initialisations() -> None:
    assert [w.code for w in planned(None, "lora", init_lora_weights="pissa").warnings] == [
        "init-changes-base"
    ]
    assert planned(None, "qlora", init_lora_weights="gaussian").warnings == ()
    assert "your data" in problems(None, "lora", init_lora_weights="eva")["init-needs-data"]
    assert "pip install scipy" in problems(None, "lora", init_lora_weights="loftq")["no-scipy"]


def test_rows_of_new_tokens_train_with_a_new_adapter() -> None:
    plan = planned(None, "lora", additional_special_tokens=["<a>"])
    assert plan.adapter is not None
    assert plan.adapter.new_tokens
    assert "rows of new tokens train too" in plan.why("adapter").because
    only_pad = planned(None, "lora", additional_special_tokens=["<p>"], pad_token="<p>").adapter
    assert only_pad is not None
    assert not only_pad.new_tokens  # padding is never learned


# --- Existing ones


def test_the_source_is_an_adapter() -> None:
    facts = checkpoint(adapter=adapter_facts())
    frozen, resumed = planned(facts).adapter, planned(facts, "lora").adapter
    assert frozen is not None
    assert resumed is not None
    assert (frozen.source, frozen.revision, frozen.trainable) == ("me/adapter", COMMIT, False)
    assert resumed.trainable
    assert resumed.dtype == "bfloat16"  # whatever its file has
    assert "it is frozen: as the model is loaded to run" in planned(facts).why("adapter").because
    assert "you asked for it" in planned(facts, adapter_trainable=True).why("adapter").because
    assert planned(facts, adapter=False).adapters is None
    told = problems(facts, lora_r=4)
    assert "settings of its own" in told["adapter-exists"]


def test_several_are_named_and_one_is_active() -> None:
    beside = Beside(adapters={"style": adapter_facts(), "facts": adapter_facts(source="me/other")})
    named = {"adapter": {"style": "me/adapter", "facts": "me/other"}, "beside": beside}
    both = attached(planned(None, "lora", **named))
    assert [(a.name, a.trainable) for a in both.members] == [("style", True), ("facts", False)]
    assert both.active == "style"
    other = attached(planned(None, "lora", active_adapter="facts", **named))
    assert [(a.name, a.trainable) for a in other.members] == [("style", False), ("facts", True)]
    told = problems(active_adapter="fact", **named)["unknown-adapter"]
    assert "did you mean 'facts'" in told


def test_an_adapter_of_another_base_is_refused() -> None:
    """TRAPS 20: the base that an adapter was made for is written in it, and elsewhere nobody looks."""
    other = Beside(adapters={"default": adapter_facts(base="c/d", base_is_same=False)})
    told = problems(adapter="me/adapter", beside=other)["adapter-base-differs"]
    assert "'c/d'" in told
    assert "check_adapter_base=False" in told
    assert planned(adapter="me/adapter", beside=other, check_adapter_base=False).adapters is not None
    unknown = Beside(adapters={"default": adapter_facts(base="/mnt/x", base_is_same=None)})
    notes = planned(adapter="me/adapter", beside=unknown).warnings
    assert [(w.code, w.severity) for w in notes] == [("adapter-base-unknown", "note")]


def test_which_bases_are_the_same(tmp_path: Path) -> None:
    hub = checkpoint()
    assert same_base("a/b", hub) is True
    assert same_base("A/b", hub) is True
    assert same_base("c/d", hub) is False
    assert same_base("/not/here", hub) is None
    assert same_base(None, hub) is None
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.symlink_to(here)
    (tmp_path / "else").mkdir()
    folder = Checkpoint(source="x", kind="folder", location=str(here))
    assert same_base(str(there), folder) is True
    assert same_base(str(tmp_path / "else"), folder) is False
    assert same_base("a/b", folder) is None
    cached = Checkpoint(source="x", kind="folder", location="/c/models--a--b/snapshots/1")
    assert same_base("a/b", cached) is True


def test_an_adapter_that_doesnt_fit_is_refused_before_anything_is_loaded() -> None:
    narrow = Beside(adapters={"default": adapter_facts(width=32)})
    told = problems(adapter="me/adapter", beside=narrow)["adapter-shape"]
    assert "lora_A.weight (8, 32) over model.layers.0.self_attn.q_proj.weight (64, 64) and 1 more" in told


def test_revisions_of_adapter_and_base_are_apart() -> None:
    config = {"peft_type": "LORA", "base_model_name_or_path": "a/b", "revision": "v1"}
    facts = checkpoint(adapter=adapter_facts(config=config))
    [warning] = planned(facts).warnings
    assert (warning.code, warning.severity) == ("adapter-base-revision", "warning")
    assert "revision='v1'" in warning.remedy
    assert planned(checkpoint(adapter=adapter_facts(config=config), revision="v1")).warnings == ()
    by_default = {**config, "revision": "main"}
    assert planned(checkpoint(adapter=adapter_facts(config=by_default))).warnings == ()


def test_rows_that_an_adapter_brings() -> None:
    saved = {"base_model.model.lm_head.weight": TensorHeader("F32", (70, 64), 4, "a")}
    brought = planned(checkpoint(adapter=adapter_facts(tensors=saved))).adapter
    assert brought is not None
    assert brought.embedding_rows == 70
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "a/b",
        "trainable_token_indices": {"embed_tokens": [64, 66]},
    }
    listed = planned(checkpoint(adapter=adapter_facts(config=config))).adapter
    assert listed is not None
    assert listed.embedding_rows == 67
    neither = planned(checkpoint(adapter=adapter_facts())).adapter
    assert neither is not None
    assert neither.embedding_rows == 0


# --- Merging


def test_merging_into_quantized_weights_is_refused() -> None:
    """TRAPS 21: rounding to 4 bits again loses what the adapter learned, in silence."""
    facts = checkpoint(adapter=adapter_facts())
    assert attached(planned(facts, merge_adapter=True)).merge
    for options in ({"load_in_4bit": True}, {"load_in_8bit": True}):
        told = problems(facts, merge_adapter=True, **options)["merge-quantized"]
        assert "dequantize=True" in told
    stored = checkpoint({**MISTRAL, "quantization_config": NF4}, adapter=adapter_facts())
    assert "merge-quantized" in problems(stored, merge_adapter=True)
    plan = planned(facts, load_in_4bit=True, merge_adapter=True, dequantize=True)
    [warning] = plan.warnings
    assert warning.code == "merge-dequantized"
    assert "the error of quantizing stays" in warning.message
    assert "bytes in memory" in warning.message


def test_merging_what_is_to_train_or_isnt_quantized() -> None:
    facts = checkpoint(adapter=adapter_facts())
    assert "merge after training" in problems(facts, "lora", merge_adapter=True)["merge-with-training"]
    assert "isn't quantized" in problems(facts, merge_adapter=True, dequantize=True)["dequantize-unused"]
    assert "no adapter is merged" in problems(facts, load_in_4bit=True, dequantize=True)["dequantize-unused"]

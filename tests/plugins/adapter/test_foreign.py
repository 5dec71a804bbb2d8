"""Adapters from anybody: patterns that hang, numbers larger than their files, what they would fetch."""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loadkit
from loadkit.testing.checkpoints import make_adapter
from loadkit_plugins.adapter.pattern_cost import TOO_MANY, ways_to_match

Tiny = Callable[..., Path]

LEGITIMATE = (
    r".*\.(q_proj|v_proj)$",
    r".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$",
    r"^(?!.*(vision|audio)).*(q_proj|k_proj)",
    r"model\.layers\.\d+\.(mlp|self_attn)\.(q|k|v|o|up|down|gate)_proj",
    (
        r"(?:.*?(?:vision|language|text).*?(?:self_attn|attention|attn|mlp|ffn).*?(?:q_proj|k_proj|down_proj).*?)|"
        r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|k_proj)))"
    ),
    r"^(language_model(?=\.).*\.(q_proj|k_proj))$",
    r"(?:\w+\.)+q_proj",
    r"(layers|h)\.\d+\..*",
    "|".join(rf"model\.layers\.{n}\.self_attn\.q_proj" for n in range(200)),
)
HANGING = (
    "(.+)+x", "(.*)*x", "(a|ab|b)*c", r"(\w+\w+)+!", ".*.*.*.*x", ".*a.*a.*a.*a.*", "(?:.?.?)+x", "((l|ay)+)+!", "(?=(.+)+x)",
    r"(\w*)*\1!", "(?:(?:l+)a?)+!", "([a-z]+)*$", "(.*?){20}x", "((.*)a){5}", "(?:.{1,60}){4}x", r"(?:[a-z.]+[0-9]*)+!", ".?" * 60 + "!",
)  # fmt: skip
PATHS = [
    f"base_model.model.model.layers.{n}.{m}"
    for n in (0, 31)
    for m in ("self_attn.q_proj", "mlp.down_proj", "input_layernorm")
]


@pytest.mark.parametrize("pattern", LEGITIMATE)
def test_patterns_as_people_write_them(pattern: str) -> None:
    assert ways_to_match(pattern) <= TOO_MANY


@pytest.mark.parametrize("pattern", HANGING)
def test_patterns_that_hang(pattern: str) -> None:
    assert ways_to_match(pattern) > TOO_MANY


def generated(chance: random.Random, depth: int = 0) -> str:
    """A pattern over the letters of module paths, with repetitions, choices and groups."""
    kind = chance.randrange(9 if depth < 4 else 3)
    if kind < 3:
        return chance.choice([".", "a", "l", "[a-z]", r"\w", r"\.", "[^.]", "proj", r"\d", "(?:la|a)", "e"])
    inner = generated(chance, depth + 1)
    if kind < 5:
        return inner + generated(chance, depth + 1)
    if kind < 7:
        return f"(?:{inner}){chance.choice(['*', '+', '?', '*?', '+?', '{1,9}', '{2}'])}"
    if kind == 7:
        return f"(?:{inner}|{generated(chance, depth + 1)})"
    return f"(?={inner}){generated(chance, depth + 1)}"


def slowest(seed: int, count: int) -> tuple[float, int]:
    """The seconds of the slowest of so many patterns that count as harmless, and how many those are."""
    chance, worst, passed = random.Random(seed), 0.0, 0
    for _ in range(count):
        pattern = f"{generated(chance)}!"  # which no path has: every way is tried
        if ways_to_match(pattern) > TOO_MANY:
            continue
        passed += 1
        start = time.monotonic()
        for path in PATHS:
            re.fullmatch(pattern, path)
        worst = max(worst, time.monotonic() - start)
    return worst, passed


def test_what_counts_as_harmless_is_quick() -> None:
    worst, passed = slowest(1, 2_000)
    assert passed > 500
    assert worst < 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 8))
def test_many_that_count_as_harmless_are_quick(seed: int) -> None:
    assert slowest(seed, 20_000)[0] < 5


@pytest.fixture(scope="module")
def adapter(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("foreign") / "adapter", tiny("mistral"))


def refused(adapter: Path, where: Path, **more: Any) -> list[str]:
    """The codes of what is wrong with the adapter, once its config says that too."""
    shutil.copytree(adapter, where)
    config = json.loads((where / "adapter_config.json").read_text())
    (where / "adapter_config.json").write_text(json.dumps({**config, **more}))
    trains = {"profile": "lora"} if "prompt_tuning_init" in more else {}
    try:
        loadkit.plan(where, **trains)
    except loadkit.PlanError as error:
        return [problem.code for problem in error.problems if problem.severity == "error"]
    return []


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"target_modules": "(.+)+x"}, "bad-pattern"),
        ({"exclude_modules": "(.+)+x"}, "bad-pattern"),
        ({"rank_pattern": {"(.+)+x": 3}}, "bad-pattern"),
        ({"alpha_pattern": {"(.+)+x": 3}}, "bad-pattern"),
        ({"modules_to_save": ["(.+)+x"]}, "bad-pattern"),
        ({"layers_pattern": ["(.+)+x"], "layers_to_transform": [0]}, "bad-pattern"),
        ({"peft_type": "IA3", "feedforward_modules": "(.+)+x"}, "bad-pattern"),
        ({"target_modules": "("}, "bad-pattern"),
        ({"target_modules": "(" * 5000 + ")" * 5000}, "bad-pattern"),
        ({"target_modules": "a" * 30_000}, "bad-pattern"),
        ({"rank_pattern": {f"layers.{n}": 8 for n in range(5000)}}, "bad-pattern"),
        ({"r": 300_000}, "adapter-shape"),
        ({"r": 9}, "adapter-shape"),
        ({"rank_pattern": {"q_proj": 10**7}}, "adapter-shape"),
        ({"peft_type": "LOHA", "r": 10**7}, "adapter-shape"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 10**9}, "adapter-shape"),
        ({"peft_type": "P_TUNING", "encoder_hidden_size": 10**9}, "adapter-shape"),
        ({"layer_replication": [[0, 2], [0, 10**9]]}, "adapter-shape"),
        ({"trainable_token_indices": [3, 10**9]}, "adapter-shape"),
        ({"trainable_token_indices": {"embed_tokens": [10**9]}}, "adapter-shape"),
        ({"peft_type": "TRAINABLE_TOKENS", "token_indices": [10**9]}, "adapter-shape"),
        ({"peft_type": "XLORA", "hidden_size": 64, "adapters": {"a": "evil/adapter"}}, "adapter-reads-elsewhere"),
        ({"peft_type": "SHADOW", "shadow_model": "evil/model"}, "adapter-reads-elsewhere"),
        ({"megatron_config": {"a": 1}, "megatron_core": "evil.module"}, "adapter-reads-elsewhere"),
        ({"corda_config": {"covariance_file": "/etc/passwd"}}, "adapter-reads-elsewhere"),
        ({"lora_ga_config": {"cache_file": "/etc/passwd"}}, "adapter-reads-elsewhere"),
        ({"peft_type": "MULTITASK_PROMPT_TUNING", "prompt_tuning_init_state_dict_path": "/x"}, "adapter-reads-elsewhere"),
        ({"peft_type": "PROMPT_TUNING", "tokenizer_kwargs": {"trust_remote_code": True}}, "adapter-reads-elsewhere"),
        ({"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "TEXT", "tokenizer_name_or_path": "evil/t"}, "adapter-reads-elsewhere"),
    ],
)  # fmt: skip
def test_it_is_refused_before_peft_looks(
    more: dict[str, Any], code: str, adapter: Path, tmp_path: Path
) -> None:
    assert code in refused(adapter, tmp_path / "one", **more)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"target_modules": r"model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"},
        {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"q_proj": 1024}},
        {"lora_alpha": 10**6},
        {"r": 16, "rank_pattern": {".*": 8}},
        {"trainable_token_indices": [3, 600]},
    ],
)
def test_what_it_may_say(more: dict[str, Any], adapter: Path, tmp_path: Path) -> None:
    assert refused(adapter, tmp_path / "one", **more) == []

"""Which tensors are looked at: one of each kind in every load, spread over layers, chosen by the plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import loadkit
from loadkit.audit.sampling import SAMPLED, choose, kind_of
from loadkit.audit.verification import verifies_fully

Tiny = Callable[..., Path]
LAYERS = (16, 28, 32, 36, 48, 80)


def names(layers: int) -> list[str]:
    within = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm")
    decoder = [f"model.layers.{n}.{part}.weight" for n in range(layers) for part in within]
    return ["model.embed_tokens.weight", *decoder, "model.norm.weight", "lm_head.weight"]


@pytest.mark.parametrize("layers", [1, 2, *LAYERS])
def test_every_kind_is_looked_at(layers: int) -> None:
    every = names(layers)
    for seed in map(str, range(50)):
        chosen = choose(every, seed)
        assert len(chosen) == len(set(chosen)) == min(SAMPLED, len(every))
        assert {kind_of(name) for name in chosen} == {kind_of(name) for name in every}


def test_loads_differ_and_reach_every_tensor() -> None:
    every = names(32)
    seen = [frozenset(choose(every, str(seed))) for seed in range(200)]
    assert len(set(seen)) > 150
    assert frozenset().union(*seen) == set(every)
    assert choose(every, "a") == choose(every, "a")


def test_beginning_middle_and_end_are_looked_at() -> None:
    for seed in map(str, range(50)):
        layers = [int(n.split(".")[2]) for n in choose(names(48), seed) if ".layers." in n]
        parts = Counter(layer // 16 for layer in layers)
        assert min(parts[part] for part in range(3)) >= 3


def test_of_many_kinds_one_each() -> None:
    every = [f"tower.{chr(97 + i % 26)}{chr(97 + i // 26)}.0.weight" for i in range(100)]
    assert set(choose(every, "a")) == set(every)
    assert choose([], "a") == []


@pytest.mark.parametrize(
    ("name", "kind"), [("a.0.b.12.weight", "a.*.b.*.weight"), ("w1.3x", "w1.3x"), ("", "")]
)
def test_a_kind_has_no_numbers(name: str, kind: str) -> None:
    assert kind_of(name) == kind


pytestmark = pytest.mark.filterwarnings("ignore:.*isn't what was planned")


@pytest.fixture
def harm(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], bool]], None]:
    """Have `from_pretrained` give other values to the tensors whose name is chosen."""

    def harming(chosen: Callable[[str], bool]) -> None:
        real = transformers.AutoModelForCausalLM.from_pretrained

        def harms(*args: object, **kwargs: object) -> object:
            model, info = real(*args, **kwargs)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if chosen(name):
                        parameter.add_(1)
            return model, info

        monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", harms)

    return harming


SHAPE = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 64}  # fmt: skip


def found(folder: Path, **options: object) -> set[str]:
    loaded = loadkit.load(folder, processing_class="none", strict=False, **options)
    return {finding.code for finding in loaded.report.findings}


@pytest.mark.parametrize(
    "layers", [pytest.param(n, marks=() if n == 16 else pytest.mark.slow) for n in LAYERS]
)
def test_a_kind_that_is_replaced_is_caught_every_time(
    tiny: Tiny, harm: Callable[[Callable[[str], bool]], None], layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny("mistral", num_hidden_layers=layers, **SHAPE)
    with safe_open(next(folder.glob("*.safetensors")), framework="pt") as file:
        kinds = sorted({kind_of(name) for name in file.keys()})  # noqa: SIM118
    assert len(kinds) == 12
    for kind in kinds:
        with monkeypatch.context():
            harm(lambda name, kind=kind: kind_of(name) == kind)
            assert "other-values" in found(folder), kind
        monkeypatch.undo()


@pytest.mark.parametrize(
    "layers", [pytest.param(n, marks=() if n == 16 else pytest.mark.slow) for n in LAYERS]
)
def test_one_tensor_that_is_replaced_is_caught_by_a_full_comparison(
    tiny: Tiny, harm: Callable[[Callable[[str], bool]], None], layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny("mistral", num_hidden_layers=layers, **SHAPE)
    with safe_open(next(folder.glob("*.safetensors")), framework="pt") as file:
        every = sorted(file.keys())
    for name in every[:: max(1, len(every) // 6)]:
        harm(lambda each, name=name: each == name)
        assert "other-values" in found(folder, verify="full"), name
        monkeypatch.undo()


@pytest.mark.parametrize("profile", ["", "inference-4bit", "inference-8bit"])
@pytest.mark.parametrize("arch", ["mistral", "mixtral", "gemma3", "qwen2-tied"])
def test_all_of_a_model_that_is_right_is_compared(tiny: Tiny, arch: str, profile: str) -> None:
    """Experts that are stored one by one, renamed towers, tied heads, packed weights."""
    loaded = loadkit.load(tiny(arch), profile or None, verify="full", quantized_cache=False)
    assert not {f.code for f in loaded.report.findings} & {"other-values", "not-compared"}


@pytest.mark.parametrize("profile", [None, "inference-4bit", "inference-8bit"])
def test_the_last_row_counts_in_a_full_comparison(tiny: Tiny, tmp_path: Path, profile: str | None) -> None:
    """What is on disk differs from what was loaded in one row behind the ones that are sampled."""
    from loadkit.audit.weight_comparison import compare_with_files
    from loadkit.hooks.manager import default_manager

    folder = tiny("mistral", hidden_size=256)
    loaded = loadkit.load(folder, profile, quantized_cache=False)
    state = load_file(folder / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][-1].mul_(3)
    save_file(state, tmp_path / "other.safetensors", metadata={"format": "pt"})
    files, loading = [tmp_path / "other.safetensors"], loaded.report.loading
    (finding,) = compare_with_files(loaded.plan, files, loaded.model, default_manager(), loading, full=True)
    assert (finding.code, finding.severity) == ("other-values", "error")
    assert "model.layers.1.mlp.up_proj.weight" in finding.message


def test_an_expert_that_is_another_is_caught(
    tiny: Tiny, harm: Callable[[Callable[[str], bool]], None]
) -> None:
    """Experts are stored one by one, and stacked in the model."""
    harm(lambda name: name.endswith("1.mlp.experts.gate_up_proj"))
    with pytest.raises(
        loadkit.AuditError, match=r"experts.gate_up_proj, model.layers.1.block_sparse_moe.experts.0"
    ):
        loadkit.load(tiny("mixtral"), verify="full")


def test_who_asks_for_all() -> None:
    assert verifies_fully(None, {}) is False
    assert verifies_fully("full", {}) is verifies_fully(None, {"LOADKIT_VERIFY": " Full "}) is True
    assert verifies_fully("sample", {"LOADKIT_VERIFY": "full"}) is False
    with pytest.raises(loadkit.LoadkitError, match="did you mean 'full'"):
        verifies_fully(None, {"LOADKIT_VERIFY": "fulll"})


def test_what_cant_be_verified_is_refused_before(tiny: Tiny, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny("mistral"))
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(loadkit.PlanError, match="nothing-to-verify-with"):
        loadkit.plan(tmp_path, verify="full", use_safetensors=False)
    assert loadkit.plan(tiny("mistral"), verify="full").requested[0].name == "verify"

"""LoRA over experts on real models: in the activations, over packed and plain stacks, in PEFT's files."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from zoo.sweeping import make

import loadkit
from loadkit.audit.audit import audit_settings
from loadkit.hooks.manager import default_manager
from loadkit_plugins.adapter import adapted_weight, parameters

Made = Callable[[str], Path]
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
IDS = torch.arange(18).view(2, 9) * 7 % 61 + 6


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    home = tmp_path_factory.mktemp("experts")

    def one(model_type: str) -> Path:
        if not (home / model_type).is_dir():
            assert make(model_type, home / model_type) == ""
        return home / model_type

    return one


def stirred(model: Any, name: str = "default") -> Any:
    """The model with an adapter that does something."""
    generator = torch.Generator().manual_seed(0)
    for path, parameter in model.named_parameters():
        if ".lora_" in path and name in path.split("."):
            parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.1).to(parameter.dtype)
    return model


def bare(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found.float()


def off(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def found(loaded: loadkit.Loaded) -> str:
    """What the audit of a model's settings finds."""
    errors, _ = audit_settings(loaded.plan, loaded.model, loaded.processing_class, default_manager())
    return " ".join(error.message for error in errors)


# --- The arithmetic


@pytest.mark.parametrize(
    ("model_type", "implementation"),
    [
        *((kind, each) for kind in ("mixtral", "gpt_oss") for each in ("eager", "grouped_mm", "batched_mm")),
        ("jetmoe", None),
    ],
)
def test_it_is_what_peft_adds_to_the_weights(made: Made, model_type: str, implementation: str | None) -> None:
    """Stacks with outputs first, with inputs first, and by classes that no implementation chooses for."""
    targets = EXPERTS if model_type != "jetmoe" else ["input_linear.weight", "output_linear.weight"]
    base = bare(made(model_type), experts_implementation=implementation)
    fields: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": [], "target_parameters": targets}
    theirs = stirred(peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**fields)))
    config = peft.LoraConfig(**fields)
    parameters.use_activations(config)
    ours = stirred(peft.get_peft_model(base, config))
    assert set(peft.get_peft_model_state_dict(ours)) == set(peft.get_peft_model_state_dict(theirs))
    results = []
    for model in (theirs.train(), ours.train()):
        out = model(input_ids=IDS, labels=IDS)
        out.loss.backward()
        trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        results.append((out.logits.detach(), trained))
    (logits_of_peft, peft_gradients), (our_logits, gradients) = results
    assert off(our_logits, logits_of_peft) < 1e-5
    assert peft_gradients.keys() == gradients.keys()
    assert all(off(gradients[name], peft_gradients[name]) < 1e-4 for name in gradients)
    with ours.disable_adapter(), theirs.disable_adapter():
        assert torch.equal(logits(ours), logits(theirs))
        assert not torch.equal(logits(ours), our_logits)


def stack(dense: torch.Tensor, *, rank: int = 3) -> tuple[Any, torch.Tensor]:
    """An adapted weight, and the tensor that it stands for."""
    generator = torch.Generator().manual_seed(1)
    *units, rows, columns = dense.shape
    left = torch.randn(*units, rows, rank, generator=generator, requires_grad=True)
    right = torch.randn(*units, rank, columns, generator=generator, requires_grad=True)
    factors = adapted_weight.Factors(left, right, 0.5, torch.nn.Identity())
    return adapted_weight.AdaptedWeight(dense, [factors, factors]), dense + left @ right


X, ONE = torch.randn(5, 8), torch.randn(8)
USES: dict[str, Callable[[Any], Any]] = {
    "linear of one": lambda w: torch.nn.functional.linear(X, w[1]),
    "linear with bias": lambda w: torch.nn.functional.linear(X, w[torch.tensor(2)], torch.ones(6)),
    "matmul": lambda w: X @ w[0].T,
    "from the left": lambda w: w[1] @ X.T,
    "mm": lambda w: torch.mm(X, w[2].t()),
    "method": lambda w: w[1].matmul(X.T),
    "a vector": lambda w: w[1] @ ONE,
    "batched": lambda w: torch.bmm(w[torch.tensor([2, 0, 2])], X[:3].unsqueeze(-1)),
    "turned and batched": lambda w: torch.bmm(X[:3].unsqueeze(1), w.transpose(-1, -2)),
    "grouped": lambda w: torch.nn.functional.grouped_mm(X.bfloat16(), w.transpose(-2, -1), offs=torch.tensor([2, 2, 5], dtype=torch.int32)),
    "fallback": lambda w: torch.ops.transformers.grouped_mm_fallback(X, w.transpose(-2, -1), offs=torch.tensor([1, 3, 5])),
    "einsum": lambda w: torch.einsum("si,eoi->seo", X, w),
    "unbound": lambda w: torch.stack([X @ each.mT for each in w]),
    "cut": lambda w: X @ w[1].chunk(2, dim=0)[1].T,
    "sliced": lambda w: X @ w[1:][0].T,
    "written out": lambda w: (w * 2).sum(0),
    "in float32": lambda w: X @ w[1].float().T,
    "shape": lambda w: torch.tensor(w.shape) + w.ndim + w.size(-1) + w.dim(),
}  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_an_adapted_weight_is_base_and_delta_whatever_is_done_with_it(use: str) -> None:
    dtype = torch.bfloat16 if use == "grouped" else torch.float32
    dense = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(2))
    if use == "grouped":
        dense = torch.randn(3, 16, 8).to(dtype)
        weight, whole = stack(dense, rank=8)
        weight.factors = tuple(
            adapted_weight.Factors(f.left.to(dtype), f.right.to(dtype), f.scale, f.dropout)
            for f in weight.factors
        )
    else:
        weight, whole = stack(dense)
    result, wanted = USES[use](weight), USES[use](whole.to(dtype))
    assert result.shape == wanted.shape
    assert torch.allclose(result.float(), wanted.float(), atol=0.3 if use == "grouped" else 1e-4)
    if use != "shape":
        result.float().sum().backward()
        assert use == "grouped" or all(each.left.grad.abs().max() > 0 for each in weight.factors)


def test_a_flat_stack_is_seen_as_one_of_matrices() -> None:
    dense = torch.randn(6, 8)
    weight, whole = stack(dense)
    found = torch.stack([X @ weight.view(3, 2, 8)[unit].T for unit in range(3)])
    assert torch.allclose(found, torch.stack([X @ each.T for each in whole.view(3, 2, 8)]), atol=1e-5)
    assert torch.allclose(X @ weight.reshape(2, 24).unsqueeze(0)[0][:, :8].T, X @ whole.reshape(2, 24)[:, :8].T, atol=1e-5)  # fmt: skip


# --- Loaded


def trained(model: Any) -> dict[str, torch.Tensor]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("profile", ["lora", "qlora", "qlora-8bit"])
@pytest.mark.parametrize("model_type", ["qwen3_moe", "deepseek_v2", "gpt_oss"])
def test_files_are_pefts_own(made: Made, tmp_path: Path, model_type: str, profile: str) -> None:
    """Saved over a packed base, loaded by plain PEFT over the plain one; and again by loadkit, bit for bit.

    In float32: with weights like these, where tokens go hangs on the last bit of 16.
    """
    folder, usual = made(model_type), {"dtype": "float32"}
    loaded = loadkit.load(folder, profile, lora_experts=True, lora_r=4, **usual)
    assert loaded.report.findings == ()
    model = stirred(loaded.model)
    assert any(".experts." in name for name in trained(model))
    assert not any(
        "router" in name or name.endswith(".gate.lora_A.default.weight") for name in trained(model)
    )
    model.save_pretrained(tmp_path / "saved")
    before = logits(model)
    plain = peft.PeftModel.from_pretrained(bare(folder), tmp_path / "saved")
    assert off(logits(plain), before) < (1e-4 if profile == "lora" else 0.6)  # the rounding of the base
    with plain.disable_adapter():
        assert off(logits(plain), before) > 1
    theirs, ours = (peft.get_peft_model_state_dict(m) for m in (plain, model))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name].to(ours[name].dtype), ours[name]) for name in ours)
    again = loadkit.load(tmp_path / "saved", profile, **usual)
    assert again.report.findings == ()
    assert torch.equal(logits(again.model), before)
    assert trained(again.model).keys() == trained(model).keys()
    if profile != "lora":  # equal to plain PEFT over what the codes stand for
        base = copy.deepcopy(model).unload()
        base.dequantize(torch.float32)
        widened = peft.PeftModel.from_pretrained(base, tmp_path / "saved")
        rounded = 0.02 if profile == "qlora-8bit" else 1e-4  # LLM.int8() rounds the inputs of linear layers
        assert off(logits(widened), before) < rounded


@pytest.mark.parametrize("model_type", ["mixtral", "deepseek_v2"])
def test_attention_and_dense_layers_keep_their_dropout(made: Made, model_type: str) -> None:
    rates: dict[bool, set[float]] = {}
    for experts in (False, True):
        loaded = loadkit.load(made(model_type), "qlora", lora_experts=experts)
        assert not found(loaded)
        layers = [m for m in loaded.model.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
        rates[experts] = {layer.lora_dropout["default"].p for layer in layers}
        assert loaded.plan.memory is not None
        held = sum(p.nbytes for n, p in loaded.model.named_parameters() if ".lora_" in n)
        assert loaded.plan.memory.adapters == held
        layer = next(m for m in layers if "ParamWrapper" in type(m).__name__ or not experts)
        layer.lora_dropout["default"].p = 0.3
        assert "lora_dropout" in found(loaded)
    assert rates == {False: {0.05}, True: {0.05}}


@pytest.mark.parametrize("experts", [False, True])
def test_a_class_that_has_the_word_linear_in_its_name_is_no_layer(made: Made, experts: bool) -> None:
    """Every class of kimi_linear's has."""
    loaded = loadkit.load(made("kimi_linear"), "qlora", lora_experts=experts)
    assert loaded.report.findings == ()
    names = {name.partition(".lora_A")[0].rpartition(".")[2] for name in trained(loaded.model)}
    assert {"f_a_proj", "kv_b_proj", "q_proj"} <= names
    assert not {"o_norm", "norm", "mlp", "self_attn", "input_layernorm"} & names
    assert ("experts" in names) == experts


def test_one_experts_lora_is_no_others(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: the factors of the neighbour."""
    loaded = loadkit.load(made("mixtral"), "qlora", lora_experts=True, lora_r=4)
    model = stirred(loaded.model)
    base = copy.deepcopy(model).unload()
    base.dequantize(torch.bfloat16)
    plain = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], target_parameters=EXPERTS))  # fmt: skip
    peft.set_peft_model_state_dict(plain, peft.get_peft_model_state_dict(model))
    wanted = logits(plain)
    assert off(logits(model), wanted) < 0.03
    own = adapted_weight.Factors.of
    monkeypatch.setattr(
        adapted_weight.Factors,
        "of",
        lambda self, key: own(self, (key + 1) % 4 if isinstance(key, int) else key),
    )
    assert off(logits(model), wanted) > 0.1


@pytest.mark.parametrize("reentrant", [True, False, None])
def test_every_expert_that_was_hit_learns(made: Made, reentrant: bool | None) -> None:
    """With and without checkpointing of both kinds, to the same gradients."""
    options: dict[str, Any] = {"gradient_checkpointing": False}
    if reentrant is not None:
        options = {"gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    loaded = loadkit.load(
        made("qwen3_moe"), "qlora", lora_experts=True, lora_r=4, lora_dropout=0.0, **options
    )
    model = stirred(loaded.model).train()
    hit: list[set[int]] = []
    for module in model.modules():
        if type(module).__name__ == "Qwen3MoeExperts":
            module.register_forward_pre_hook(lambda m, args: hit.append(set(args[1].unique().tolist())))
    model(input_ids=IDS[:, :2], labels=IDS[:, :2]).loss.backward()
    layers = [m for m in model.modules() if isinstance(m, parameters.ParamWrapper)]
    for number, layer in enumerate(layers):  # two to a layer of the model
        gradient = layer.lora_A["default"].weight.grad.view(4, 4, -1).abs().amax((1, 2))
        assert {e for e in range(4) if gradient[e] > 0} == hit[number // 2]
    key = "layers.0.mlp.experts.base_layer.lora_B.default.weight"
    got = next(p.grad for n, p in model.named_parameters() if n.endswith(key))
    first = REFERENCE.setdefault("gradient", got)
    assert off(got.float(), first.float()) < 1e-2


REFERENCE: dict[str, torch.Tensor] = {}


def test_several_adapters_and_one_beneath(made: Made, tmp_path: Path) -> None:
    folder = made("deepseek_v2")
    for name, seed in (("one", 0), ("two", 1)):
        model = loadkit.load(folder, "qlora", lora_experts=True, lora_r=4).model
        stirred(model)
        for parameter in trained(model).values():
            parameter.data *= 1 + seed
        model.save_pretrained(tmp_path / name)
    both = loadkit.load(folder, "qlora", adapter={n: str(tmp_path / n) for n in ("one", "two")})
    assert both.report.findings == ()
    first = logits(both.model)
    both.model.set_adapter("two")
    second = logits(both.model)
    alone = [logits(loadkit.load(tmp_path / name, "qlora").model) for name in ("one", "two")]
    assert torch.equal(first, alone[0])
    assert torch.equal(second, alone[1])
    over = loadkit.load(folder, "qlora", adapter=str(tmp_path / "one"), new_adapter=True, lora_experts=True, lora_r=4)  # fmt: skip
    assert over.report.findings == ()
    assert off(logits(over.model), first) < 0.02  # a new one starts with nothing
    assert all("new" in name.split(".") for name in trained(over.model))


def test_the_reference_of_dpo_has_no_adapters(made: Made) -> None:
    loaded = loadkit.load(made("mixtral"), "qlora", lora_experts=True)
    stirred(loaded.model)
    reference = loaded.reference()
    with loaded.model.disable_adapter():
        assert torch.equal(logits(reference), logits(loaded.model))
    assert not torch.equal(logits(reference), logits(loaded.model))


def test_it_is_copied_and_pickled(made: Made) -> None:
    model = stirred(loadkit.load(made("deepseek_v2"), "qlora", lora_experts=True).model)
    before = logits(model)
    assert torch.equal(logits(copy.deepcopy(model)), before)
    layers = [m for m in model.modules() if type(m).__name__ == "ParamWrapper"]
    for layer in (layers[0], layers[-1]):
        again = pickle.loads(pickle.dumps(layer))
        assert type(again) is type(layer)


def test_merging_is_into_values_alone(made: Made, tmp_path: Path) -> None:
    folder = made("qwen3_moe")
    model = stirred(loadkit.load(folder, "qlora", lora_experts=True, lora_r=4).model)
    model.save_pretrained(tmp_path / "saved")
    before = logits(model)
    layers = [m for m in model.modules() if isinstance(m, parameters.ParamWrapper)]
    for layer in layers:
        with pytest.raises(ValueError, match="Merge it into the unquantized base"):
            layer.merge()
    assert torch.equal(logits(model), before)
    usual = {"dtype": "float32"}
    plain = loadkit.load(tmp_path / "saved", **usual)
    merged = loadkit.load(tmp_path / "saved", merge_adapter=True, **usual)
    assert off(logits(merged.model), logits(plain.model)) < 1e-4
    widened = loadkit.load(tmp_path / "saved", "inference-4bit", merge_adapter=True, dequantize=True, **usual)
    four = loadkit.load(tmp_path / "saved", "inference-4bit", **usual)
    assert off(logits(widened.model), logits(four.model)) < 0.01

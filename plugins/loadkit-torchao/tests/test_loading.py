"""Real loads of tiny checkpoints: equal to plain transformers, close to the unquantized model, audited."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loadkit
from loadkit import PluginManager

torch = pytest.importorskip("torch")
pytest.importorskip(
    "torchao",
    reason="torchao isn't installed: pip install torchao to test loadkit-torchao",
    exc_type=ImportError,
)
transformers = pytest.importorskip("transformers")

Tiny = Callable[[str], Path]
ARCHITECTURES = ("mistral", "qwen2-tied", "gemma3")
GROUPS = (None, 32)
PROFILE = "inference-int8-torchao"

CLOSE = 0.04
"""Most that a logit may be off, as a share of the largest (measured: 0.006 to 0.028)."""

MOST_OFF = 0.01


def load(folder: Path, manager: PluginManager, group: int | None = None, **options: Any) -> loadkit.Loaded:
    more = {} if group is None else {"torchao_group_size": group}
    return loadkit.load(folder, PROFILE, plugin_manager=manager, **more, **options)


def plain(folder: Path, arch: str, group: int | None = None, **more: Any) -> Any:
    """What a user of transformers would write."""
    from torchao.quantization import Int8WeightOnlyConfig
    from torchao.quantization.granularity import PerGroup, PerRow

    kind = Int8WeightOnlyConfig(granularity=PerRow() if group is None else PerGroup(group))
    auto = transformers.AutoModelForImageTextToText if arch == "gemma3" else transformers.AutoModelForCausalLM
    return auto.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=transformers.TorchAoConfig(kind, **more)
    ).eval()


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 37)[None]).logits.float()


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_it_loads_what_plain_transformers_loads(
    tiny: Tiny, manager: PluginManager, arch: str, group: int | None
) -> None:
    loaded = load(tiny(arch), manager, group)
    assert loaded.report.findings == ()
    theirs = plain(tiny(arch), arch, group)
    assert torch.equal(logits(loaded.model), logits(theirs))
    packed = {
        name: parameter
        for name, parameter in theirs.named_parameters()
        if type(parameter).__name__ == "Int8Tensor"
    }
    ours = dict(loaded.model.named_parameters())
    assert len(packed) >= 14
    for name, parameter in packed.items():
        assert torch.equal(ours[name].qdata, parameter.qdata), name
        assert torch.equal(ours[name].scale, parameter.scale), name


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_it_is_close_to_the_unquantized_model(
    tiny: Tiny, manager: PluginManager, arch: str, group: int | None
) -> None:
    whole = loadkit.load(tiny(arch), "inference", plugin_manager=manager)
    expected, found = logits(whole.model), logits(load(tiny(arch), manager, group).model)
    gap = float((expected - found).abs().max() / expected.abs().max())
    assert 0 < gap < CLOSE


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("arch", [*ARCHITECTURES, "t5", "mixtral", "llava"])
def test_the_estimate_is_what_is_loaded(
    tiny: Tiny, manager: PluginManager, arch: str, group: int | None
) -> None:
    loaded = load(tiny(arch), manager, group)
    memory, measured = loaded.plan.memory, loaded.report.measurements
    assert memory is not None
    tensors = [*loaded.model.buffers()]
    for parameter in loaded.model.parameters():
        if type(parameter).__name__ == "Int8Tensor":
            tensors += [parameter.qdata, parameter.scale, parameter.zero_point]
        else:
            tensors.append(parameter)
    real = sum(t.numel() * t.element_size() for t in tensors)
    assert measured.footprint == real
    assert abs(memory.model - real) <= MOST_OFF * real
    assert memory.unquantized == measured.unquantized
    packed = [p for p in loaded.model.parameters() if type(p).__name__ == "Int8Tensor"]
    assert memory.quantized == sum(p.qdata.nbytes for p in packed)
    assert memory.constants == sum(p.scale.nbytes + p.zero_point.nbytes for p in packed)


def test_the_weights_are_counted_as_they_were(tiny: Tiny, manager: PluginManager) -> None:
    whole = loadkit.load(tiny("mistral"), "inference", plugin_manager=manager)
    packed = load(tiny("mistral"), manager)
    assert packed.report.measurements.parameters == whole.report.measurements.parameters
    assert packed.report.measurements.footprint < 0.8 * whole.report.measurements.footprint


def test_a_layer_that_stays_in_float32_is_quantized_from_there(tiny: Tiny, manager: PluginManager) -> None:
    """T5 keeps `wo` in float32 beside float16 weights."""
    loaded = load(tiny("t5"), manager, dtype="float16")
    assert loaded.report.findings == ()
    dtypes = {n: p.dtype for n, p in loaded.model.named_parameters() if type(p).__name__ == "Int8Tensor"}
    assert {n.split(".")[-2] for n, dtype in dtypes.items() if dtype == torch.float32} == {"wo"}


def test_skip_modules_add_to_the_automatic_ones(tiny: Tiny, manager: PluginManager) -> None:
    loaded = load(tiny("mistral"), manager, skip_modules=["q_proj", "layers.1.mlp.up_proj"])
    kinds = {name: type(p).__name__ for name, p in loaded.model.named_parameters()}
    left = {name for name, kind in kinds.items() if "_proj" in name and kind == "Parameter"}
    assert left == {
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
    }
    assert kinds["lm_head.weight"] == "Parameter"
    assert loaded.report.findings == ()
    assert loaded.plan.memory is not None
    assert loaded.plan.memory.unquantized == loaded.report.measurements.unquantized
    assert loaded.plan.memory.unquantized["skipped"] == 2 * (2 * 64 * 64 + 64 * 128)


def test_a_config_object_is_taken_as_it_is(tiny: Tiny, manager: PluginManager) -> None:
    from torchao.quantization import Int8WeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    config = transformers.TorchAoConfig(
        Int8WeightOnlyConfig(granularity=PerGroup(32)), modules_to_not_convert=["q_proj"]
    )
    loaded = loadkit.load(tiny("mistral"), quantization_config=config, plugin_manager=manager)
    assert loaded.plan.quantization is not None
    assert loaded.plan.quantization.options == {"quant_type": "int8_weight_only", "group_size": 32}
    assert loaded.plan.quantization.skip_modules == ("q_proj",)
    kinds = {n: type(p).__name__ for n, p in loaded.model.named_parameters()}
    assert kinds["model.layers.0.self_attn.q_proj.weight"] == kinds["lm_head.weight"] == "Parameter"
    assert kinds["model.layers.0.self_attn.k_proj.weight"] == "Int8Tensor"


def test_an_adapter_trains_over_int8(tiny: Tiny, manager: PluginManager) -> None:
    loaded = loadkit.load(
        tiny("mistral"), "lora", torchao_quant_type="int8_weight_only", plugin_manager=manager
    )
    assert loaded.report.findings == ()
    ids = torch.arange(5, 37)[None]
    loaded.model(input_ids=ids, labels=ids).loss.backward()
    reached = {n for n, p in loaded.model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert reached
    assert all("lora_" in name for name in reached)
    kinds = {type(m).__name__ for m in loaded.model.modules()}
    assert "TorchaoLoraLinear" in kinds
    assert loaded.report.workarounds == ()  # bitsandbytes' aren't needed


def test_a_reference_shares_the_quantized_weights(tiny: Tiny, manager: PluginManager) -> None:
    loaded = load(tiny("mistral"), manager)
    reference = loaded.reference(trained_in_full=False)
    name = "model.layers.0.self_attn.q_proj.weight"
    ours, theirs = loaded.model.get_parameter(name), reference.get_parameter(name)
    assert theirs.qdata.data_ptr() == ours.qdata.data_ptr()
    assert torch.equal(logits(reference), logits(loaded.model))


def test_the_manifest_has_torchao(tiny: Tiny, manager: PluginManager) -> None:
    loaded = load(tiny("mistral"), manager)
    plugins = {**loaded.plan.plugins, "torchao": "torchao 0.18"}  # as if installed by an entry point
    import msgspec

    plan = msgspec.structs.replace(loaded.plan, plugins=plugins)
    manifest = loadkit.Loaded(loaded.model, None, plan, loaded.report).manifest()
    import torchao

    assert manifest.libraries["torchao"] == torchao.__version__.split("+")[0]
    assert not any("bitsandbytes" in line for line in manifest.workarounds)


class Mutant:
    """A loader that does something else than was planned."""

    def __init__(self, make: Callable[[loadkit.Plan], Any]) -> None:
        self.make = make

    @loadkit.hookimpl
    def loadkit_load_model(self, plan: loadkit.Plan) -> Any:
        model = self.make(plan)
        model.config.use_cache = plan.use_cache
        return model


def changed(by: Callable[[Any], Any]) -> Callable[[loadkit.Plan], Any]:
    def make(plan: loadkit.Plan) -> Any:
        model = plain(Path(plan.checkpoint.location), "mistral")
        with torch.no_grad():
            by(model.get_parameter("model.layers.0.self_attn.q_proj.weight"))
        return model

    return make


def whole(plan: loadkit.Plan) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(plan.checkpoint.location, dtype=torch.bfloat16)


MUTANTS: dict[str, tuple[Callable[[loadkit.Plan], Any], set[str]]] = {
    "not quantized": (whole, {"not-quantized"}),
    "other groups": (
        lambda plan: plain(Path(plan.checkpoint.location), "mistral", 32),
        {"group-size"},  # its values are right for its groups
    ),
    "one layer left": (
        lambda plan: _one_left(Path(plan.checkpoint.location)),
        {"layers-left"},
    ),
    "another code": (changed(lambda p: p.qdata[0, 0].add_(1)), {"other-values"}),
    "another scale": (changed(lambda p: p.scale[0].mul_(2)), {"other-values"}),
    "a layer that computes in float32": (
        lambda plan: _in_float32(Path(plan.checkpoint.location)),
        {"compute-dtype", "other-values"},
    ),
    "an infinite scale": (changed(lambda p: p.scale[0].fill_(float("inf"))), {"other-values", "scales-not-finite"}),
}  # fmt: skip


def _in_float32(folder: Path) -> Any:
    from torchao.quantization import Int8Tensor

    model = plain(folder, "mistral")
    layer = model.get_submodule("model.layers.1.mlp.up_proj")
    old = layer.weight
    new = Int8Tensor(old.qdata, old.scale, old.block_size, torch.float32, zero_point=old.zero_point)
    layer.weight = torch.nn.Parameter(new, requires_grad=False)
    return model


def _one_left(folder: Path) -> Any:
    model = plain(folder, "mistral")
    layer = model.get_submodule("model.layers.1.mlp.up_proj")
    layer.weight = torch.nn.Parameter(layer.weight.dequantize(), requires_grad=False)
    from safetensors.torch import load_file

    layer.weight.data.copy_(load_file(folder / "model.safetensors")["model.layers.1.mlp.up_proj.weight"])
    return model


@pytest.mark.parametrize("name", MUTANTS)
def test_the_audit_catches(tiny: Tiny, manager: PluginManager, name: str) -> None:
    make, codes = MUTANTS[name]
    manager.register(Mutant(make), "aaa-mutant")
    with pytest.raises(loadkit.AuditError) as caught:
        load(tiny("mistral"), manager)
    assert {f.code for f in caught.value.findings if f.severity == "error"} == codes


def test_the_audit_has_nothing_against_a_loader_that_does_as_planned(
    tiny: Tiny, manager: PluginManager
) -> None:
    manager.register(Mutant(lambda plan: plain(Path(plan.checkpoint.location), "mistral")), "aaa-same")
    assert load(tiny("mistral"), manager).report.findings == ()

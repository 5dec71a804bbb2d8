"""The rules, on facts: nothing of torch or torchao is needed to plan."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loadkit
from loadkit import Accelerator, Machine, PluginManager

PACKAGES = {"torch": "2.13.0", "transformers": "5.23.0", "bitsandbytes": "0.50.2", "peft": "0.21.2", "torchao": "0.18.0"}  # fmt: skip
CPU = Machine(memory=2**34, packages=PACKAGES)
HERE = Path(__file__).parent.parent


def gpu(capability: tuple[int, int]) -> Machine:
    card = Accelerator(kind="cuda", name="a card", capability=capability, memory=2**34)
    return Machine(accelerators=(card,), memory=2**34, packages=PACKAGES)


H100, T4 = gpu((9, 0)), gpu((7, 5))
Tiny = Callable[[str], Path]


def plan(tiny: Tiny, manager: PluginManager, arch: str = "mistral", profile: str | None = None, **options: Any) -> loadkit.Plan:  # fmt: skip
    return loadkit.plan(
        tiny(arch), profile, plugin_manager=manager, machine=options.pop("machine", CPU), **options
    )


def problems(*args: Any, **options: Any) -> dict[str, loadkit.Problem]:
    with pytest.raises(loadkit.PlanError) as caught:
        plan(*args, **options)
    return {p.code: p for p in caught.value.problems}


def test_it_abstains_unless_asked(tiny: Tiny, manager: PluginManager) -> None:
    assert plan(tiny, manager).quantization is None
    four = plan(tiny, manager, load_in_4bit=True)
    assert four.why("quantization").plugin == "bitsandbytes"
    assert four.why("quantization").instead_of == ()


@pytest.mark.parametrize(("group", "said"), [(None, "a scale a row"), (32, "a scale for every 32 weights")])
def test_the_claim_says_what_and_why(
    tiny: Tiny, manager: PluginManager, group: int | None, said: str
) -> None:
    more = {} if group is None else {"torchao_group_size": group}
    made = plan(tiny, manager, profile="inference-int8-torchao", **more)
    quantization, decision = made.quantization, made.why("quantization")
    assert quantization is not None
    assert (quantization.method, quantization.bits) == ("torchao", 8)
    assert quantization.options == {"quant_type": "int8_weight_only", "group_size": group}
    assert decision.because.startswith("profile 'inference-int8-torchao' prefers it")
    assert said in decision.because
    assert loadkit.Plan.from_json(made.to_json()) == made


def test_your_wish_wins_over_the_profile_of_another_quantizer(tiny: Tiny, manager: PluginManager) -> None:
    mine = plan(tiny, manager, profile="inference-8bit", torchao_quant_type="int8_weight_only")
    assert mine.why("quantization").plugin == "torchao"
    assert [o.plugin for o in mine.why("quantization").instead_of] == ["bitsandbytes"]
    other = plan(tiny, manager, profile="inference-int8-torchao", load_in_4bit=True)
    assert other.why("quantization").plugin == "bitsandbytes"


@pytest.mark.parametrize("theirs", [{"load_in_4bit": True}, {"load_in_8bit": True}])
def test_two_demands_are_a_conflict_with_a_choice(
    tiny: Tiny, manager: PluginManager, theirs: dict[str, Any]
) -> None:
    found = problems(tiny, manager, torchao_quant_type="int8_weight_only", **theirs)
    assert list(found) == ["conflict"]
    told = found["conflict"]
    assert "'bitsandbytes' says" in told.message
    assert "'torchao' says" in told.message
    name = next(iter(theirs))
    assert f"keep one of {name}=True, torchao_quant_type='int8_weight_only'" in told.remedy
    assert "LOADKIT_DISABLE=torchao (or bitsandbytes)" in told.remedy


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"torchao_group_size": 32}, "setting-without-quantization", "torchao_quant_type=…"),
        ({"torchao_group_size": 32, "load_in_4bit": True}, "setting-without-quantization", "bitsandbytes"),
        ({"torchao_quant_type": "int8_weight_only", "torchao_group_size": 48}, "group-size", "down_proj"),
        ({"torchao_quant_type": "int8_weight_only", "torchao_group_size": 0}, "group-size", "leave it out"),
        ({"torchao_quant_type": "int8"}, "bad-choice", "int8_weight_only"),
        ({"torchao_quant_type": "int8_weight_only", "training": True}, "int8-training-in-full", "adapter=True"),
        ({"torchao_quant_type": "int8_weight_only", "skip_modules": ["q_prj"]}, "skip-matches-nothing", "q_proj"),
        ({"torchao_quant_type": "int4_weight_only"}, "int4-needs-cuda", "int8_weight_only"),
        ({"quantization_config": {"quant_method": "torchao", "quant_type": {"default": {"_type": "Float8WeightOnlyConfig"}}}}, "torchao-config-unknown", "Float8WeightOnlyConfig"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    tiny: Tiny, manager: PluginManager, options: dict[str, Any], code: str, words: str
) -> None:
    told = problems(tiny, manager, **options)[code]
    assert words in f"{told.message} {told.remedy}"


def test_a_missing_package_is_told(tiny: Tiny, manager: PluginManager) -> None:
    bare = Machine(memory=2**34, packages={k: v for k, v in PACKAGES.items() if k != "torchao"})
    found = problems(tiny, manager, profile="inference-int8-torchao", machine=bare)
    assert list(found) == ["no-torchao"]


def test_adapters_over_its_layers_need_peft_0_19(tiny: Tiny, manager: PluginManager) -> None:
    asked = {"torchao_quant_type": "int8_weight_only", "profile": "lora"}
    for version, refused in (("0.18.1", True), ("0.19.0", False)):
        machine = Machine(memory=2**34, packages={**PACKAGES, "peft": version})
        if refused:
            found = problems(tiny, manager, machine=machine, **asked)
            assert "0.18.1 is installed" in found["torchao-needs-peft"].message
        else:
            assert plan(tiny, manager, machine=machine, **asked).adapters is not None


@pytest.mark.parametrize("engine", ["fsdp", "fsdp2", "zero3", "tensor-parallel"])
def test_sharding_engines_are_refused(tiny: Tiny, manager: PluginManager, engine: Any) -> None:
    topology = loadkit.Topology(world_size=8, engine=engine)
    found = problems(tiny, manager, torchao_quant_type="int8_weight_only", topology=topology)
    assert "torchao-with-sharding" in found


def test_int4_is_for_tensor_cores_in_bfloat16(tiny: Tiny, manager: PluginManager) -> None:
    options: dict[str, Any] = {"torchao_quant_type": "int4_weight_only", "torchao_group_size": 32}
    made = plan(tiny, manager, machine=H100, **options)
    assert made.quantization is not None
    assert made.quantization.options["int4_packing_format"] == "tile_packed_to_4d"
    assert made.dtype == "bfloat16"
    assert set(problems(tiny, manager, machine=T4, **options)) == {"int4-needs-sm80"}
    assert set(problems(tiny, manager, machine=H100, dtype="float16", **options)) == {"int4-needs-bfloat16"}
    assert set(problems(tiny, manager, machine=H100, **{**options, "torchao_group_size": 16})) == {"int4-group-size"}  # fmt: skip
    assert "int4-training" in problems(tiny, manager, profile="lora", machine=H100, **options)


def test_int4_takes_padded_bytes(tiny: Tiny, manager: PluginManager) -> None:
    """By torchao's source, rows are padded to 1024 inputs; a GPU that could prove it isn't here."""
    made = plan(tiny, manager, machine=H100, torchao_quant_type="int4_weight_only", torchao_group_size=32)
    layers = {"q": 64, "k": 32, "v": 32, "o": 64, "gate": 128, "up": 128, "down": 64}
    rows = 2 * sum(layers.values())
    assert made.memory is not None
    assert (made.memory.quantized, made.memory.constants) == (rows * 1024 // 2, rows * 1024 // 32 * 4)


def test_a_checkpoint_without_linear_layers_is_refused(tiny: Tiny, manager: PluginManager) -> None:
    assert set(problems(tiny, manager, "gpt2", "inference-int8-torchao")) == {"nothing-to-quantize"}


def test_a_checkpoint_stored_quantized_stays_so(tmp_path: Path, tiny: Tiny, manager: PluginManager) -> None:
    import json
    import shutil

    folder = Path(shutil.copytree(tiny("mistral"), tmp_path / "stored"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(loadkit.PlanError) as caught:
        loadkit.plan(folder, plugin_manager=manager, machine=CPU, torchao_quant_type="int8_weight_only")
    assert [p.code for p in caught.value.problems if p.plugin == "torchao"] == ["quantized-already"]


def test_planning_imports_neither_torch_nor_torchao(tiny: Tiny) -> None:
    code = (
        "import sys, loadkit; from loadkit_torchao import plugin; m = loadkit.PluginManager(environ={}); "
        "'torchao' in {p.name for p in m.plugins} or m.register(plugin, 'torchao'); "
        f"loadkit.plan({str(tiny('mistral'))!r}, 'inference-int8-torchao', plugin_manager=m, "
        "machine=loadkit.Machine(memory=2**34, packages={'torchao': '0.18', 'transformers': '5.23'})); "
        "print({'torch', 'torchao', 'transformers', 'bitsandbytes'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=_env()
    )
    assert done.stdout.strip() == "set()", done.stderr


def test_it_uses_the_public_api_only() -> None:
    for path in (HERE / "loadkit_torchao").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("loadkit"):
                public = node.module in ("loadkit", "loadkit.plugins")
                assert public or (node.module or "").startswith("loadkit_torchao"), path


def test_the_entry_point_names_the_plugin() -> None:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib comes with Python 3.11")
    import importlib

    import tomllib

    told = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))
    entry = told["project"]["entry-points"]["loadkit"]
    assert list(entry) == ["torchao"]
    assert hasattr(importlib.import_module(entry["torchao"]), "loadkit_choose_quantization")


def _env() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}

"""What the plugin says while planning: whose classes serve and why, and what it refuses."""

from __future__ import annotations

import ast
from pathlib import Path

import msgspec
import pytest

import loadkit
from loadkit_smollm3 import plugin

OURS = "loadkit_smollm3.modeling:SmolLM3ForCausalLM"
PACKAGE = Path(plugin.__file__).parent


def codes(caught) -> list[str]:
    return [problem.code for problem in caught.value.problems if problem.severity == "error"]


def test_transformers_serves_where_it_can_and_the_plan_says_why(make, manager) -> None:
    plan = loadkit.plan(make(), plugin_manager=manager)
    decision = plan.why("architecture")
    assert (plan.model_class.implementation, plan.model_class.auto_class) == (
        "transformers",
        "AutoModelForCausalLM",
    )
    assert decision.plugin == "smollm3"
    assert "its own serves unless smollm3_implementation='plugin'" in decision.because
    for task in ("causal-lm", "text"):
        assert loadkit.plan(make(), plugin_manager=manager, task=task).model_class == plan.model_class


@pytest.mark.parametrize("options", [{}, {"task": "causal-lm"}, {"task": "text"}])
def test_the_plugin_serves_on_demand(make, manager, options) -> None:
    plan = loadkit.plan(make(), plugin_manager=manager, smollm3_implementation="plugin", **options)
    decision = plan.why("architecture")
    assert (plan.model_class.model_class, plan.model_class.implementation) == (OURS, "plugin")
    assert (decision.plugin, decision.because) == ("smollm3", "you asked for it")
    assert [o.plugin for o in decision.instead_of] == ["architecture"]


def without_smollm3(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transformers that doesn't have it yet."""
    import loadkit.planning.pipeline

    real = loadkit.planning.pipeline.read_library

    def older(*args, **kwargs):
        library = real(*args, **kwargs)
        known = {k: v for k, v in library.config_classes.items() if k != "smollm3"}
        return msgspec.structs.replace(library, version="4.52.0", config_classes=known, families={})

    monkeypatch.setattr(loadkit.planning.pipeline, "read_library", older)


NOT_INSTALLED = pytest.mark.filterwarnings("ignore:LOADKIT_DISABLE names 'smollm3'")
"""It is left out by name, should it be installed."""


@NOT_INSTALLED
def test_the_plugin_serves_where_transformers_lacks_it(
    make, manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_smollm3(monkeypatch)
    with pytest.raises(loadkit.PlanError) as caught:
        loadkit.plan(make(), plugin_manager=loadkit.PluginManager(environ={"LOADKIT_DISABLE": "smollm3"}))
    assert codes(caught) == ["unknown-model-type"]
    loaded = loadkit.load(make(), "lora", plugin_manager=manager)
    decision = loaded.plan.why("architecture")
    assert (decision.plugin, loaded.plan.model_class.model_class) == ("smollm3", OURS)
    assert "transformers 4.52.0 has no 'smollm3'" in decision.because
    assert loaded.report.findings == ()
    with pytest.raises(loadkit.PlanError) as caught:
        loadkit.plan(make(), plugin_manager=manager, smollm3_implementation="transformers")
    assert codes(caught) == ["smollm3-implementation"]


@NOT_INSTALLED
def test_it_abstains_elsewhere(make, manager) -> None:
    bare = loadkit.PluginManager(environ={"LOADKIT_DISABLE": "smollm3"})
    theirs = loadkit.plan(make("mistral"), plugin_manager=manager)
    assert theirs.decisions == loadkit.plan(make("mistral"), plugin_manager=bare).decisions
    headed = loadkit.plan(make(), plugin_manager=manager, task="sequence-classification")
    assert headed.model_class.model_class == "SmolLM3ForSequenceClassification"


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        ("mistral", {"smollm3_implementation": "plugin"}, "of model type 'mistral'"),
        (
            "smollm3",
            {"smollm3_implementation": "plugin", "task": "sequence-classification"},
            "has a class for causal-lm only",
        ),
    ],
)
def test_a_demand_that_cannot_be_met_is_refused(make, manager, arch, options, message) -> None:
    with pytest.raises(loadkit.PlanError, match=message) as caught:
        loadkit.plan(make(arch), plugin_manager=manager, **options)
    assert "smollm3-implementation" in codes(caught)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_sliding_window": True, "sliding_window": 8, "layer_types": None}, "a sliding window"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "'dynamic'"),
    ],
)
def test_what_the_classes_lack_is_refused_while_planning(
    make, manager, edited, tmp_path: Path, fields, message
) -> None:
    folder = edited(make(), tmp_path / "edited", **fields)
    assert loadkit.plan(folder, plugin_manager=manager).model_class.implementation == "transformers"
    with pytest.raises(loadkit.PlanError, match=message) as caught:
        loadkit.plan(folder, plugin_manager=manager, smollm3_implementation="plugin")
    assert codes(caught) == ["smollm3-not-supported"]
    from loadkit_smollm3.configuration import SmolLM3Config

    with pytest.raises(ValueError, match="can't build this model"):
        SmolLM3Config.from_pretrained(folder)


def test_attention_is_that_of_the_classes_that_serve(make, manager) -> None:
    def plan(**options):
        return loadkit.plan(
            make(), plugin_manager=manager, machine=machine(), attn_implementation="flex_attention", **options
        )

    assert plan().attn_implementation == "flex_attention"
    with pytest.raises(loadkit.PlanError, match="not as block masks") as caught:
        plan(smollm3_implementation="plugin")
    assert codes(caught) == ["attention-unavailable"]
    chosen = loadkit.plan(make(), plugin_manager=manager, machine=machine(), smollm3_implementation="plugin")
    assert chosen.attn_implementation == "flash_attention_2"
    assert [link.value for link in chosen.why("attention").passed_over] == ["flash_attention_3"]


def machine(capability: tuple[int, int] = (9, 0)) -> loadkit.Machine:
    card = loadkit.Accelerator(kind="cuda", name="a card", memory=80 << 30, capability=capability)
    packages = {"torch": "2.13.0", "flash-attn": "2.8.3", "flash-attn-3": "3.0.0"}
    return loadkit.Machine(accelerators=(card,), memory=64 << 30, cores=8, packages=packages)


def test_a_dtype_is_claimed_where_nothing_says_one(make, manager, edited, tmp_path: Path) -> None:
    from loadkit.testing.checkpoints import make_pickle_only

    silent = edited(
        make_pickle_only(tmp_path / "pickled", make(dtype="float32")), tmp_path / "silent", dtype=None
    )

    def dtype(folder: Path, **options):
        plan = loadkit.plan(folder, plugin_manager=manager, allow_pickle=True, **options)
        return plan.dtype, plan.why("dtype").plugin

    assert dtype(silent) == ("bfloat16", "smollm3")
    assert dtype(silent, dtype="float32") == ("float32", "dtype")
    assert dtype(silent, dtype="auto")[1] == "dtype"
    assert dtype(tmp_path / "pickled") == ("float32", "dtype")  # its config says so
    assert dtype(edited(make(dtype="float32"), tmp_path / "headers", dtype=None)) == ("float32", "dtype")
    assert dtype(silent, machine=machine((7, 5)))[1] == "dtype"
    other = make_pickle_only(tmp_path / "other", make("mistral"))
    assert dtype(edited(other, tmp_path / "other-silent", dtype=None))[1] == "dtype"


def test_only_the_public_face_of_loadkit_is_used() -> None:
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not [name for name in names if name.startswith("loadkit.")], path.name

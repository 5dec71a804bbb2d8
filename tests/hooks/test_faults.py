"""Every hook gets a plugin that raises, answers nonsense, meddles or hangs: always attributed, never fatal to
what doesn't need it."""

from __future__ import annotations

import inspect
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loadkit
from loadkit import PluginManager, hookimpl
from loadkit.hooks import hookspecs
from loadkit.testing import Scenario, Subject, known_checks
from loadkit.testing.verdicts import run_one

Tiny = Callable[..., Path]
HOOKS = {name: spec for name, spec in vars(hookspecs).items() if name.startswith("loadkit_")}
DECLARING = (
    "loadkit_options",
    "loadkit_profiles",
    "loadkit_architectures",
    "loadkit_optimizers",
    "loadkit_accelerators",
    "loadkit_recipe_dialects",
)
LOADING = {
    # hook to what makes it be called
    "loadkit_build_quantization_config": {"profile": "inference-4bit"},
    "loadkit_load_model": {},
    "loadkit_shorten_loading": {"profile": "inference-4bit"},
    "loadkit_open_parameter": {"profile": "inference-4bit"},
    "loadkit_workarounds": {},
    "loadkit_decode_stored": {"profile": "inference-4bit"},
    "loadkit_compare_tensor": {"profile": "inference-4bit"},
    "loadkit_fit_vocabulary": {},
    "loadkit_dequantize": {
        "load_in_4bit": True,
        "merge_adapter": True,
        "dequantize": True,
        "adapter": "made",
    },
    "loadkit_prepare_quantized": {"profile": "qlora"},
    "loadkit_freeze": {"profile": "full", "trainable_dtype": "float32"},
    "loadkit_checkpoint_activations": {"profile": "full"},
    "loadkit_enable_input_gradients": {"profile": "qlora"},
    "loadkit_attach_adapters": {"profile": "lora"},
    "loadkit_merge_adapters": {"merge_adapter": True, "adapter": "made"},
    "loadkit_finish_model": {},
    "loadkit_audit_model": {},
    "loadkit_read_back": {},
    "loadkit_report_sections": {},
}


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources are asked only online, whatever the environment says of the Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def faulty(hook: str, act: Callable[[], Any]) -> object:
    """A plugin with one hook, which takes all that it may and does this."""
    names = ", ".join(inspect.signature(HOOKS[hook]).parameters)
    made: dict[str, Any] = {}
    exec(f"def {hook}(self{', ' + names if names else ''}):\n    return act()", {"act": act}, made)
    return type("Faulty", (), {**beside(hook), hook: hookimpl(made[hook])})()


def beside(hook: str) -> dict[str, Any]:
    """What a plugin with this hook has to have too."""

    def loadkit_announce_finish(self: object) -> loadkit.Finish:
        return loadkit.Finish(what="something", because="it is tried")

    def loadkit_finish_model(self: object, model: object) -> object:
        return model

    pair = {"loadkit_announce_finish": loadkit_announce_finish, "loadkit_finish_model": loadkit_finish_model}
    return {name: hookimpl(other) for name, other in pair.items() if hook in pair}


def boom() -> None:
    raise ZeroDivisionError("by nought")


def hang() -> None:
    """The time that the check may take is up as soon as the plugin hangs, and no sooner."""
    signal.setitimer(signal.ITIMER_REAL, 0.01, 1)
    time.sleep(10**6)


def attempt(hook: str, act: Callable[[], Any], tiny: Tiny, tmp_path: Path) -> loadkit.LoadkitError | None:
    """Register the plugin and do what calls its hook; what comes of it."""
    manager = PluginManager(environ={})
    options: dict[str, Any] = dict(LOADING.get(hook, {"profile": "qlora"}))
    try:
        manager.register(faulty(hook, act), "faulty")
        if options.get("adapter") == "made":
            from loadkit.testing.checkpoints import make_adapter

            options["adapter"] = str(make_adapter(tmp_path / "adapter", tiny("mistral")))
        call = loadkit.load if hook in LOADING else loadkit.plan
        source = "store://tiny" if hook == "loadkit_open_source" else tiny("mistral")
        call(source, plugin_manager=manager, **options)
    except loadkit.LoadkitError as error:
        return error
    return None


def test_every_hook_is_called_here() -> None:
    assert set(LOADING) <= set(HOOKS)
    planning = [name for name in HOOKS if name not in LOADING]
    assert all(
        n.startswith(("loadkit_choose_", "loadkit_estimate_"))
        or n
        in (
            *DECLARING,
            "loadkit_announce_finish",
            "loadkit_open_source",
            "loadkit_contribute_kwargs",
            "loadkit_shortcuts",
            "loadkit_check_plan",
        )
        for n in planning
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("hook", HOOKS)
def test_a_plugin_that_raises_is_named(hook: str, tiny: Tiny, tmp_path: Path) -> None:
    error = attempt(hook, boom, tiny, tmp_path)
    assert error is not None, "it wasn't called"
    assert "faulty" in str(error)
    assert "ZeroDivisionError: by nought" in str(error)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("hook", HOOKS)
def test_a_plugin_that_answers_nonsense_is_named(hook: str, tiny: Tiny, tmp_path: Path) -> None:
    error = attempt(hook, lambda: 5, tiny, tmp_path)
    assert error is not None, "nonsense went through"
    assert "faulty" in str(error)


ASKED = [name for name, spec in HOOKS.items() if "context" in inspect.signature(spec).parameters]
"""Hooks that see the facts."""
CHECKED = Scenario(name="asked for all", profile="qlora")


@pytest.mark.parametrize("hook", ASKED)
def test_a_plugin_that_mutates_is_caught(hook: str) -> None:
    """The facts are frozen but for the plain data in them, such as config.json; the kit tells who meddles
    with that."""
    made: dict[str, Any] = {}
    names = ", ".join(inspect.signature(HOOKS[hook]).parameters)
    exec(f"def {hook}(self, {names}):\n    context.checkpoint.config['tampered'] = True", made)
    meddling = type("Meddling", (), {**beside(hook), hook: hookimpl(made[hook])})
    subject = Subject("faulty", meddling(), ready=())
    (check,) = (c for c in known_checks() if c.code == "LK304")
    result = run_one(check, subject, [CHECKED])
    assert (result.verdict, result.plugin) == ("failed", "faulty")
    assert "the facts aren't what they were" in result.said


@pytest.mark.parametrize("hook", [name for name in HOOKS if name not in LOADING])
def test_a_plugin_that_hangs_is_caught(hook: str) -> None:
    """In the kit, past a stated time; the checks after it are tests/testing/test_hanging.py's."""
    subject = Subject("faulty", faulty(hook, hang), ready=())
    code = "LK213" if hook == "loadkit_open_source" else "LK205"
    (check,) = (c for c in known_checks() if c.code == code)
    result = run_one(check, subject, [CHECKED], timeout=100)
    assert (result.verdict, result.plugin) == ("failed", "faulty")
    assert f"it takes longer than 100 s: {hook} doesn't come back" in result.said


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "hook", ["loadkit_build_quantization_config", "loadkit_load_model", "loadkit_audit_model"]
)
def test_a_plugin_that_hangs_while_loading_is_caught(hook: str, tiny: Tiny) -> None:
    subject = Subject("faulty", faulty(hook, hang), ready=())
    (check,) = (c for c in known_checks() if c.code == "LK501")
    where = Scenario(name="loaded", checkpoint=str(tiny("mistral")), profile="inference-4bit")
    result = run_one(check, subject, [where], timeout=100)
    assert result.verdict == "failed"
    assert f"it takes longer than 100 s: {hook} doesn't come back" in result.said


def test_the_others_go_on_without_it(tiny: Tiny) -> None:
    """A broken plugin breaks what asks for it, once: left out, the same request is met."""
    manager = PluginManager(environ={})
    manager.register(faulty("loadkit_choose_dtype", boom), "faulty")
    with pytest.raises(loadkit.PlanError):
        loadkit.plan(tiny("mistral"), plugin_manager=manager)
    manager.unregister("faulty")
    assert loadkit.plan(tiny("mistral"), plugin_manager=manager).dtype == "bfloat16"

"""The plugin manager: what fits is registered, what doesn't is isolated, rolled back whole and named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest
from distributions import distribution
from examples import planned, problems

import loadkit
from loadkit import Claim, PluginError, PluginManager, Profile, hookimpl
from loadkit.hooks import hookspecs, manager


class Prefers:
    def __init__(self, value: str) -> None:
        self.value = value

    @hookimpl
    def loadkit_choose_dtype(self) -> Claim[str]:
        return Claim(value=self.value, because="the test says so")


class Misspelt:
    @hookimpl
    def loadkit_choose_dtpye(self) -> None:
        return None

    @hookimpl
    def loadkit_choose_dtype(self) -> Claim[str]:
        return Claim(value="float64", because="never")


class WantsTooMuch:
    @hookimpl
    def loadkit_choose_dtype(self, nonsense: str) -> None:
        return None


class Wraps:
    @hookimpl(wrapper=True)
    def loadkit_choose_dtype(self):
        return (yield)


class WrapsLoading:
    @hookimpl(wrapper=True)
    def loadkit_load_model(self):
        return (yield)


class Uninstalled(metadata.Distribution):
    """A distribution that there are only metadata of."""

    def __init__(self, name: str) -> None:
        self._text = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n"
        self.reads = 0

    def read_text(self, filename: str) -> str | None:
        self.reads += 1
        return self._text if filename == "METADATA" else None

    def locate_file(self, path: object) -> Path:
        raise NotImplementedError


def fake_entry_points(monkeypatch: pytest.MonkeyPatch, *found: tuple[str, object, str]) -> None:
    """Entry points of distributions that aren't installed: (name, plugin, distribution)."""
    points = []
    for number, (name, plugin, home) in enumerate(found):
        module = types.ModuleType(f"fake_plugin_{number}")
        module.plugin = plugin  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        value = f"{module.__name__}:plugin" if plugin is not None else "no_such_module_at_all"
        entry = metadata.EntryPoint(name, value, "loadkit")
        vars(entry)["dist"] = Uninstalled(home)
        points.append(entry)
    real = list(metadata.entry_points(group="loadkit"))
    monkeypatch.setattr(metadata, "entry_points", lambda group: [*real, *points])


def state(found: PluginManager, name: str) -> tuple[str, str]:
    return next((p.state, p.reason) for p in found.plugins if p.name == name)


def test_first_party_plugins_come_in_by_entry_point() -> None:
    found = PluginManager(environ={}).plugins
    assert {p.distribution for p in found} == {"loadkit"}
    assert {p.state for p in found} == {"active"}
    assert {"architecture", "dtype", "attention", "bitsandbytes", "device-map", "adapter"} <= {
        p.name for p in found
    }


def test_registering_by_hand_and_taking_back() -> None:
    found = PluginManager(environ={})
    found.register(Prefers("float32"), "mine")
    assert planned(manager=found).dtype == "float32"
    with pytest.raises(PluginError, match="registered already"):
        found.register(Prefers("float16"), "mine")
    found.unregister("mine")
    assert planned(manager=found).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("plugin", "words"),
    [
        (Misspelt(), "did you mean 'loadkit_choose_dtype'?"),
        (WantsTooMuch(), "nonsense"),
        (Wraps(), "can't be wrapped"),
        (object(), "implements no hook"),
    ],
)
def test_what_doesnt_fit_is_rolled_back_whole(plugin: object, words: str) -> None:
    found = PluginManager(environ={})
    with pytest.raises(PluginError) as caught:
        found.register(plugin, "wrong")
    assert words in str(caught.value)
    assert caught.value.plugin == "wrong"
    assert "wrong" not in {p.name for p in found.plugins}
    assert planned(manager=found).why("dtype").instead_of == ()


def test_loading_may_be_wrapped() -> None:
    found = PluginManager(environ={})
    found.register(WrapsLoading(), "wraps")
    assert state(found, "wraps") == ("active", "")


def test_a_broken_entry_point_disturbs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_entry_points(
        monkeypatch,
        ("gone", None, "gone-dist"),
        ("odd", Misspelt(), "odd-dist"),
        ("fine", Prefers("float32"), "fine-dist"),
    )
    found = PluginManager(environ={})
    assert state(found, "gone")[0] == state(found, "odd")[0] == "broken"
    assert "no_such_module_at_all" in state(found, "gone")[1]
    assert planned(manager=found).why("dtype").plugin == "fine"
    assert planned(manager=found).plugins["fine"] == "fine-dist 1.2"
    with pytest.raises(PluginError, match=r"'gone'.*LOADKIT_STRICT"):
        PluginManager(environ={"LOADKIT_STRICT": "1"})


def test_a_distribution_tells_its_name_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time, all of its metadata is parsed."""
    fake_entry_points(monkeypatch, ("one", Prefers("float32"), "home"))
    (*real, one) = metadata.entry_points(group="loadkit")
    home = one.dist
    assert isinstance(home, Uninstalled)
    PluginManager(environ={})
    asked, home.reads = home.reads, 0
    more = [metadata.EntryPoint(name, one.value, "loadkit") for name in ("two", "three")]
    for entry in more:
        vars(entry)["dist"] = home
    monkeypatch.setattr(metadata, "entry_points", lambda group: [*real, one, *more])
    assert {p.distribution for p in PluginManager(environ={}).plugins} == {"loadkit", "home"}
    assert home.reads == asked


def test_two_distributions_with_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_entry_points(
        monkeypatch, ("same", Prefers("float32"), "b-dist"), ("same", Prefers("float16"), "a-dist")
    )
    found = PluginManager(environ={})
    for name in ("same (a-dist)", "same (b-dist)"):
        assert state(found, name)[0] == "broken"
        assert "a-dist and b-dist" in state(found, name)[1]
    assert planned(manager=found).dtype == "bfloat16"


def test_two_installed_distributions_with_one_name(tmp_path: Path) -> None:
    """Real metadata, in a process of its own: both are broken and named, the plan goes on, strictness makes
    it an error."""
    plugin = "from loadkit import Claim, hookimpl\n\n@hookimpl\ndef loadkit_choose_dtype():\n    return Claim(value='float16', because='x')\n"
    places = [
        distribution(tmp_path / name, name, {f"lk_{name[-3:]}.py": plugin}, {"same": f"lk_{name[-3:]}"})
        for name in ("loadkit-one", "loadkit-two")
    ]
    path = os.pathsep.join([*map(str, places), *filter(None, sys.path)])

    def run(**environ: str) -> subprocess.CompletedProcess[str]:
        code = "from loadkit.cli import main; main(['plugins', '--json'])"
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": path, **environ},
        )  # fmt: skip

    listed = {p["name"]: p for p in json.loads(run().stdout)}
    assert "same" not in listed
    for name in ("loadkit-one", "loadkit-two"):
        about = listed[f"same ({name})"]
        assert (about["state"], about["distribution"]) == ("broken", name)
        assert "loadkit-one and loadkit-two both call a plugin 'same'; uninstall one" in about["reason"]
    assert {p["state"] for p in listed.values() if p["distribution"] == "loadkit"} == {"active"}
    strict = run(LOADKIT_STRICT="1")
    assert strict.returncode != 0
    assert "loadkit-one and loadkit-two both call a plugin 'same'" in strict.stderr


def test_the_environment_chooses() -> None:
    blocked = PluginManager(environ={"LOADKIT_DISABLE": "attention, dtype"})
    assert state(blocked, "dtype") == ("blocked", "LOADKIT_DISABLE names it")
    assert "attention (blocked: LOADKIT_DISABLE names it)" in problems(manager=blocked)["undecided"]
    only = PluginManager(environ={"LOADKIT_PLUGINS": "dtype"})
    assert [p.name for p in only.plugins if p.state == "active"] == ["dtype"]


def test_with_every_plugin_blocked_the_core_says_what_is_missing() -> None:
    found = PluginManager(entry_points=False, environ={})
    with pytest.raises(loadkit.PlanError) as caught:
        planned(manager=found)
    assert [(p.stage, p.code) for p in caught.value.problems] == [("architecture", "undecided")]


class Raises:
    @hookimpl
    def loadkit_choose_attention(self) -> None:
        raise ZeroDivisionError("it can't be")


class AnswersNonsense:
    @hookimpl
    def loadkit_choose_dtype(self) -> str:
        return "bfloat16"


class ClaimsNonsense:
    @hookimpl
    def loadkit_choose_dtype(self) -> Claim[list[int]]:
        return Claim(value=[1], because="nonsense")


@pytest.mark.parametrize(
    ("plugin", "words"),
    [
        (Raises(), "ZeroDivisionError: it can't be"),
        (AnswersNonsense(), "returns a Claim"),
        (ClaimsNonsense(), "wrong type"),
    ],
)
def test_a_plugin_that_fails_is_named_and_the_others_are_asked(plugin: object, words: str) -> None:
    found = PluginManager(environ={})
    found.register(plugin, "wrong")
    told = problems(manager=found, device_map="cuda:9", dtpe="x")
    assert words in told["plugin-failed"]
    assert "'wrong'" in told["plugin-failed"]
    assert "LOADKIT_DISABLE=wrong" in told["plugin-failed"]
    assert "unknown-option" in told


def test_managers_are_independent() -> None:
    one, two = PluginManager(environ={}), PluginManager(environ={})
    one.register(Prefers("float32"), "mine")
    assert planned(manager=two).dtype == "bfloat16"


class Provides:
    @hookimpl
    def loadkit_profiles(self) -> list[Profile]:
        return [Profile(name="qlora", description="Another.", options={})]


def test_a_profile_provided_twice_breaks_only_who_asks_for_it() -> None:
    found = PluginManager(environ={})
    found.register(Provides(), "second")
    told = problems(None, "qlora", manager=found)["conflict"]
    assert "profiles" in told
    assert "second" in told
    assert planned(None, "lora", manager=found).adapter is not None


def test_every_hook_name_is_a_spec() -> None:
    names = [name for name in vars(hookspecs) if name.startswith("loadkit_")]
    assert len(names) == 42


def test_an_action_hook_names_who_failed_and_lets_loadkits_errors_through() -> None:
    """Law 9: any exception out of a hook carries the plugin's name."""

    class Broken:
        @hookimpl
        def loadkit_dequantize(self, model: object) -> None:
            raise ZeroDivisionError("by nought")

        @hookimpl
        def loadkit_prepare_quantized(self, model: object) -> None:
            raise loadkit.LoadError("told already")

    manager = PluginManager(environ={})
    manager.register(Broken(), "broken-one")
    with pytest.raises(loadkit.PluginError, match=r"broken-one.*ZeroDivisionError: by nought"):
        manager.first(hookspecs.loadkit_dequantize, plan=None, model=None)  # type: ignore[arg-type]
    with pytest.raises(loadkit.LoadError, match=r"^told already$"):
        manager.first(hookspecs.loadkit_prepare_quantized, plan=None, model=None)  # type: ignore[arg-type]


def test_within_a_wrapper_the_one_that_fails_is_named() -> None:
    class Loads:
        @hookimpl
        def loadkit_load_model(self) -> int:
            return 5

    class Fails:
        @hookimpl
        def loadkit_load_model(self) -> None:
            raise ZeroDivisionError("by nought")

    for plugin, words in (
        (Loads(), "it answered 5; this hook returns a torch.nn.Module"),
        (Fails(), "ZeroDivisionError: by nought"),
    ):
        found = PluginManager(entry_points=False, environ={})
        found.register(WrapsLoading(), "wraps")
        found.register(plugin, "loads")
        with pytest.raises(PluginError, match=f"'loads' in loadkit_load_model: .*{words}"):
            found.first(hookspecs.loadkit_load_model, plan=None)  # type: ignore[arg-type]


def test_loadkits_own_plugins_are_asked_last() -> None:
    """So that another plugin can take a phase over, whatever its name."""

    class Model:
        def named_parameters(self) -> list[object]:
            return []

    taken = Model()

    class Taking:
        @hookimpl
        def loadkit_checkpoint_activations(self, model: object) -> Model:
            return taken

    for name in ("aaa", "zzz"):
        manager = PluginManager(environ={})
        manager.register(Taking(), name)
        assert manager.first(hookspecs.loadkit_checkpoint_activations, plan=None, model=None) is taken  # type: ignore[arg-type]


# --- Plugins from other times


def test_a_plugin_for_newer_hooks_is_told_apart_from_a_broken_one() -> None:
    class Newer:
        LOADKIT_API = "99.1"

        @hookimpl
        def loadkit_choose_dtype(self) -> None:
            return None

    with pytest.raises(
        PluginError, match=r"built for loadkit's hooks 99\.1, and this loadkit has .*: update loadkit"
    ):
        PluginManager(environ={}).register(Newer(), "newer")


@pytest.mark.parametrize("version", ["1.0", "1.1", hookspecs.API])
def test_a_plugin_for_older_hooks_works(version: str) -> None:
    """With the parameters that its hooks had then, and none of those that came since."""

    class Old:
        LOADKIT_API = version

        @hookimpl
        def loadkit_choose_dtype(self, context: loadkit.Context) -> Claim[str]:
            return Claim(value="float32", because="it always did")

        @hookimpl
        def loadkit_check_plan(self, context: loadkit.Context, plan: loadkit.Plan) -> list[loadkit.Problem]:
            return []

    asked = PluginManager(environ={})
    asked.register(Old(), "old")
    assert planned(manager=asked).why("dtype").plugin == "old"


def test_the_hooks_version_is_raised_with_what_came() -> None:
    assert hookspecs.API == "1.2"


def test_a_conflict_is_told_where_plugins_are_registered_by_hand() -> None:
    class Alone:
        LOADKIT_CONFLICTS = {"other": "both patch the same layers"}  # noqa: RUF012

        @hookimpl
        def loadkit_choose_dtype(self) -> None:
            return None

    words = r"can't be beside 'other' \(both patch the same layers\): .*LOADKIT_DISABLE=other"
    for first, second in (("alone", "other"), ("other", "alone")):
        asked = PluginManager(environ={})
        made = {"alone": Alone(), "other": Prefers("float32")}
        asked.register(made[first], first)
        with pytest.raises(PluginError, match=words):
            asked.register(made[second], second)
        assert {p.name for p in asked.plugins} & {"alone", "other"} == {first}
        assert [i.plugin_name for i in asked._pluggy.hook.loadkit_choose_dtype.get_hookimpls()].count(
            second
        ) == 0
        asked.unregister(first)
        asked.register(made[second], second)


def test_an_old_plugin_works_in_todays_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a hook's old name, and with fewer arguments than the hook has now."""
    monkeypatch.setattr(hookspecs, "RENAMED", {"loadkit_pick_dtype": "loadkit_choose_dtype"})

    class Old:
        @hookimpl
        def loadkit_pick_dtype(self) -> Claim[str]:
            return Claim(value="float32", because="it always did")

    asked = PluginManager(environ={})
    with pytest.warns(
        manager.PluginWarning,
        match="plugin 'old' has loadkit_pick_dtype, which is called loadkit_choose_dtype now",
    ):
        asked.register(Old(), "old")
    assert planned(manager=asked).why("dtype").plugin == "old"


def test_an_old_name_of_a_parameter_works(monkeypatch: pytest.MonkeyPatch) -> None:
    renamed = {"loadkit_choose_dtype": {"facts": "context"}}
    monkeypatch.setattr(hookspecs, "RENAMED_PARAMETERS", renamed)

    class Old:
        @hookimpl
        def loadkit_choose_dtype(self, architecture: object, facts: loadkit.Context) -> Claim[str]:
            return Claim(value="float32", because=f"it is {facts.checkpoint.model_type}")

    asked = PluginManager(environ={})
    words = "plugin 'old' has the parameter facts in loadkit_choose_dtype, which is called context now"
    with pytest.warns(manager.PluginWarning, match=words):
        asked.register(Old(), "old")
    assert planned(manager=asked).why("dtype").because == "it is mistral"
    with pytest.raises(PluginError, match="nonsense"):
        asked.register(WantsTooMuch(), "wrong")


@pytest.mark.parametrize("variable", ["LOADKIT_DISABLE", "LOADKIT_PLUGINS"])
def test_a_name_that_no_plugin_has_is_told(variable: str) -> None:
    with pytest.warns(manager.PluginWarning, match=f"{variable} names 'dtpye'.*did you mean 'dtype'"):
        PluginManager(environ={variable: "dtpye"})

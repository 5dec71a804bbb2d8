"""What planning hands to its readers, and which of their problems come out: the readers themselves are
replaced."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from examples import CPU, EIGHT_H100, T4, checkpoint

import loadkit
from loadkit import Architecture, Context, LoadkitError, PlanError, PluginManager, Problem, Topology, hookimpl
from loadkit.facts.checkpoint.checkpoint import Checkpoint
from loadkit.planning import pipeline
from loadkit.planning.pipeline import Planned, make_plan, plan_load
from loadkit.plugins import Beside


def problem(code: str, severity: Any = "warning") -> Problem:
    return Problem("checkpoint", "reader", code, "it is so", "mend it", severity)


class Readers:
    """Stand-ins for what reads the checkpoint and what is beside it; they note what they are given."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.facts, self.found, self.beside = checkpoint(), [], []
        self.given: dict[str, Any] = {}
        self.what_is_beside = Beside(code={"a.py": "0" * 64})
        self.library_progress: Any = None
        read_library = pipeline.read_library

        def library(config: Any, *, progress: Any) -> Any:
            self.library_progress = progress
            return read_library(config)

        patch.setattr(pipeline, "stores_of", lambda manager: manager)
        patch.setattr(pipeline, "read_checkpoint", self.read)
        patch.setattr(pipeline, "read_beside", self.read_beside)
        patch.setattr(pipeline, "read_library", library)
        patch.setattr(pipeline, "this_machine", lambda: CPU)
        patch.setattr(pipeline, "read_topology", Topology)

    def read(self, source: str, **given: Any) -> tuple[Checkpoint, list[Problem]]:
        self.given["source"], self.given["checkpoint"] = source, given
        return self.facts, list(self.found)

    def read_beside(
        self, request: Any, facts: Any, access: Any, **given: Any
    ) -> tuple[Beside, list[Problem]]:
        self.given["beside"] = {**access._asdict(), **given}
        return self.what_is_beside, list(self.beside)


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> Readers:
    return Readers(monkeypatch)


MANAGER = PluginManager(environ={})


def codes(error: PlanError) -> list[str]:
    return [p.code for p in error.problems]


def test_what_wasnt_asked_for_is_left_to_the_readers_defaults(readers: Readers) -> None:
    plan = make_plan("a/b", plugin_manager=MANAGER)
    access: dict[str, Any] = {"token": None, "cache_dir": None, "local_files_only": False, "progress": None}
    access["stores"] = MANAGER
    assert readers.given == {
        "source": "a/b",
        "checkpoint": {
            "revision": "",
            "adapter_revision": "",
            "allow_pickle": False,
            "gguf_file": "",
            **access,
        },
        "beside": {"allow_pickle": False, **access},
    }
    assert (plan.machine, plan.topology, plan.elsewhere) == (CPU.describe(), "", "")


def test_what_was_asked_for_reaches_the_readers(readers: Readers) -> None:
    said: list[str] = []
    make_plan(
        "a/b", token="t", revision="r", adapter_revision="ar", allow_pickle=True, cache_dir="c", local_files_only=True,
        progress=said.append, plugin_manager=MANAGER,
    )  # fmt: skip
    access: dict[str, Any] = {
        "token": "t",
        "cache_dir": "c",
        "local_files_only": True,
        "progress": said.append,
    }
    access["stores"] = MANAGER
    assert readers.given == {
        "source": "a/b",
        "checkpoint": {
            "revision": "r",
            "adapter_revision": "ar",
            "allow_pickle": True,
            "gguf_file": "",
            **access,
        },
        "beside": {"allow_pickle": True, **access},
    }
    assert readers.library_progress == said.append


@pytest.mark.parametrize(("adapter", "revision"), [("c/d", ""), (True, "ar")])
def test_the_revision_of_an_adapter_that_is_named_isnt_the_sources(
    readers: Readers, adapter: Any, revision: str
) -> None:
    readers.found = [problem("broken", "error")]
    with pytest.raises(PlanError):
        make_plan("a/b", adapter=adapter, adapter_revision="ar", plugin_manager=MANAGER)
    assert readers.given["checkpoint"]["adapter_revision"] == revision


def test_where_nothing_can_be_read_nobody_decides_and_all_is_said(readers: Readers) -> None:
    readers.facts, readers.found = checkpoint(config={}), [problem("not-there", "error")]
    with pytest.raises(PlanError) as caught:
        make_plan("a/b", engine="fspd", dtpe="x", plugin_manager=MANAGER)
    assert codes(caught.value) == ["unknown-option", "not-there", "unknown-engine"]
    assert "beside" not in readers.given
    assert caught.value.source == "a/b"


@pytest.mark.parametrize(
    ("config", "severity"), [(checkpoint().config, "error"), ({}, "warning")], ids=["a config", "a warning"]
)
def test_where_something_can_be_read_planning_goes_on(
    readers: Readers, config: dict[str, Any], severity: str
) -> None:
    readers.facts, readers.found = checkpoint(config=config), [problem("odd", severity)]
    readers.beside = [problem("beside", "error")]
    with pytest.raises(PlanError) as caught:
        make_plan("a/b", engine="fspd", dtype="bf17", plugin_manager=MANAGER)
    assert codes(caught.value)[:3] == ["odd", "unknown-engine", "beside"]
    assert len(codes(caught.value)) > 3


def test_plugins_are_given_all_that_was_read(readers: Readers) -> None:
    found: list[Context] = []

    class Looks:
        @hookimpl
        def loadkit_architectures(self) -> list[Architecture]:
            return [Architecture(model_type="new")]

        @hookimpl
        def loadkit_check_plan(self, context: Context) -> list[Problem]:
            found.append(context)
            return []

    manager = PluginManager(environ={})
    manager.register(Looks(), "looks")
    launch = Topology(world_size=2, rank=1, local_rank=1, local_world_size=2, engine="ddp")
    make_plan("a/b", machine=EIGHT_H100, topology=launch, dtype="float16", plugin_manager=manager)
    (context,) = found
    assert (context.checkpoint, context.machine, context.topology) == (readers.facts, EIGHT_H100, launch)
    assert context.beside is readers.what_is_beside
    assert context.architectures["new"] == Architecture(model_type="new")
    assert context.request.value("dtype") == "float16"
    assert context.library == pipeline.read_library(readers.facts.config, progress=None)


def test_warnings_go_with_the_plan_and_the_facts_too(readers: Readers) -> None:
    readers.found, readers.beside = [problem("odd")], [problem("beside", "note")]
    plan, facts = plan_load("a/b", plugin_manager=MANAGER)
    assert [w.code for w in plan.warnings][:2] == ["odd", "beside"]
    assert loadkit.Plan.from_json(plan.to_json()) == plan
    assert facts is not None
    assert facts.machine == CPU
    assert facts.listings == {
        ("a/b", readers.facts.commit): ("config.json", "model.safetensors", "tokenizer.json")
    } | {(beside.location, beside.commit): beside.files for beside in (readers.facts.processing,)}


def test_a_plan_for_elsewhere_has_no_facts_of_here(readers: Readers) -> None:
    plan, facts = plan_load("a/b", machine=T4, plugin_manager=MANAGER)
    assert facts is None
    assert plan.machine == T4.describe()
    assert plan.elsewhere
    assert plan.shortcuts == ()


def test_the_launch_given_serves_and_none_is_read(readers: Readers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "read_topology", None)
    launch = Topology(world_size=2, rank=1, local_rank=1, local_world_size=2, engine="ddp")
    plan, facts = plan_load("a/b", launch=launch, plugin_manager=MANAGER)
    assert facts is not None
    assert facts.topology == launch
    assert plan.topology == launch.describe()


def test_an_architecture_of_several_plugins_is_a_conflict_where_it_is_the_checkpoints(
    readers: Readers,
) -> None:
    class Provides:
        @hookimpl
        def loadkit_architectures(self) -> list[Architecture]:
            return [Architecture(model_type="new", models={"causal-lm": "m:C"})]

    manager = PluginManager(environ={})
    for name in ("one", "two"):
        manager.register(Provides(), name)
    make_plan("a/b", plugin_manager=manager)
    readers.facts = checkpoint(config={"model_type": "new", "architectures": ["New"]})
    with pytest.raises(PlanError) as caught:
        make_plan("a/b", plugin_manager=manager)
    first = caught.value.problems[0]
    assert (first.stage, first.code) == ("architecture", "conflict")
    assert first.message == "model type 'new' is provided by several plugins: one, two"


def test_where_no_model_is_named_only_what_else_is_wrong_is_said(readers: Readers) -> None:
    for options, expected in (({}, ["no-source"]), ({"dtpe": "x"}, ["unknown-option"])):
        with pytest.raises(PlanError) as caught:
            make_plan(plugin_manager=MANAGER, **options)
        assert codes(caught.value) == expected
        assert str(caught.value).startswith("can't load '': 1 problem\n")
    assert readers.given == {}


def test_a_plan_is_run_as_it_is(readers: Readers) -> None:
    plan = make_plan("a/b", plugin_manager=MANAGER)
    launch = Topology(world_size=2, rank=1, local_rank=1, local_world_size=2, engine="ddp")
    same, facts = plan_load(plan, None, launch=launch)
    assert same is plan
    assert facts is not None
    assert facts.topology == launch
    elsewhere = msgspec.structs.replace(plan, elsewhere="8 × H100")
    assert plan_load(elsewhere) == Planned(elsewhere, None)
    for given, said in (
        ({"profile": "lora"}, "profile='lora'"),
        ({"recipe": "r.yaml"}, "recipe='r.yaml'"),
        ({"profile": "lora", "recipe": "r", "dtype": None, "lora_r": 4}, "profile='lora', recipe='r', dtype=None, lora_r=4"),
    ):  # fmt: skip
        with pytest.raises(LoadkitError) as caught:
            plan_load(plan, **given)
        assert str(caught.value) == (
            f"load() was given a plan and {said}: a plan is run as it is; make another with loadkit.plan(…, {said})"
        )


def test_plan_hands_on_all_that_it_is_given(readers: Readers, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan("a/b", plugin_manager=MANAGER)
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(pipeline, "plan_load", lambda *a, **k: calls.append((a, k)) or Planned(plan, None))
    given = {
        "recipe": "r", "token": "t", "machine": "m", "nodes": 2, "engine": "ddp", "topology": Topology(),
        "plugin_manager": MANAGER, "progress": print, "dtype": "float16",
    }  # fmt: skip
    assert loadkit.plan("a/b", "lora", **given) is plan
    assert calls == [(("a/b", "lora"), given)]


def test_without_a_manager_all_installed_plugins_are_asked(
    readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = PluginManager(environ={"LOADKIT_DISABLE": "adapter"})
    monkeypatch.setattr(pipeline, "default_manager", lambda: alone)
    assert make_plan("a/b").plugins == alone.versions()
    assert make_plan("a/b", plugin_manager=MANAGER).plugins == MANAGER.versions() != alone.versions()

"""The conformance kit: one mutant plugin for each check, caught by exactly that one; loadkit's own plugins
pass."""

from __future__ import annotations

import functools
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from os import access
from pathlib import Path
from typing import Any

import pytest
import quantizer_mutants
from distributions import distribution

import loadkit
from loadkit import (
    Architecture,
    Claim,
    Context,
    Finding,
    Finish,
    Option,
    Plan,
    Problem,
    Profile,
    Supported,
    hookimpl,
)
from loadkit.testing import LEVEL, PLAIN, READY, Result, Scenario, Subject, known_checks, run, subjects
from loadkit.testing.checks import manners, packaging
from loadkit.testing.kit import Check, Unmet
from loadkit.testing.verdicts import cases, run_one

TINY = Scenario(name="tiny", checkpoint="mistral")
TRAINED = Scenario(name="trained", checkpoint="mistral", profile="lora")


FEW = tuple(s for s in READY if s.machine == "CPU" or s.name in ("inference on T4", "qlora under FSDP"))
"""One of each kind: another model type, machine and launch change what is decided, and not what is caught."""


def failed(subject: Subject, scenarios: tuple[Scenario, ...] = ()) -> dict[str, str]:
    return {r.code: r.said for r in run(subject, scenarios=scenarios) if r.verdict == "failed"}


def checks_plan(check: Callable[..., Any]) -> type:
    """A plugin that does this in `loadkit_check_plan`, where every plan ends."""

    class Mutant:
        @hookimpl
        def loadkit_check_plan(self, context: Context, plan: Plan) -> list[Problem]:
            return check(context, plan) or []

    return Mutant


def note(message: str, remedy: str = "none needed") -> Problem:
    return Problem(
        stage="check", plugin="mutant", code="a-note", severity="note", message=message, remedy=remedy
    )


class Unmarked:
    @hookimpl
    def loadkit_check_plan(self) -> list[Problem]:
        return []

    def loadkit_choose_dtpye(self, context: Context) -> None:
        return None


class Bare:
    @hookimpl
    def loadkit_check_plan(self, plan):  # type: ignore[no-untyped-def]
        return []


class Wrapping:
    @hookimpl(wrapper=True)
    def loadkit_choose_dtype(self, context: Context) -> Iterator[None]:
        return (yield)


class Defaults:
    @hookimpl
    def loadkit_check_plan(self, plan: Plan, severity: str = "note") -> list[Problem]:
        return []


class Numbers:
    @hookimpl
    def loadkit_choose_use_cache(self, context: Context) -> Any:
        return 5


class Declares:
    @hookimpl
    def loadkit_options(self) -> Any:
        return ["an option"]


class Meddles:
    @hookimpl
    def loadkit_choose_dtype(self, context: Context) -> Claim[str]:
        return Claim(value="float32", because="it likes float32")


class Counts:
    calls = 0

    @hookimpl
    def loadkit_check_plan(self) -> list[Problem]:
        Counts.calls += 1
        return [note(f"asked {Counts.calls} times")]


class Verbose:
    @hookimpl
    def loadkit_contribute_kwargs(self, context: Context) -> dict[str, Claim[Any]] | None:
        return (
            {"low_cpu_mem_usage": Claim(value=True, because="it saves\nmemory")}
            if context.request.profile
            else None
        )


def mutates(context: Context, plan: Plan) -> None:
    context.checkpoint.config["tampered"] = True


def changes_environment(context: Context, plan: Plan) -> None:
    os.environ["LOADKIT_MUTANT"] = os.environ.get("LOADKIT_MUTANT", "") + "x"


def connects(context: Context, plan: Plan) -> None:
    with socket.socket() as found:
        found.connect_ex(("127.0.0.1", 9))


class Nowhere:
    @hookimpl
    def loadkit_architectures(self) -> list[Architecture]:
        return [Architecture(model_type="mutant", models={"causal-lm": "no.such.module:Model"})]


class OtherType:
    """A config class that is of another model type than it is registered for."""

    @hookimpl
    def loadkit_architectures(self) -> list[Architecture]:
        return [Architecture(model_type="mutant", config="transformers:MistralConfig")]


class Boasts:
    @hookimpl
    def loadkit_architectures(self) -> list[Architecture]:
        return [Architecture(model_type="mistral", attention={"an_attention_of_its_own": Supported()})]


def loads(change: Callable[[Any], Any]) -> type:
    """A plugin that loads as transformers does, and then does something to the model."""

    class Mutant:
        @hookimpl
        def loadkit_load_model(self, plan: Plan) -> Any:
            import torch
            import transformers

            model = transformers.AutoModelForCausalLM.from_pretrained(
                plan.checkpoint.location,
                dtype=getattr(torch, plan.dtype),
                attn_implementation=plan.attn_implementation,
            )
            if plan.use_cache is not None:
                model.config.use_cache = plan.use_cache
            change(model)
            return model

    return Mutant


def nothing_finite(model: Any) -> None:
    def spoilt(module: Any, args: Any, output: Any) -> None:
        output.logits.data.fill_(float("nan"))

    model.register_forward_hook(spoilt)


def no_gradient(model: Any) -> None:
    def cut(module: Any, args: Any, output: Any) -> None:
        if output.loss is not None:
            output.loss = output.loss.detach().requires_grad_()

    model.register_forward_hook(cut)


def saves_zeros(model: Any) -> None:
    def emptied(module: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        state[f"{prefix}lm_head.weight"] = state[f"{prefix}lm_head.weight"] * 0

    model._register_state_dict_hook(emptied)


class Particular:
    @hookimpl
    def loadkit_options(self) -> list[Option]:
        return [Option(name="mutant_word", type="str", help="a word", stage="dtype")]

    @hookimpl
    def loadkit_check_plan(self, context: Context) -> list[Problem]:
        context.request.value("mutant_word", "").encode("ascii")
        return []


def needs_torch(context: Context, plan: Plan) -> None:
    context.machine.packages["torch"]


def trusts_the_config(context: Context, plan: Plan) -> None:
    context.checkpoint.config.get("text_config", {}).get("rope_theta")


class WantsTooMuch:
    @hookimpl
    def loadkit_choose_dtype(self, nonsense: str) -> None:
        return None


class Newer:
    LOADKIT_API = "99.0"

    @hookimpl
    def loadkit_check_plan(self, plan: Plan) -> list[Problem]:
        return []


class Takes:
    @hookimpl
    def loadkit_options(self) -> list[Option]:
        return [Option(name="lora_r", type="int", help="a rank of its own", stage="adapter")]


class Unreal:
    @hookimpl
    def loadkit_profiles(self) -> list[Profile]:
        return [Profile(name="mutant", description="a slip", options={"load_in_5bit": True})]


class Silent:
    @hookimpl
    def loadkit_choose_dtype(self, context: Context) -> Claim[str] | None:
        return None


class Garbled:
    @hookimpl
    def loadkit_architectures(self) -> list[Architecture]:
        return [Architecture(model_type="mutant", chat_template="{% for m in messages %}{{ m['content'] }}")]


class NamesNothing:
    @hookimpl
    def loadkit_architectures(self) -> list[Architecture]:
        return [Architecture(model_type="mistral", skip_modules=("q_porj",))]


class Seeds:
    @hookimpl
    def loadkit_audit_model(self, plan: Plan, model: Any) -> list[Finding]:
        import torch

        torch.manual_seed(0)
        return []


class KeepsAll:
    """Checkpointing as the audit sees it, which calls the layers as they are."""

    @hookimpl
    def loadkit_checkpoint_activations(self, plan: Plan, model: Any) -> Any:
        given = plan.preparation.gradient_checkpointing_kwargs
        model.gradient_checkpointing_enable(given)

        def plainly(function: Any, *args: Any, use_reentrant: bool = False) -> Any:
            return function(*args)

        for module in model.modules():
            if hasattr(module, "_gradient_checkpointing_func"):
                module._gradient_checkpointing_func = functools.partial(plainly, **given)
        return model


class Finishing:
    """Norms that are off by a percent, and are said to be exact."""

    @hookimpl
    def loadkit_options(self) -> list[Option]:
        return [Option(name="mutant_norms", type="bool", help="other norms", stage="finish")]

    @hookimpl
    def loadkit_announce_finish(self, context: Context) -> Finish | None:
        asked = context.request.value("mutant_norms")
        return Finish(what="other norms", because="they are asked for") if asked is True else None

    @hookimpl
    def loadkit_finish_model(self, plan: Plan, model: Any) -> Any:
        for module in model.modules():
            if type(module).__name__ == "MistralRMSNorm":
                own = module.forward
                module.forward = lambda hidden, own=own: own(hidden) * 1.01
        return model


class Eager(Finishing):
    """It finishes whatever is loaded."""

    @hookimpl
    def loadkit_announce_finish(self, context: Context) -> Finish | None:
        return Finish(what="other norms", because="they are quicker")


class Grasps:
    @hookimpl
    def loadkit_open_source(self, reference: str) -> Problem:
        return Problem("checkpoint", "mutant", "mutant-store", f"there is no {reference}", "look elsewhere")


QUANTIZED = Scenario(name="quantized", checkpoint="mistral", options={"mutant_rows": True})

MUTANTS: dict[str, tuple[Any, tuple[Scenario, ...]]] = {
    "LK201": (Unmarked, ()),
    "LK202": (Bare, ()),
    "LK203": (Wrapping, ()),
    "LK204": (Defaults, ()),
    "LK205": (Numbers, ()),
    "LK206": (Declares, ()),
    "LK207": (WantsTooMuch, ()),
    "LK208": (Newer, ()),
    "LK210": (Takes, ()),
    "LK212": (Unreal, ()),
    "LK213": (Grasps, ()),
    "LK211": (Silent, (Scenario(name="mine"),)),
    "LK301": (Meddles, ()),
    "LK302": (Counts, ()),
    "LK303": (Verbose, ()),
    "LK304": (checks_plan(mutates), ()),
    "LK305": (checks_plan(changes_environment), ()),
    "LK306": (checks_plan(connects), ()),
    "LK308": (checks_plan(lambda context, plan: os.environ.get("LOADKIT_MUTANT") and None), ()),
    "LK309": (checks_plan(lambda context, plan: print("a mutant")), ()),
    "LK401": (Nowhere, ()),
    "LK402": (OtherType, ()),
    "LK403": (Boasts, (TINY,)),
    "LK404": (Garbled, ()),
    "LK405": (NamesNothing, (TINY,)),
    "LK501": (loads(lambda model: model.float()), (TINY,)),
    "LK502": (loads(nothing_finite), (TINY,)),
    "LK503": (loads(no_gradient), (TRAINED,)),
    "LK504": (loads(saves_zeros), (TINY,)),
    "LK505": (Seeds, (TINY,)),
    "LK506": (KeepsAll, (TRAINED,)),
    "LK507": (quantizer_mutants.Deaf, (QUANTIZED,)),
    "LK508": (quantizer_mutants.Careless, (QUANTIZED,)),
    "LK509": (quantizer_mutants.Blind, (QUANTIZED,)),
    "LK510": (Finishing, (Scenario(name="finished", checkpoint="mistral", options={"mutant_norms": True}),)),
    "LK601": (Particular, ()),
    "LK602": (checks_plan(needs_torch), ()),
    "LK603": (checks_plan(trusts_the_config), ()),
    "LK604": (checks_plan(lambda context, plan: [note("something is odd", remedy=" ")]), ()),
}
"""Code to the plugin that it alone catches, and the scenarios that this takes."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("code", MUTANTS)
def test_a_mutant_is_caught_by_its_check_alone(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOADKIT_MUTANT", "")
    made, scenarios = MUTANTS[code]
    assert set(failed(Subject("mutant", made(), ready=FEW), scenarios)) == {code}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("code", MUTANTS)
def test_a_mutant_is_caught_by_its_check_alone_in_every_scenario(
    code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOADKIT_MUTANT", "")
    made, scenarios = MUTANTS[code]
    assert set(failed(Subject("mutant", made()), scenarios)) == {code}


VARIANTS: dict[str, tuple[str, Callable[[], Any]]] = {
    "starts a thread that is over at once": ("LK306", lambda: threading.Thread(target=int).start()),
    "starts a process": ("LK306", lambda: os.system("true")),
    "writes a file": ("LK306", lambda: tempfile.TemporaryFile().close()),
    "looks whether a file is there": ("LK308", lambda: Path("/nowhere/at/all").is_file()),
    "looks as os.path does": ("LK308", lambda: os.path.exists("/nowhere/at/all")),
    "looks by os.stat": ("LK308", lambda: os.stat("/")),
    "looks by os.access": ("LK308", lambda: os.access("/nowhere/at/all", os.R_OK)),
    "looks by a name of its own": ("LK308", lambda: access("/nowhere/at/all", 4)),
    "looks for a link": ("LK308", lambda: os.path.islink("/nowhere/at/all")),
    "looks at the clock": ("LK308", lambda: time.time()),
    "looks for a package": ("LK308", lambda: metadata.version("torch")),
    "counts cores": ("LK308", lambda: os.cpu_count()),
    "empties the path of imports": ("LK305", lambda: sys.path.clear()),
    "lowers the recursion limit": ("LK305", lambda: sys.setrecursionlimit(sys.getrecursionlimit() - 1)),
    "seeds as before": ("LK305", lambda: random.seed(0)),
    "sets the level of somebody's logger": ("LK305", lambda: logging.getLogger("nobody.yet").setLevel(50)),
    "closes standard output": ("LK305", lambda: sys.stdout.close()),
    "prints by the descriptor": ("LK309", lambda: os.write(1, b"a mutant")),
    "leaves": ("LK205", lambda: os._exit(3)),
    "ends its process by a signal": ("LK205", lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "interrupts": ("LK205", lambda: interrupt()),
}
"""What a plugin does wherever it plans, to the check that alone tells of it."""


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore")
def test_a_finish_for_everybody_is_an_opinion() -> None:
    assert set(failed(Subject("mutant", Eager(), ready=(PLAIN,)))) == {"LK301"}


@pytest.mark.filterwarnings("ignore")
def test_a_finish_that_keeps_to_its_tolerance_is_fine() -> None:
    class Honest(Finishing):
        @hookimpl
        def loadkit_announce_finish(self, context: Context) -> Finish | None:
            asked = context.request.value("mutant_norms")
            return Finish(what="other norms", because="so", tolerance=0.1) if asked is True else None

    scenarios = MUTANTS["LK510"][1]
    assert failed(Subject("mutant", Honest(), ready=(PLAIN,)), scenarios) == {}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", VARIANTS)
def test_what_a_hook_does_is_told_by_one_check(what: str) -> None:
    code, act = VARIANTS[what]
    acts = checks_plan(lambda context, plan: act() and None)
    assert set(failed(Subject("mutant", acts(), ready=(PLAIN,)))) == {code}


def test_a_plugin_that_looks_at_its_own_files_is_fine() -> None:
    """They are installed with it."""
    looks = checks_plan(lambda context, plan: Path(pytest.__file__).is_file() and None)
    assert failed(Subject("mutant", looks(), ready=(PLAIN,))) == {}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("profile", ["inference-4bit", "inference-8bit"])
def test_weights_that_are_repacked_as_they_run_are_no_fault(profile: str) -> None:
    """bitsandbytes 0.50 changes its layers in their first forward pass."""
    (found,) = subjects("bitsandbytes")
    results = run(found, scenarios=[Scenario(name="tiny", checkpoint="mistral", profile=profile)])
    assert [str(r) for r in results if r.verdict == "failed"] == []
    assert {r.code for r in results if r.verdict == "passed"} >= {"LK507", "LK509"}


# --- Those that need a distribution of their own


HEAD = "from loadkit import Context, Option, Plan, Problem, hookimpl\n"
QUIET = f"{HEAD}\n@hookimpl\ndef loadkit_check_plan(plan: Plan) -> list[Problem]:\n    return []\n"
DISTRIBUTED: dict[str, tuple[dict[str, str], dict[str, str], str]] = {
    "LK101": ({"lk_mutant.py": "import nothing_of_that_name\n"}, {"mutant": "lk_mutant"}, "loadkit"),
    "LK105": ({"lk_mutant.py": f"import time\ntime.sleep(0.3)\n{QUIET}"}, {"mutant": "lk_mutant"}, "loadkit"),
    "LK106": ({"lk_mutant.py": f"import os\nos.environ['LOADKIT_MUTANT'] = 'mine'\n{QUIET}"}, {"mutant": "lk_mutant"}, "loadkit"),
    "LK107": ({"lk_mutant.py": QUIET}, {"dtype": "lk_mutant"}, "loadkit"),
    "LK209": ({"lk_mutant.py": QUIET + QUIET.removeprefix(HEAD)}, {"mutant": "lk_mutant"}, "loadkit"),
    "LK102": ({"lk_mutant.py": f"import transformers\n{QUIET}"}, {"mutant": "lk_mutant"}, "loadkit"),
    "LK103": ({"lk_mutant.py": QUIET}, {"mutant": "lk_mutant"}, "pluggy"),
    "LK104": ({"lk_mutant.py": QUIET.replace("    return []", "    import transformers\n    return []")}, {"mutant": "lk_mutant"}, "loadkit"),
    "LK307": (
        {
            "lk_order.py": "ORDER: list[str] = []\n",
            "lk_mutant.py": f"{HEAD}from lk_order import ORDER\n\n@hookimpl\ndef loadkit_options() -> list[Option]:\n"
            "    ORDER.append('mutant')\n    return []\n\n@hookimpl\ndef loadkit_check_plan(plan: Plan) -> list[Problem]:\n"
            "    return [Problem(stage='check', plugin='mutant', code='order', severity='note', message=ORDER[-1], remedy='-')]\n",
            "lk_other.py": f"{HEAD}from lk_order import ORDER\n\n@hookimpl\ndef loadkit_options() -> list[Option]:\n"
            "    ORDER.append('other')\n    return []\n",
        },
        {"mutant": "lk_mutant", "other": "lk_other"},
        "loadkit",
    ),
}  # fmt: skip


@pytest.mark.parametrize("code", DISTRIBUTED)
def test_a_distribution_is_caught_by_its_check_alone(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, entries, requires = DISTRIBUTED[code]
    distribution(tmp_path, "loadkit-mutant", files, entries, requires=requires)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    for name in ("lk_mutant", "lk_order", "lk_other"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(packaging, "LONGEST_IMPORT", 0.2)
    found = next(s for s in subjects("loadkit-mutant") if s.name != "other")
    found.ready = FEW
    assert set(failed(found)) == {code}
    for name in ("lk_mutant", "lk_order", "lk_other"):
        sys.modules.pop(name, None)


def test_somebody_elses_broken_plugin_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that can't be imported, and one that doesn't fit the hooks."""
    files = {"lk_unfit.py": f"{HEAD}\n@hookimpl\ndef loadkit_choose_dtpye() -> None:\n    return None\n"}
    distribution(tmp_path, "loadkit-broken", files, {"gone": "no_such_module", "unfit": "lk_unfit"})
    monkeypatch.syspath_prepend(str(tmp_path))
    found = next(iter(subjects("dtype")))
    found.ready = FEW
    assert [str(r) for r in run(found) if r.verdict == "failed"] == []
    sys.modules.pop("lk_unfit", None)


def test_every_check_has_a_mutant() -> None:
    assert {check.code for check in known_checks()} == {*MUTANTS, *DISTRIBUTED}


# --- Those that keep the rules


OWN = sorted(e.name for e in metadata.entry_points(group="loadkit") if e.dist and e.dist.name == "loadkit")


def conforms(results: Sequence[Result]) -> None:
    assert [str(r) for r in results if r.verdict == "failed"] == []
    assert sum(r.verdict == "passed" for r in results) >= 14
    assert all(r.said for r in results if r.verdict == "skipped")


@pytest.mark.parametrize("name", OWN[::5])
def test_loadkits_own_plugins_conform(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of them, in what takes no process of its own, which takes as long as all the rest."""
    monkeypatch.setattr(manners, "orders_of_sets", lambda subject: False)
    found = next(iter(subjects(name)))
    found.ready = FEW
    conforms([run_one(check, found, where) for check, where in cases() if check.group != "packaging"])


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_loadkits_own_plugins_conform_in_every_scenario_and_in_other_processes(name: str) -> None:
    conforms(run(next(iter(subjects(name)))))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("profile", ["", "full", "qlora", "inference-4bit"])
def test_loadkits_own_plugins_load(profile: str) -> None:
    found = next(iter(subjects("architecture")))
    tried = Scenario(name="tiny", checkpoint="mistral", profile=profile)
    checks = [check for check in known_checks() if check.group == "loading"]
    loading = {check.code: run_one(check, found, [tried]).verdict for check in checks}
    trains = "passed" if profile in ("full", "qlora") else "skipped"
    assert loading == {
        "LK501": "passed",
        "LK502": "passed",
        "LK503": trains,
        "LK504": "passed",
        "LK505": "passed",
        "LK506": trains,
        "LK507": "skipped",
        "LK508": "skipped",
        "LK509": "skipped",
        "LK510": "skipped",
    }


@pytest.mark.filterwarnings("ignore")
def test_a_quantizer_without_a_fault_passes() -> None:
    results = {r.code: r for r in run(Subject("mutant", quantizer_mutants.Whole()), scenarios=[QUANTIZED])}
    assert [str(r) for r in results.values() if r.verdict == "failed"] == []
    for code in ("LK501", "LK502", "LK507", "LK508", "LK509"):
        assert results[code].verdict == "passed", results[code]
    assert (results["LK504"].verdict, results["LK504"].said) == (
        "skipped",
        "it says so itself: the model can't be saved: its codes have no format on disk",
    )


def test_what_is_said_of_own_classes_counts_where_they_serve() -> None:
    """A family that transformers has too, whose own classes don't serve here."""

    class Own:
        @hookimpl
        def loadkit_architectures(self) -> list[Architecture]:
            said = {"an_attention_of_its_own": Supported()}
            return [
                Architecture(
                    model_type="mistral",
                    models={"causal-lm": "transformers:LlamaForCausalLM"},
                    attention=said,
                )
            ]

    results = {r.code: r for r in run(Subject("mutant", Own()), scenarios=[TINY])}
    assert (results["LK403"].verdict, "others serve" in results["LK403"].said) == ("skipped", True)


# --- Levels, expectations, names


def strict(subject: Subject, scenario: Scenario) -> None:
    raise Unmet("it doesn't do what the future asks for")


FUTURE = Check(
    code="LK999",
    group="manners",
    since="2.0",
    title="The future is kept.",
    remedy="raise the level",
    run=strict,
)


def test_a_check_that_is_newer_than_the_level_warns_before_it_breaks() -> None:
    subject = Subject("mutant", Unmarked())
    assert run_one(FUTURE, subject, [TINY], level="1.0").verdict == "newer"
    assert run_one(FUTURE, subject, [TINY], level="2.0").verdict == "failed"
    assert LEVEL == "1.1"
    with pytest.raises(loadkit.LoadkitError, match="isn't a level"):
        run(subject, level="newest")


def test_expected_failures_have_a_reason_and_are_strict() -> None:
    subject = Subject("mutant", Unmarked())
    verdicts = {
        r.code: r.verdict
        for r in run(subject, expect_fail={"LK201": "a known misspelling", "LK202": "no longer"})
    }
    assert verdicts["LK201"] == "expected"
    assert verdicts["LK202"] == "unexpected"
    with pytest.raises(loadkit.LoadkitError, match=r"LK20l.*did you mean|LK20l"):
        run(subject, expect_fail={"LK20l": "a slip"})
    with pytest.raises(loadkit.LoadkitError, match="gives no reason for LK201"):
        run(subject, expect_fail={"LK201": " "})


def test_an_unknown_plugin_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(loadkit.LoadkitError, match="bitsandbytes"):
        subjects("bitsandbyte")


def test_under_pytest_each_check_is_a_test_of_its_own(tmp_path: Path) -> None:
    """In a pytest of its own: ids, a failure that reads like a sentence, a skip with its reason, no plugin
    that loads itself."""
    (tmp_path / "test_mine.py").write_text(
        "from loadkit import hookimpl\nfrom loadkit.testing import Subject, conformance\n\n\n"
        "class Mine:\n    @hookimpl\n    def loadkit_check_plan(self, plan):\n        return []\n\n\n"
        "@conformance(Subject('mine', Mine()), level='1.0', expect_fail={'LK204': 'it has none: this is strict'})\n"
        "def test_conformance(check):\n    check()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rfs", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert done.returncode == 1
    assert "test_mine.py::test_conformance[LK202]" in done.stdout
    assert "LK202 Hooks have annotations." in done.stdout
    assert "loadkit_check_plan has no annotation for plan" in done.stdout
    assert "fix: annotate parameters" in done.stdout
    assert "was expected to fail (it has none: this is strict), and passes" in done.stdout
    assert "LK101: it was registered by hand" in done.stdout
    assert "2 failed" in done.stdout

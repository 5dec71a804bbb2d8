"""The conformance kit: one mutant plugin for each check, caught by exactly that one; loadkit's own plugins
pass."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from distributions import distribution

import loadkit
from loadkit import Architecture, Claim, Context, Option, Plan, Problem, Supported, hookimpl
from loadkit.testing import LEVEL, Scenario, Subject, known_checks, run, subjects
from loadkit.testing.kit import Check, Unmet
from loadkit.testing.verdicts import run_one

TINY = Scenario(name="tiny", checkpoint="mistral")
TRAINED = Scenario(name="trained", checkpoint="mistral", profile="lora")


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


MUTANTS: dict[str, tuple[Any, tuple[Scenario, ...]]] = {
    "LK201": (Unmarked, ()),
    "LK202": (Bare, ()),
    "LK203": (Wrapping, ()),
    "LK204": (Defaults, ()),
    "LK205": (Numbers, ()),
    "LK206": (Declares, ()),
    "LK301": (Meddles, ()),
    "LK302": (Counts, ()),
    "LK303": (Verbose, ()),
    "LK304": (checks_plan(mutates), ()),
    "LK305": (checks_plan(changes_environment), ()),
    "LK306": (checks_plan(connects), ()),
    "LK401": (Nowhere, ()),
    "LK402": (OtherType, ()),
    "LK403": (Boasts, (TINY,)),
    "LK501": (loads(lambda model: model.float()), (TINY,)),
    "LK502": (loads(nothing_finite), (TINY,)),
    "LK503": (loads(no_gradient), (TRAINED,)),
    "LK504": (loads(saves_zeros), (TINY,)),
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
    assert set(failed(Subject("mutant", made()), scenarios)) == {code}


# --- Those that need a distribution of their own


HEAD = "from loadkit import Context, Option, Plan, Problem, hookimpl\n"
QUIET = f"{HEAD}\n@hookimpl\ndef loadkit_check_plan(plan: Plan) -> list[Problem]:\n    return []\n"
DISTRIBUTED: dict[str, tuple[dict[str, str], dict[str, str], str]] = {
    "LK101": ({"lk_mutant.py": "import nothing_of_that_name\n"}, {"mutant": "lk_mutant"}, "loadkit"),
    "LK102": ({"lk_mutant.py": f"import torch\n{QUIET}"}, {"mutant": "lk_mutant"}, "loadkit"),
    "LK103": ({"lk_mutant.py": QUIET}, {"mutant": "lk_mutant"}, "pluggy"),
    "LK104": ({"lk_mutant.py": QUIET.replace("    return []", "    import torch\n    return []")}, {"mutant": "lk_mutant"}, "loadkit"),
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
    found = next(s for s in subjects("loadkit-mutant") if s.name == "mutant")
    assert set(failed(found)) == {code}
    for name in ("lk_mutant", "lk_order", "lk_other"):
        sys.modules.pop(name, None)


def test_somebody_elses_broken_plugin_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that can't be imported, and one that doesn't fit the hooks."""
    files = {"lk_unfit.py": f"{HEAD}\n@hookimpl\ndef loadkit_choose_dtpye() -> None:\n    return None\n"}
    distribution(tmp_path, "loadkit-broken", files, {"gone": "no_such_module", "unfit": "lk_unfit"})
    monkeypatch.syspath_prepend(str(tmp_path))
    found = next(iter(subjects("dtype")))
    assert [str(r) for r in run(found) if r.verdict == "failed"] == []
    sys.modules.pop("lk_unfit", None)


def test_every_check_has_a_mutant() -> None:
    assert {check.code for check in known_checks()} == {*MUTANTS, *DISTRIBUTED}


# --- Those that keep the rules


@pytest.mark.parametrize(
    "name",
    sorted(e.name for e in metadata.entry_points(group="loadkit") if e.dist and e.dist.name == "loadkit"),
)
def test_loadkits_own_plugins_conform(name: str) -> None:
    found = next(iter(subjects(name)))
    results = run(found)
    assert [str(r) for r in results if r.verdict == "failed"] == []
    assert sum(r.verdict == "passed" for r in results) >= 17
    assert all(r.said for r in results if r.verdict == "skipped")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("profile", ["", "full", "qlora", "inference-4bit"])
def test_loadkits_own_plugins_load(profile: str) -> None:
    found = next(iter(subjects("architecture")))
    results = run(found, scenarios=[Scenario(name="tiny", checkpoint="mistral", profile=profile)])
    loading = {r.code: r.verdict for r in results if r.code.startswith("LK5")}
    assert loading == {
        "LK501": "passed",
        "LK502": "passed",
        "LK503": "passed" if profile in ("full", "qlora") else "skipped",
        "LK504": "passed",
    }


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
    assert LEVEL == "1.0"
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

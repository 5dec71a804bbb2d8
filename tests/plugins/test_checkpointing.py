"""Keyword arguments of checkpointing: taken, told or refused, and in the layers."""

from __future__ import annotations

from typing import Any

import pytest

import loadkit


def codes(error: loadkit.PlanError) -> set[str]:
    return {problem.code for problem in error.problems if problem.severity == "error"}


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"use_reentrent": False}, "unknown-checkpointing-kwarg"),
        ({"a": 1}, "unknown-checkpointing-kwarg"),
        ({"use_reentrant": "no"}, "bad-checkpointing-kwarg"),
        ({"use_reentrant": None}, "bad-checkpointing-kwarg"),
        ({"determinism_check": "some"}, "bad-checkpointing-kwarg"),
        ({"every_n_layers": 0}, "bad-checkpointing-kwarg"),
        ({"every_n_layers": True}, "bad-checkpointing-kwarg"),
        ({"context_fn": "noop"}, "bad-checkpointing-kwarg"),
        ({"use_reentrant": True, "debug": True}, "fields-contradict"),
    ],
)
def test_what_nobody_takes_is_refused(tiny: Any, given: dict[str, Any], code: str) -> None:
    with pytest.raises(loadkit.PlanError) as refused:
        loadkit.plan(tiny("llama"), "lora", gradient_checkpointing_kwargs=given)
    assert codes(refused.value) == {code}


def test_what_the_reentrant_kind_doesnt_look_at_is_told(tiny: Any) -> None:
    given = {"use_reentrant": True, "early_stop": False}
    plan = loadkit.plan(tiny("llama"), "lora", gradient_checkpointing_kwargs=given)
    assert "fields-contradict" in {w.code for w in plan.warnings}


def test_transformers_own_keywords_reach_it(tiny: Any) -> None:
    """They would go to torch, which would hand them on to layers that take anything."""
    given = {"every_n_layers": 2, "offload": True, "early_stop": False}
    loaded = loadkit.load(tiny("llama"), "lora", gradient_checkpointing_kwargs=given)
    layers = [m for m in loaded.model.modules() if type(m).__name__ == "LlamaDecoderLayer"]
    assert [m.gradient_checkpointing for m in layers] == [i % 2 == 0 for i in range(len(layers))]
    called = layers[0]._gradient_checkpointing_func
    assert called.keywords == {"early_stop": False, "use_reentrant": False}
    read = {n: r.effective for r in loaded.report.readings for n in r.names}
    assert {name: read[f"gradient_checkpointing_kwargs.{name}"] for name in given} == given


@pytest.mark.parametrize("count", [-1, 0, 0.5, "3", True, [2]])
def test_labels_among_model_kwargs_are_a_number(tiny: Any, count: Any) -> None:
    with pytest.raises(loadkit.PlanError) as refused:
        loadkit.plan(tiny("llama"), task="sequence-classification", model_kwargs={"num_labels": count})
    assert codes(refused.value) == {"bad-num-labels"}


def test_names_are_of_as_many_labels(tiny: Any) -> None:
    names = {"id2label": {"0": "bad", "1": "good"}}
    for more in ({"model_kwargs": {**names, "num_labels": 3}}, {"model_kwargs": names, "num_labels": 3}):
        with pytest.raises(loadkit.PlanError) as refused:
            loadkit.plan(tiny("llama"), task="sequence-classification", **more)
        assert codes(refused.value) == {"num-labels-differ"}
    loadkit.plan(tiny("llama"), task="sequence-classification", num_labels=2, model_kwargs=names)

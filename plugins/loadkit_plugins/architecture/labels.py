"""How many labels a classification head has, and what an adapter says of task and head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from loadkit import Claim, Context, Plan, Problem, Strength
from loadkit.plugins import HEADED_TASKS, AdapterFacts
from loadkit_plugins.architecture.tasks import HEADS

__all__ = ["adapter_task", "check_labels", "label_claims"]

_problem = partial(Problem, "architecture", "architecture")

WRITING = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
"""PEFT's task types whose models generate, which PEFT 0.21 asks of the base."""

LAST_LAYERS = ("score", "classifier", "out_proj", "classification_head")


def adapter_task(context: Context) -> str:
    """The task of a classification adapter that is to be attached; "" for any other."""
    tasks = {HEADS.get(str(facts.config.get("task_type")), "") for facts in _attached(context).values()}
    return tasks.pop() if len(tasks) == 1 else ""


def label_claims(context: Context, plan: Plan) -> Mapping[str, list[Claim[Any]]]:
    """`num_labels` for the config, by whoever knows it."""
    if plan.model_class.task not in HEADED_TASKS:
        return {}
    claims = []
    asked, rows = context.request.asked("num_labels"), _labels(context)
    if asked is not None:
        claims.append(Claim(value=asked.value, because=asked.because, strength=asked.strength))
    if rows:
        because = f"the adapter's head has {rows} output{'s' if rows > 1 else ''}"
        claims.append(Claim(value=rows, because=because, strength=Strength.FALLBACK))
    return {"num_labels": claims} if claims else {}


def check_labels(context: Context, plan: Plan) -> Iterator[Problem]:
    """Labels without a head, and heads of another size."""
    asked, task, rows = context.request.asked("num_labels"), plan.model_class.task, _labels(context)
    if asked is not None and asked.value < 1:
        yield _problem(
            "bad-num-labels", f"num_labels={asked.value} was asked for: {asked.because}", "give 1 or more"
        )
    elif asked is not None and task not in HEADED_TASKS and asked.demanded:
        yield _problem(
            "num-labels-unused",
            f"you asked for num_labels={asked.value}, and the model is loaded for {task}, which has no classification head",
            "give task='sequence-classification' with it, or leave num_labels out",
        )
    elif asked is not None and task in HEADED_TASKS and rows and rows != asked.value:
        yield _problem(
            "num-labels-differ",
            f"num_labels={asked.value} was asked for ({asked.because}), and the adapter's head has {rows}",
            "leave num_labels out to load the adapter's head",
        )
    yield from _of_the_config(context)
    for name, facts in _attached(context).items():
        theirs = HEADS.get(str(facts.config.get("task_type")), "")
        if theirs and theirs != task:
            yield _problem(
                "adapter-task-differs",
                f"the adapter {facts.source!r} ({name}) was made for {theirs}, and the model is loaded for {task} "
                f"({plan.why('architecture').because})",
                f"leave task out, or give task={theirs!r}; adapter=False loads the base alone",
            )
        elif str(facts.config.get("task_type")) in WRITING and task in HEADED_TASKS:
            yield _problem(
                "adapter-task-differs",
                f"the adapter {facts.source!r} ({name}) was made for a model that writes text, and the model is loaded for {task} "
                f"({plan.why('architecture').because}), on which PEFT can't put it",
                "merge it first: load it with merge_adapter=True, save that, and load what was saved with this task; or leave task out",
            )


def _of_the_config(context: Context) -> Iterator[Problem]:
    """Labels among model_kwargs, a number and as many names: the config's class checks neither."""
    asked = context.request.asked("model_kwargs")
    if asked is None:
        return
    count, names = asked.value.get("num_labels"), asked.value.get("id2label")
    total = count if count is not None else context.request.value("num_labels")
    if count is not None and (type(count) is not int or count < 1):
        yield _problem(
            "bad-num-labels", f"{asked.by} gave num_labels={count!r} in model_kwargs", "give 1 or more"
        )
    elif total is not None and isinstance(names, dict) and len(names) != total:
        yield _problem(
            "num-labels-differ",
            f"{asked.by} gave id2label in model_kwargs for {len(names)} labels, and num_labels={total} was asked for",
            "leave num_labels out, or name as many labels",
        )


def _attached(context: Context) -> Mapping[str, AdapterFacts]:
    return {} if context.request.value("adapter") is False else context.beside.adapters


def _labels(context: Context) -> int:
    """Outputs of the head that an adapter brings; 0 where none does."""
    for facts in _attached(context).values():
        if str(facts.config.get("task_type")) not in HEADS:
            continue
        for name, header in facts.tensors.items():
            parts = name.replace(".modules_to_save", "").split(".")
            if (
                parts[-1] == "weight"
                and parts[-2] in LAST_LAYERS
                and "lora" not in name
                and len(header.shape) == 2
            ):
                return header.shape[0]
    return 0

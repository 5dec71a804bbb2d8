"""What can't work with a checkpoint that is stored quantized, told before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from loadkit import Context, Plan, Problem, Quantization, StoredFormat
from loadkit.plugins import did_you_mean, size
from loadkit_plugins.prequantized.config_fields import refused_fields
from loadkit_plugins.prequantized.damage import stored_wrongly
from loadkit_plugins.prequantized.memory import grown
from loadkit_plugins.prequantized.method import Method
from loadkit_plugins.prequantized.methods import SOURCE, UNREADABLE, methods_named
from loadkit_plugins.prequantized.requirements import installable, lacking
from loadkit_plugins.prequantized.settings import OURS, asked_back, method_of, misplaced, runnable

__all__ = ["check"]

_problem = partial(Problem, "quantization", "prequantized")

OTHERWISE = "load the unquantized checkpoint it was made from"


def check(context: Context, plan: Plan) -> Sequence[Problem]:
    """Every problem of a stored format: unknown, unreadable here, not to be trained, contradicted."""
    quantization = plan.quantization
    if quantization is None or not quantization.prequantized:
        return []
    method = method_of(quantization)
    if method is None or quantization.format is msgspec.UNSET:
        return list(_unknown(plan, quantization))
    made = quantization.format
    return [
        *_unreadable(method),
        *_config(context, method, quantization),
        *stored_wrongly(context, plan, quantization),
        *_place(context, method, made),
        *_packages(context, method, made),
        *_dtype(context, plan, method),
        *_training(plan, method, made),
        *_growing(context, plan, method, made),
        *_dequantize(context, plan, method),
        *_other_config(context, quantization),
    ]


def _unknown(plan: Plan, quantization: Quantization) -> Iterator[Problem]:
    """transformers loads such files as if they were unquantized, with one warning: the model is noise."""
    if plan.why("quantization").plugin != "prequantized":
        return  # a plugin that knows it
    whose = UNREADABLE.get(quantization.method)
    said = f"by {quantization.method!r}" + (f" ({whose})" if whose else "")
    if quantization.method == "unknown":
        said = "by a method that its quantization_config doesn't name (quant_method)"
    hint = "" if whose else did_you_mean(quantization.method, methods_named())
    yield _problem(
        "unknown-format",
        f"the checkpoint was asked for, and is stored quantized {said}{hint}, which {SOURCE} doesn't read: it would take the packed "
        "weights for plain ones",
        f"{OTHERWISE}, or a copy that is stored by one of {', '.join(methods_named())}",
    )


def _unreadable(method: Method) -> Iterator[Problem]:
    if method.unreadable:
        yield _problem(
            "unreadable-format",
            f"the checkpoint was asked for, and is stored quantized by {method.name}, which {SOURCE} doesn't load: {method.unreadable}",
            OTHERWISE,
        )


def _config(context: Context, method: Method, quantization: Quantization) -> Iterator[Problem]:
    """A config that transformers' own class refuses, or that it takes for another method's."""
    options, named = quantization.options, context.checkpoint.quantization_config.get("quant_method")
    wrong = list(refused_fields(method, options))
    bits = options.get("load_in_4bit") or options.get("load_in_8bit")
    own = bool(OURS.match(str(named)))
    if method.name == "bitsandbytes" and not bits:
        wrong.append(
            "neither load_in_4bit nor load_in_8bit, without which the weights are taken for plain ones"
        )
    elif bits and not own and named not in (None, "bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit"):
        wrong.append(
            f"quant_method={named!r} and a load_in_4bit or load_in_8bit, which makes it bitsandbytes"
        )
    if method.name == "compressed-tensors" and not options.get("config_groups"):
        wrong.append(
            "no config_groups, which say what is quantized how (sparse formats aren't read any more)"
        )
    if wrong:
        yield _problem(
            "format-config",
            f"the checkpoint was asked for, it is stored by {method.name}, and its quantization_config has {'; '.join(wrong)}: "
            f"{SOURCE} doesn't load it so",
            f"correct quantization_config in config.json, or {OTHERWISE}",
        )


def _place(context: Context, method: Method, made: StoredFormat) -> Iterator[Problem]:
    reason = "" if made.dtype else misplaced(method, context.machine)
    if reason:
        yield _problem(
            "format-needs-device",
            f"the checkpoint was asked for, and is stored quantized by {method.name}, which {SOURCE} doesn't load here: {reason} "
            f"({context.machine.describe()})",
            ("add dequantize=True, " if method.config else "load it on such a machine, ") + f"or {OTHERWISE}",
        )


def _packages(context: Context, method: Method, made: StoredFormat) -> Iterator[Problem]:
    missing = lacking(made.needs, context.machine)
    if not missing:
        yield from _kernels(method, runnable(method, made, context.machine))
        return
    have = [
        f"{name} {found}"
        for need in missing
        if (found := context.machine.packages.get(name := need.partition("|")[0].partition(">")[0]))
    ]
    yield _problem(
        "format-needs-package",
        f"the checkpoint was asked for, and is stored quantized by {method.name}, which needs {', '.join(missing)}: "
        + (f"here is {', '.join(have)}" if have else "not installed"),
        f"pip install {installable(missing)}",
    )


def _kernels(method: Method, missing: Sequence[str]) -> Iterator[Problem]:
    """What loading doesn't look for, and the first forward pass does."""
    if missing:
        yield _problem(
            "format-needs-package",
            f"the checkpoint was asked for, and weights stored by {method.name} stay so here: they load, and the first forward pass "
            f"needs {', '.join(missing)}",
            f"pip install {installable(missing)}" + (", or add dequantize=True" if method.config else ""),
            severity="warning",
        )


def _dtype(context: Context, plan: Plan, method: Method) -> Iterator[Problem]:
    if context.machine.accelerators and method.dtypes and plan.dtype not in method.dtypes:
        yield _problem(
            "format-dtype",
            f"dtype {plan.dtype} is planned ({plan.why('dtype').because}), and weights stored by {method.name} compute in "
            f"{' or '.join(method.dtypes)} on {context.machine.accelerators[0].name}",
            f"give dtype={method.dtypes[0]!r}, or leave dtype out",
        )


def _growing(context: Context, plan: Plan, method: Method, made: StoredFormat) -> Iterator[Problem]:
    """Weights that the first forward pass turns back take their whole size from then on."""
    if made.dtype or not method.later or plan.memory is None:
        return
    yield _problem(
        "format-grows",
        f"the checkpoint was asked for, and weights stored by {method.name} are {method.later}: the model takes about "
        f"{size(grown(plan, context.weights(plan.model_class)))} in {plan.dtype} from then on",
        "count with that memory, and save before it runs, if at all: what save_pretrained writes after that doesn't load; "
        "dequantize=True does it while loading, so that nothing changes later",
        severity="warning",
    )


def _training(plan: Plan, method: Method, made: StoredFormat) -> Iterator[Problem]:
    if not plan.preparation.training or made.trains:
        return
    fields = " and ".join(f"{field}={value!r}" for field, value in method.trains_with.items())
    why = f" unless its config says {fields}" if fields and method.trains else ""
    why = f" without {method.trains_from}" if method.trains_from else why
    why = f": {method.unadapted}" if method.unadapted else why
    ways = ["add dequantize=True to train in floating point"] if method.config else []
    ways += [f"pip install {installable([method.trains_from])}"] if method.trains_from else []
    yield _problem(
        "format-cannot-train",
        f"training was asked for ({plan.why('preparation').because}), and weights stored by {method.name} can't be trained over{why} ({SOURCE})",
        ", ".join([*ways, OTHERWISE]) + ", or load it for inference",
    )


def _dequantize(context: Context, plan: Plan, method: Method) -> Iterator[Problem]:
    if not asked_back(context) or method.config:
        return
    merging = plan.adapters is not None and plan.adapters.merge
    if method.name != "bitsandbytes":
        yield _problem(
            "no-dequantize",
            f"dequantize=True was asked for, and {SOURCE} can't turn weights stored by {method.name} back while loading",
            OTHERWISE,
        )
    elif not merging:
        yield _problem(
            "no-dequantize",
            "dequantize=True was asked for, and weights stored by bitsandbytes are turned back for merging only",
            f"add merge_adapter=True with an adapter, or {OTHERWISE}",
        )


def _other_config(context: Context, decided: Quantization) -> Iterator[Problem]:
    """A config that says something else than the files: nothing of it would be handed on."""
    asked, method = context.request.asked("quantization_config"), decided.method
    if asked is None or not asked.demanded or asked.value.get("quant_method") != method:
        return  # the core tells of other methods
    if method == "bitsandbytes":
        return  # its plugin knows which fields are mere defaults
    other = [f"{k}={v!r}" for k, v in sorted(asked.value.items()) if _says(k, v, decided.options)]
    if other:
        yield _problem(
            "quantized-already",
            f"you gave a quantization_config with {', '.join(other)}, and the checkpoint is stored quantized by "
            f"{method} without that",
            f"leave it out to load the checkpoint as it is stored, or {OTHERWISE}",
        )


def _says(name: str, value: Any, options: Mapping[str, Any]) -> bool:
    """Whether a field says something that the files don't; dequantize is asked of the load, not of the
    files."""
    silent = name in ("quant_method", "dequantize") or name.startswith("_") or value is None
    return not silent and options.get(name) != value

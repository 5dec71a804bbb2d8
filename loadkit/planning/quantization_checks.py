"""What is asked about quantizing whatever the method, and whether it is met. The core knows no method."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

from loadkit.errors import Problem
from loadkit.facts.checkpoint.checkpoint import Checkpoint
from loadkit.facts.context import Context
from loadkit.request.options import SKIPPING
from loadkit.schema.request import Request
from loadkit.schema.values import Quantization
from loadkit.text.suggest import did_you_mean, some_of

__all__ = ["asked_to_skip", "check_quantization"]

ONLINE = ("bitnet",)
"""Methods that can quantize floating-point files anew with every forward pass (transformers 5.23)."""

WIDTH = re.compile(r"_[48]bit$")
"""What transformers adds to a method's name for each of its widths."""

_problem = partial(Problem, "quantization", "loadkit")


def asked_to_skip(request: Request) -> tuple[str, ...]:
    """The modules that somebody asked to leave unquantized: by the option, or in a quantization config."""
    whole = request.value("quantization_config", {})
    entries = [*request.value("skip_modules", ()), *(e for name in SKIPPING for e in whole.get(name) or ())]
    return tuple(dict.fromkeys(entries))


def check_quantization(context: Context, decided: Quantization | None) -> list[Problem]:
    """What was asked about quantizing, and nobody took up."""
    return [
        *_stored_otherwise(context.checkpoint),
        *_unserved(context.request, decided),
        *_nothing_to_skip(context.request, decided),
        *_unmatched(context, decided),
    ]


def _stored_otherwise(checkpoint: Checkpoint) -> Iterator[Problem]:
    """A config that says quantized over files that aren't, and the reverse: hollow layers, or random ones."""
    stored, config = checkpoint.looks_quantized, checkpoint.quantization_config
    if stored is None or stored == bool(config):
        return
    method = config.get("quant_method")
    if method in ONLINE:
        return
    if config:
        yield _problem(
            "quantized-config-differs",
            f"config.json says that the weights are stored quantized ({method!r}), and every tensor of the files is in "
            f"{checkpoint.stored_dtype}, without scales",
            "remove quantization_config from config.json, and quantize while loading; or fetch the quantized files",
        )
    else:
        yield _problem(
            "quantized-config-differs",
            f"the files hold quantized weights ({some_of(checkpoint.quantized_tensors, 2)}), and config.json has no quantization_config{_old(checkpoint)}",
            "restore the config.json that was saved with them",
        )


def _old(checkpoint: Checkpoint) -> str:
    """Where its config names the quantization as compressed-tensors once did."""
    old = "compression_config" in checkpoint.config
    return "; its compression_config isn't read any more: call it quantization_config" if old else ""


def _unserved(request: Request, decided: Quantization | None) -> Iterator[Problem]:
    """A quantization_config that no plugin took up: another model than asked for would be loaded."""
    asked = request.asked("quantization_config")
    if asked is None or not asked.demanded:
        return
    method = asked.value.get("quant_method")
    if decided is not None and (method is None or WIDTH.sub("", str(method)) == decided.method):
        return
    instead = "isn't quantized" if decided is None else f"is quantized by {decided.method}"
    which = f"of method {method!r}" if method else "that names no quant_method"
    yield _problem(
        "unknown-quantization",
        f"you gave a quantization_config {which}, which no plugin here provides for this "
        f"checkpoint; without it the model {instead}",
        f"install a plugin that quantizes {f'with {method}' if method else 'so'}, load a checkpoint that is stored so, "
        "or choose another method",
    )


def _nothing_to_skip(request: Request, decided: Quantization | None) -> Iterator[Problem]:
    asked = request.asked("skip_modules")
    if decided is None and asked is not None and asked.demanded:
        yield _problem(
            "setting-without-quantization",
            f"you asked for skip_modules={asked.value!r}, but the model isn't quantized",
            "add what quantizes it, or leave skip_modules out",
        )


def _unmatched(context: Context, decided: Quantization | None) -> Iterator[Problem]:
    """A skip entry is a path or its end; only its last part is looked for, as loading may rename the rest:
    among the names in the files, and those that the model's classes give their members."""
    if decided is None or decided.prequantized:
        return
    asked, tensors = asked_to_skip(context.request), context.checkpoint.tensors
    parts = {part for name in tensors for part in name.split(".")[:-1]}
    classes = [facts for family in context.library.families.values() for facts in family.modules.values()]
    known = parts.union(*(facts.members for facts in classes))
    for entry in decided.skip_modules:
        if tensors and entry in asked and entry.split(".")[-1] not in known:
            words = sorted(part for part in parts if not part.isdigit())
            yield _problem(
                "skip-matches-nothing",
                f"skip_modules has {entry!r}, and no module is called so{did_you_mean(entry.split('.')[-1], words)}",
                f"modules here are called {', '.join(words[:12])}{', …' if len(words) > 12 else ''}",
            )

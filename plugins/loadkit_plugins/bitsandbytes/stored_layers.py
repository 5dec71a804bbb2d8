"""Whether a stored checkpoint's config leaves alone the layers that its files leave alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

from loadkit import Context, Plan, Problem, Quantization
from loadkit.plugins import FLOATS, did_you_mean, some_of
from loadkit_plugins.bitsandbytes.settings import FIELDS, METHOD, SKIPPING

__all__ = ["check_stored_layers"]

_problem = partial(Problem, "quantization", METHOD)

LEFT = "llm_int8_skip_modules"
PACKED = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")
OWN = tuple(name for name in FIELDS if name not in SKIPPING or name == LEFT)
"""Fields of bitsandbytes' own config; other methods' call the list otherwise."""
DIGITS = re.compile(r"\d+")


def check_stored_layers(context: Context, plan: Plan, stored: Quantization) -> Iterator[Problem]:
    """Layers that the config packs and the files don't, and the reverse.

    transformers 5.23 makes a quantized layer of every Linear that the config doesn't leave alone, whatever
    the files hold: plain weights are then read into it, or packed ones into a plain layer, for noise.
    """
    left = stored.options.get(LEFT)
    if left is not None and not (isinstance(left, list) and all(isinstance(each, str) for each in left)):
        yield _problem(
            "format-config",
            f"the checkpoint was asked for, and its quantization_config has {LEFT}={left!r}, which isn't a list of names",
            "correct quantization_config in config.json",
        )
        return
    weights = context.weights(plan.model_class)
    scaled = {_owner(w.name) for w in weights if w.name.endswith((".SCB", *PACKED))}
    sure = _linear_names(context)
    linear = [
        w for w in weights if w.kind == "linear" and w.name.endswith(".weight") and _last(w.module) in sure
    ]
    plain = [
        w.module
        for w in linear
        if scaled and w.module not in scaled and w.dtype in FLOATS and len(w.shape) == 2
    ]
    facts = context.library.class_facts(plan.model_class.model_class)
    in_float32 = facts.keep_in_fp32_modules if facts else ()
    if left is None:
        kinds = Counter(DIGITS.sub("", module) for module in plain)  # the last module is left alone by itself
        wrong = [m for m in plain if DIGITS.search(m) and kinds[DIGITS.sub("", m)] > 1]
    else:
        ends = {
            _last(entry) for entry in left
        }  # files may spell what comes before otherwise than the model does
        wrong = [module for module in plain if not _left(module, left) and not ends & {*module.split(".")}]
    wrong = [m for m in wrong if not any(f".{name}." in f".{m}." for name in in_float32)]
    if wrong:
        other = next((name for name in stored.options if name not in OWN), "")
        hint = f"; {other} is no field of it{did_you_mean(other, OWN)}" if other else ""
        yield _problem(
            "format-config",
            f"the checkpoint was asked for, its files hold {some_of(wrong)} unquantized, and {LEFT}={left!r} of its quantization_config "
            f"doesn't leave {'it' if len(wrong) == 1 else 'them'} alone{hint}",
            f"name them in {LEFT} in config.json's quantization_config",
        )
    if left and (noise := sorted(module for module in scaled if _left(module, left))):
        yield _problem(
            "format-config",
            f"the checkpoint was asked for, its files hold {some_of(noise)} quantized, and {LEFT}={left!r} of its quantization_config "
            "leaves that unquantized",
            f"take it out of {LEFT} in config.json's quantization_config",
        )


def _linear_names(context: Context) -> set[str]:
    """What linear layers, and nothing else, are called in the source of the model's type: files may have
    other names, and what is behind those isn't known."""
    made: dict[str, set[str]] = {}
    for family in context.library.families.values():
        for facts in family.modules.values():
            for name, classes in facts.members.items():
                made.setdefault(name, set()).update(classes)
    return {name for name, classes in made.items() if classes == {"Linear"}}


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _owner(name: str) -> str:
    """The module whose weight a constant belongs to."""
    return re.sub(r"(\.weight\.quant_state\..*|\.SCB)$", "", name)


def _left(module: str, entries: Sequence[str]) -> bool:
    """As transformers tells it (5.23: `should_convert_module`)."""
    return any(_fits(entry, module) or module.endswith(entry) for entry in entries)


def _fits(entry: str, module: str) -> bool:
    try:
        return re.match(rf"(?:{entry})(?:(?<=\.)|(?=\.|$))", module) is not None
    except re.error:
        return False

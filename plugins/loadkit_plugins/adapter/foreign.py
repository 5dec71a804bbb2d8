"""What an adapter from somebody else may not say: it fetches nothing, takes no more than it has, hangs
nobody."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from loadkit import Problem
from loadkit.plugins import AdapterFacts
from loadkit_plugins.adapter.pattern_cost import TOO_MANY, ways_to_match

__all__ = ["check_foreign", "trained_tokens"]

_problem = partial(Problem, "adapter", "adapter")

ELSEWHERE: Mapping[str, str] = {
    "adapters": "further adapters, which PEFT would load",
    "shadow_model": "another model, which PEFT would load",
    "megatron_config": "a package to import",
    "tokenizer_kwargs": "how to load a tokenizer",
    "prompt_tuning_init_state_dict_path": "another file",
    "cache_file": "another file",
    "covariance_file": "another file",
}
"""Fields, at any depth, by which PEFT 0.21 reads, fetches or imports something that isn't the adapter's."""

PATTERNS: Mapping[str, str] = {
    "target_modules": "{}",
    "exclude_modules": "{}",
    "feedforward_modules": "{}",
    "modules_to_save": r"(^|.*\.){}($|\..*)",
    "layers_pattern": r"(?:^|.*?\.){}\.(?P<idx>\d+)\.",
}
"""Fields whose texts PEFT 0.21 reads as regular expressions, and what it makes of them."""

KEYS = r"(.*\.)?({})$"
"""What it makes of the keys of `rank_pattern` and its kin."""

LONGEST = 20_000
"""Characters of a pattern; lists of every module of a large model have some thousands."""

MOST = 64
"""Patterns that an adapter may have in any case; more only where it has as many tensors."""

NO_SIZE = re.compile(
    r"alpha|seed|_key$|scaling|step|warmup|interval|gamma|lambda|tinit|tfinal|value$|bits|version"
)
"""Integers of configs that no memory is taken for."""

SMALL = 64
SMALL_OTHERWISE = 4096


def check_foreign(name: str, facts: AdapterFacts, *, trainable: bool) -> Iterator[Problem]:
    """Every problem of an existing adapter's config that makes it harmful to attach."""
    said = f"the adapter {facts.source!r} ({name})"
    yield from _elsewhere(said, facts.config, trainable=trainable)
    yield from _patterns(said, facts)
    yield from _sizes(said, facts)


def _elsewhere(said: str, config: Mapping[str, Any], *, trainable: bool) -> Iterator[Problem]:
    named = [(field, value) for field, value in _fields(config) if field in ELSEWHERE and value]
    initial = str(config.get("prompt_tuning_init") or "")
    if trainable and initial.upper() == "TEXT":
        named.append(("tokenizer_name_or_path", config.get("tokenizer_name_or_path")))
    for field, value in named:
        what = ELSEWHERE.get(field, "a tokenizer, which PEFT would load")
        yield _problem(
            "adapter-reads-elsewhere",
            f"{said} names {what}, in its config: {field}={_short(value)}; nobody would have looked at that",
            "load it with PEFT itself if you know its maker"
            + ("" if field in ELSEWHERE else ", or give adapter_trainable=False"),
        )


def _fields(config: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[str, Any]]:
    for field, value in config.items():
        yield field, value
        if isinstance(value, dict) and depth < 8:
            yield from _fields(value, depth + 1)


def _patterns(said: str, facts: AdapterFacts) -> Iterator[Problem]:
    found = list(_found(facts.config))
    if len(found) > max(MOST, len(facts.tensors)):
        yield _problem(
            "bad-pattern",
            f"{said} has {len(found):,} patterns in its config, and {len(facts.tensors):,} tensors: matching them all would take long",
            "write those of one kind as one pattern",
        )
        return
    for field, pattern, made in found:
        if fault := _fault(pattern, made):
            yield _problem(
                "bad-pattern",
                f"{said} has {field}={_short(pattern)} in its config, {fault}",
                "write a list of names, or a pattern without repetitions within repetitions, with one or two .* at most",
            )
            return


def _found(config: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Field, pattern, and what PEFT makes of it."""
    for field, value in config.items():
        if field in PATTERNS:
            listed = (
                value
                if isinstance(value, list) and field not in ("target_modules", "exclude_modules")
                else [value]
            )
            yield from (
                (field, each, PATTERNS[field].format(each)) for each in listed if isinstance(each, str)
            )
        elif field.endswith("_pattern") and isinstance(value, dict):
            yield from ((field, key, KEYS.format(key)) for key in value)


def _fault(pattern: str, made: str) -> str:
    if len(pattern) > LONGEST:
        return f"which is {len(pattern):,} characters long"
    try:
        ways = ways_to_match(made)
    except (re.error, OverflowError) as error:
        return f"which isn't a regular expression: {error}"
    except RecursionError:
        return "which is nested too deeply"
    return "" if ways <= TOO_MANY else "which has so many ways to match that trying them could take for ever"


def _sizes(said: str, facts: AdapterFacts) -> Iterator[Problem]:
    """Numbers by which PEFT makes tensors before it reads the file: none is larger than what is in it."""
    if not facts.tensors:
        return
    shapes = [header.shape for header in facts.tensors.values()]
    ranks = [
        h.shape[0] for n, h in facts.tensors.items() if re.search(r"\.lora_(embedding_)?A\b", n) and h.shape
    ]
    widest = max((side for shape in shapes for side in shape), default=0)
    for field, value in _integers(facts.config):
        of_rank = re.fullmatch(r"r|\w+_r|rank_pattern|effective_rank", field) is not None
        if of_rank and ranks:
            floor = SMALL if facts.config.get("rank_pattern") or field != "r" else 0
            limit = max([*ranks, floor])
        elif of_rank:
            limit = max(widest, SMALL) if facts.config.get("peft_type") != "LOKR" else 2**31
        else:
            limit = max(SMALL_OTHERWISE, *(_product(shape) for shape in shapes))
        if value > limit:
            held = (
                f"its matrices have a rank of {max(ranks)}"
                if of_rank and ranks
                else f"no side of its tensors is longer than {widest:,}"
            )
            yield _problem(
                "adapter-shape",
                f"{said} has {field}={value:,} in its config, and in its file {held}",
                "restore the adapter_config.json that was saved with it",
            )
            return
    copies = facts.config.get("layer_replication")
    spans = (
        [s for s in copies if isinstance(s, list) and len(s) == 2 and all(isinstance(n, int) for n in s)]
        if isinstance(copies, list)
        else []
    )
    if sum(max(0, stop - start) for start, stop in spans) > len(facts.tensors):
        yield _problem(
            "adapter-shape",
            f"{said} repeats more layers (layer_replication={_short(copies)}) than it has tensors",
            "restore the adapter_config.json that was saved with it",
        )


def _integers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for field, value in config.items():
        if NO_SIZE.search(field):
            continue
        values = value.values() if isinstance(value, dict) and field.endswith("_pattern") else [value]
        yield from ((field, each) for each in values if isinstance(each, int) and not isinstance(each, bool))


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def trained_tokens(facts: AdapterFacts) -> list[int]:
    """The ids of the tokens of which an adapter has rows."""
    indices = facts.config.get("trainable_token_indices") or facts.config.get("token_indices")
    listed = list(indices.values()) if isinstance(indices, dict) else [indices]
    return [i for each in listed if isinstance(each, list) for i in each if isinstance(i, int)]

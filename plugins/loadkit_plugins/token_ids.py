"""Ids of special tokens in model_kwargs, which the tokenizer's own go over once the model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from loadkit import Context, Plan, Problem

__all__ = ["check_token_ids"]

_problem = partial(Problem, "kwargs", "from-pretrained")


def check_token_ids(context: Context, plan: Plan) -> Iterator[Problem]:
    """A pad, eos or bos token's id that the config won't keep, as far as the tokenizer's ids are known."""
    asked = context.request.asked("model_kwargs")
    if asked is None or plan.processing.kind == "none":
        return
    for path, given in _ids(asked.value, ""):
        role = path.rpartition(".")[2].removesuffix("_id")
        token = getattr(plan.tokens, role, None) or (
            None if role == "bos_token" else context.processing.special_token(role)
        )  # the tokenizer's own bos token isn't set in the config
        number = context.processing.added_tokens.get(token) if token is not None else None
        listed = given if isinstance(given, list) else [given]
        if (
            number is None
            or given is None
            or (number in listed and (role != "pad_token" or listed == [number]))
        ):
            continue
        yield _problem(
            "token-id-overruled",
            f"{asked.by} gave {path}={given!r} in model_kwargs, and the tokenizer's {role} is {token!r}, number {number}, which the config is given",
            f"give {role}=… by its name, and leave {path} out; or processing_class='none' to load no tokenizer",
        )


def _ids(given: Mapping[str, Any], within: str) -> Iterator[tuple[str, Any]]:
    for name, value in given.items():
        if name in ("pad_token_id", "eos_token_id", "bos_token_id"):
            yield f"{within}{name}", value
        elif name == "text_config" and isinstance(value, dict):
            yield from _ids(value, f"{name}.")

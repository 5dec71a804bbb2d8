"""Load the tokenizer or processor that the plan names, and give it the planned template and tokens."""

from __future__ import annotations

from typing import Any

from loadkit.audit.model_access import tokenizer_of
from loadkit.errors import LoadError
from loadkit.schema.plans import Plan
from loadkit.schema.processing import Tokens, Vocabulary
from loadkit.text.suggest import did_you_mean

__all__ = ["finish_processing"]

ROLES = ("bos_token_id", "eos_token_id", "pad_token_id")


def finish_processing(plan: Plan, processing_class: Any) -> Vocabulary:
    """Set template, padding side and special tokens as planned; what the vocabulary asks of the model."""
    rows = max((a.embedding_rows for a in plan.adapters.members), default=0) if plan.adapters else 0
    if processing_class is None:
        return Vocabulary(size=0, rows=rows)
    tokenizer = tokenizer_of(processing_class)
    processing = plan.processing
    if processing.padding_side is not None:
        tokenizer.padding_side = processing.padding_side
    if processing.chat_template is not None:
        processing_class.chat_template = processing.chat_template
        tokenizer.chat_template = processing.chat_template
    new = _added(plan, plan.tokens, tokenizer)
    for role in ("eos_token", "pad_token", "bos_token", "unk_token"):
        token = getattr(plan.tokens, role)
        if token is not None:
            _known(plan, role, token, tokenizer)
            setattr(tokenizer, role, token)
    vocabulary = tokenizer.get_vocab()
    return Vocabulary(
        size=max(vocabulary.values(), default=-1) + 1,
        new_tokens=new,
        special_ids={role: getattr(tokenizer, role, None) for role in ROLES},
        rows=rows,
    )


def _added(plan: Plan, tokens: Tokens, tokenizer: Any) -> dict[str, int]:
    """Add the planned tokens that the vocabulary lacks; those added, to their ids."""
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in tokens.additional if token not in vocabulary]
    if not missing:
        return {}
    quantization = plan.quantized
    if quantization is not None and quantization.prequantized:
        raise LoadError(
            f"{', '.join(map(repr, missing))} would have to be added to the vocabulary, and {plan.checkpoint.source!r} is stored "
            f"quantized ({quantization.method}), so that its embeddings can't be resized: asked for because {plan.why('tokens').because}\n"
            "    fix: load the unquantized checkpoint and quantize it on the fly, or choose tokens that the vocabulary has"
        )
    tokenizer.add_tokens(missing, special_tokens=True)
    return {token: tokenizer.convert_tokens_to_ids(token) for token in missing}


def _known(plan: Plan, role: str, token: str, tokenizer: Any) -> None:
    vocabulary = tokenizer.get_vocab()
    if token not in vocabulary:
        special = [t for t in vocabulary if t[:1] in "<[" and t[-1:] in ">]"]
        raise LoadError(
            f"{role}={token!r} was asked for ({plan.why('tokens').because}), and the tokenizer of {plan.processing.source!r} "
            f"has no such token{did_you_mean(token, special or vocabulary)}\n"
            f"    fix: name a token of its vocabulary, or add it: additional_special_tokens=[{token!r}]"
        )

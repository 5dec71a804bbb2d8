"""tokens: which token ends a text, which fills up a batch (never the same), and which are added."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from loadkit import (
    Asked,
    Claim,
    Context,
    Option,
    PassedOver,
    Plan,
    Preparation,
    Problem,
    Processing,
    Quantization,
    Reading,
    Strength,
    Tokens,
    hookimpl,
)
from loadkit.plugins import ProcessingFacts, did_you_mean, tokenizer_of
from loadkit_plugins.mistral_common import is_mistral_common

_problem = partial(Problem, "tokens", "tokens")

PAD_NAMED = re.compile(
    r"[<\[|_]*(?:finetune_)?(?:right_|left_)?pad(?:ding)?(?:_token|_id)?[>\]|_]*", re.IGNORECASE
)
RESERVED = re.compile(
    r"<\|?(?:reserved|unused|extra)[\w|]*>|\[unused\d+\]|<SPECIAL_\d+>|<\|?(?:dummy|placeholder)[\w|]*>",
    re.IGNORECASE,
)
"""How families call tokens that were set aside and never trained."""

NEW_PAD = "<|pad|>"
NAMED = ("eos_token", "pad_token", "bos_token", "unk_token")
"""Roles whose token may be asked for."""

LARGEST_MULTIPLE = 65_536
"""More would fill the memory with rows that no token has."""

MULTIPLES = ("pad_to_multiple_of", "vocabulary_to_multiple_of")

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token")


@hookimpl
def loadkit_options() -> Sequence[Option]:
    def option(name: str, kind: str, line: str) -> Option:
        return Option(name=name, type=kind, help=line, stage="tokens")

    return [
        option(
            "eos_token",
            "str",
            "the token that ends a text: set in the tokenizer, the config and the generation config",
        ),
        option(
            "pad_token",
            "str",
            "the token that fills up a batch; by default the tokenizer's own, else a reserved one, else a new one",
        ),
        option("bos_token", "str", "the token that begins a text: set in the tokenizer and the config"),
        option("unk_token", "str", "the token for what the vocabulary lacks: set in the tokenizer"),
        option(
            "additional_special_tokens", "list", "special tokens to add; the embeddings grow to hold them"
        ),
        option(
            "pad_to_multiple_of", "int", "where tokens are added: make the embedding rows a multiple of it"
        ),
        option(
            "vocabulary_to_multiple_of",
            "int",
            "give the embeddings as many rows as there are tokens, rounded up to a multiple of it, unless they have more",
        ),
    ]


@hookimpl
def loadkit_choose_tokens(
    context: Context, quantization: Quantization | None, preparation: Preparation, processing: Processing
) -> Claim[Tokens | None] | None:
    if processing.kind == "none":
        return None
    if is_mistral_common(processing):
        because = "Mistral's own tokenizer has its tokens, and takes no others"
        return Claim(value=Tokens(), because=because, strength=Strength.FALLBACK)
    request, facts = context.request, context.processing
    eos, more = request.asked("eos_token"), request.asked("additional_special_tokens")
    rows = request.asked("vocabulary_to_multiple_of")
    pad = _pad(context, quantization, preparation)
    lacking = [t for t in (more.value if more else ()) if (more and more.demanded) or not _has(facts, t)]
    added = [*lacking, *([pad.token] if pad.new and pad.token else [])]
    others = {role: a for role in ("bos_token", "unk_token") if (a := request.asked(role))}
    value = Tokens(
        **{role: a.value for role, a in others.items() if a.value != facts.special_token(role)},
        eos_token=eos.value if eos else None,
        pad_token=pad.token,
        additional=tuple(dict.fromkeys(added)),
        pad_to_multiple_of=request.value("pad_to_multiple_of") if added else None,
        vocabulary_to_multiple_of=request.value("vocabulary_to_multiple_of"),
    )
    asked: list[Asked] = [a for a in (eos, more, request.asked("pad_token"), *others.values()) if a]
    own_eos, own_pad = facts.special_token("eos_token"), facts.special_token("pad_token")
    if value == Tokens() and own_pad is not None and own_pad != own_eos:
        reasons = [f"eos {own_eos} and pad {own_pad} are two tokens"]
    else:
        keeps = f"eos {own_eos} is the tokenizer's own" if own_eos else ""
        reasons = [
            f"eos {eos.value}: {eos.because}" if eos else keeps,
            f"pad {pad.token or own_pad or 'none'}: {pad.because}",
            *(f"{role.removesuffix('_token')} {a.value}: {a.because}" for role, a in others.items()),
            f"added {', '.join(lacking)}: {more.because}" if more and lacking else "",
            "rows of new tokens start from the mean of the others" if added else "",
            f"rows for a multiple of {rows.value} tokens: {rows.because}" if rows else "",
        ]
    return Claim(
        value=value,
        because="; ".join(reason for reason in reasons if reason),
        strength=max((a.strength for a in asked), key=lambda s: s.rank, default=Strength.FALLBACK),
        passed_over=pad.passed_over,
    )


@hookimpl
def loadkit_check_plan(context: Context, plan: Plan) -> Sequence[Problem]:
    return list(_problems(context, plan))


@hookimpl
def loadkit_read_back(plan: Plan, processing_class: Any) -> Sequence[Reading]:
    """What the tokenizer calls its special tokens, and those that were to be added to it."""
    tokens, tokenizer = plan.tokens, tokenizer_of(processing_class)
    if tokenizer is None:
        return []
    about = partial(Reading, stage="tokens")
    found = [
        about(names=(role,), where=f"tokenizer.{role}", planned=planned, effective=getattr(tokenizer, role))
        for role, planned in {"eos_token": tokens.eos_token, "pad_token": tokens.pad_token}.items()
        if planned is not None
    ]
    if tokens.additional:
        vocabulary = tokenizer.get_vocab()
        found.append(
            about(
                names=("additional_special_tokens",),
                where="the tokenizer's vocabulary",
                planned=list(tokens.additional),
                effective=[token for token in tokens.additional if token in vocabulary],
                verbatim=False,  # a new pad token is among them
            )
        )
    return found


def _problems(context: Context, plan: Plan) -> Iterator[Problem]:
    request, tokens, facts = context.request, plan.tokens, context.processing
    asked = [n for n in (*NAMED, "additional_special_tokens") if request.asked(n)]
    demanded = [n for n in asked if (a := request.asked(n)) and a.demanded]
    if plan.processing.kind == "none" and demanded:
        yield _problem(
            "token-option-unused",
            f"{' and '.join(demanded)} was given, but there is no tokenizer",
            f"leave {' and '.join(demanded)} out, or name a tokenizer with tokenizer=…",
        )
        return
    yield from _unknown_tokens(context, tokens)
    if blank := [token for token in tokens.additional if not token.strip()]:
        yield _problem(
            "blank-token",
            f"additional_special_tokens names {blank[0]!r}, which is no token",
            "leave it out, or name a token such as '<|tool|>'",
        )
    pad, eos = request.asked("pad_token"), tokens.eos_token or facts.special_token("eos_token")
    if plan.preparation.training and pad is not None and pad.demanded and pad.value == eos:
        yield _problem(
            "pad-is-eos",
            f"you asked for pad_token={pad.value!r}, which is the eos token: padding is left out of the loss, so a model "
            "trained with it never learns to stop",
            "leave pad_token out to have one chosen, or name another",
        )
    new = [t for t in tokens.additional if t not in facts.added_tokens]
    if new and plan.quantized is not None and plan.quantized.prequantized:
        yield _problem(
            "resize-prequantized",
            f"{', '.join(new)} would be added to the vocabulary, but the checkpoint is stored quantized "
            f"({plan.quantized.method}), so its embeddings can't be resized ({plan.why('tokens').because})",
            "load the unquantized checkpoint and quantize it on the fly, or use tokens that the vocabulary has"
            + (f": {', '.join(reserved)}" if (reserved := _reserved(facts)[:3]) else ""),
        )
    multiples = [a for name in MULTIPLES if (a := request.asked(name))]
    for wrong in (a for a in multiples if not 1 <= a.value <= LARGEST_MULTIPLE):
        yield _problem("bad-multiple", f"{wrong.name}={wrong.value} was asked for", "give 8, 64 or 128")
    multiple = request.asked("pad_to_multiple_of")
    if multiple is not None and multiple.value >= 1 and multiple.demanded and not tokens.additional:
        yield _problem(
            "multiple-unused",
            "pad_to_multiple_of was given, but no token is added, so the embeddings keep their size",
            "leave it out",
            severity="warning",
        )


def _unknown_tokens(context: Context, tokens: Tokens) -> Iterator[Problem]:
    """Tokens that were asked for, and that the tokenizer doesn't have and nobody adds."""
    facts = context.processing
    for role in NAMED:
        asked, token = context.request.asked(role), getattr(tokens, role)
        if asked is None or token != asked.value or token in facts.added_tokens or token in tokens.additional:
            continue
        known = context.vocabulary
        if known is None or token in known:
            continue
        special = [t for t in known if t[:1] in "<[" and t[-1:] in ">]"]
        yield _problem(
            "unknown-token",
            f"{role}={token!r} was asked for ({asked.because}), and the tokenizer of {facts.location!r} has no such token"
            + did_you_mean(token, special or known),
            f"name a token of its vocabulary, or add it: additional_special_tokens=[{token!r}]",
        )


class _Pad(NamedTuple):
    """The pad token to set (None keeps the tokenizer's own), why, and whether it must be added."""

    token: str | None
    because: str
    new: bool = False
    passed_over: tuple[PassedOver, ...] = ()


def _pad(context: Context, quantization: Quantization | None, preparation: Preparation) -> _Pad:
    """The first that can be had: the one asked for, the tokenizer's own, a reserved one, a new one."""
    request, facts = context.request, context.processing
    eos = request.value("eos_token") or facts.special_token("eos_token")
    own, asked = facts.special_token("pad_token"), request.asked("pad_token")
    passed: list[PassedOver] = []
    training = preparation.training
    if asked is not None:
        if asked.demanded or asked.value != eos or not training:
            return _Pad(asked.value, asked.because)
        passed.append(PassedOver(asked.value, f"it is the eos token, and {asked.by} only prefers it"))
    if own is not None and own != eos:
        return _Pad(None, "the tokenizer's own", passed_over=tuple(passed))
    if own is not None and not training:
        return _Pad(None, "the tokenizer's own; that it is the eos token matters in training only")
    passed += [PassedOver(own, "it is the eos token")] if own is not None else []
    if reserved := _reserved(facts, preferred=request.value("additional_special_tokens", [])):
        because = "set aside in the vocabulary and not used for anything else"
        return _Pad(reserved[0], because, passed_over=tuple(passed))
    if not training:
        return _Pad(None, "the tokenizer has none, and inference adds no token")
    stored_quantized = quantization is not None and quantization.prequantized and quantization.packed
    if stored_quantized and (unknown := facts.special_token("unk_token")):
        reason = "the embeddings of a checkpoint that is stored quantized can't grow"
        passed.append(PassedOver(NEW_PAD, reason))
        return _Pad(unknown, "the unknown token ends no text and is rare in any", passed_over=tuple(passed))
    because = "new: the tokenizer has none, and no reserved one"
    return _Pad(NEW_PAD, because, new=True, passed_over=tuple(passed))


def _has(facts: ProcessingFacts, token: str) -> bool:
    """Whether a token is known to be in the vocabulary; others may be found there when it is loaded."""
    return token in facts.added_tokens or token in {
        facts.special_token(role) for role in (*ROLES, "pad_token")
    }


def _reserved(facts: ProcessingFacts, preferred: Sequence[str] = ()) -> list[str]:
    """Tokens set aside in the vocabulary, by id; those with a name for padding first."""
    used = {facts.special_token(role) for role in ROLES} | set(preferred)
    template = facts.chat_template or ""
    free = [t for t, _ in sorted(facts.added_tokens.items(), key=lambda f: f[1])]
    free = [t for t in free if t not in used and t not in template]
    named = [t for t in free if PAD_NAMED.fullmatch(t)]
    return named + [t for t in free if RESERVED.fullmatch(t)]

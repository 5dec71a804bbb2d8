"""vocabulary: embeddings, config and generation config agree with the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from loadkit import Finding, LoadError, Plan, Reading, Vocabulary, hookimpl
from loadkit.plugins import base_of, input_embeddings, output_embeddings, tokenizer_of
from loadkit_plugins.model_types import EXTRA_ROWS

_finding = partial(Finding, "tokens", "vocabulary")


@hookimpl
def loadkit_fit_vocabulary(plan: Plan, model: Any, vocabulary: Vocabulary) -> Any:
    embeddings = input_embeddings(model)
    if vocabulary.size == 0 or not hasattr(embeddings, "weight"):
        return model
    rows = _rows(embeddings)
    trained = vocabulary.size - len(vocabulary.new_tokens)
    if trained > max(rows, vocabulary.rows):
        raise LoadError(
            f"the tokenizer of {plan.processing.source!r} has {trained} tokens, and the embeddings of {plan.checkpoint.source!r} "
            f"have {rows} rows: the ids above have no embedding, so they don't belong together\n"
            "    fix: name the model's own tokenizer with tokenizer=…, or load the tokenizer's own model"
        )
    rounded = _multiple(vocabulary.size, plan.tokens.vocabulary_to_multiple_of)
    needed = max(rows, rounded, vocabulary.rows)
    if vocabulary.new_tokens:
        needed = _multiple(needed, plan.tokens.pad_to_multiple_of)
    if (needed > rows or vocabulary.new_tokens) and hasattr(embeddings.weight, "ds_shape"):
        raise LoadError(
            f"{len(vocabulary.new_tokens)} new tokens take rows of the embeddings of {plan.checkpoint.source!r}, which ZeRO-3 has split "
            "over the ranks already\n"
            "    fix: load it in one process with the same tokens, save it, and train what was saved"
        )
    if needed > rows:
        _refuse_quantized(plan, model, vocabulary)
        model.resize_token_embeddings(needed, mean_resizing=False)
    new = sorted({*vocabulary.new_tokens.values(), *range(rows, needed)})
    if new:
        _mean_rows(model, new, trained=min(trained, rows))
    _align(model, plan, vocabulary.special_ids)
    return model


def _rows(embeddings: Any) -> int:
    """How many there are; under ZeRO-3 a rank holds none of them, and DeepSpeed notes the whole shape."""
    weight = embeddings.weight
    return int(getattr(weight, "ds_shape", weight.shape)[0])


@hookimpl
def loadkit_audit_model(plan: Plan, model: Any, processing_class: Any) -> Sequence[Finding]:
    return list(_findings(plan, model, processing_class))


@hookimpl
def loadkit_read_back(plan: Plan, model: Any, processing_class: Any) -> Sequence[Reading]:
    merged = plan.adapters is not None and plan.adapters.merge  # which may have changed one of the two
    rows = _rounded(plan, model, processing_class)
    return [*rows, *_special_ids(plan, model, processing_class), *([] if merged else _tied(base_of(model)))]


def _rounded(plan: Plan, model: Any, processing_class: Any) -> Iterator[Reading]:
    """Whether there are as many embedding rows as the rounded tokens ask for, or more."""
    tokenizer, multiple = tokenizer_of(processing_class), plan.tokens.vocabulary_to_multiple_of
    embeddings = input_embeddings(base_of(model))
    if tokenizer is None or not multiple or not hasattr(embeddings, "weight"):
        return
    wanted = _multiple(max(tokenizer.get_vocab().values(), default=-1) + 1, multiple)
    rows = _rows(embeddings)
    yield Reading(
        stage="tokens",
        names=("vocabulary_to_multiple_of",),
        where="rows of the embeddings",
        planned=max(rows, wanted),
        effective=rows,
        verbatim=False,
    )


def _special_ids(plan: Plan, model: Any, processing_class: Any) -> Iterator[Reading]:
    """Config and generation config name the tokenizer's pad token, and an eos token that was chosen."""
    tokenizer = tokenizer_of(processing_class)
    base = base_of(model)
    if tokenizer is None or not hasattr(input_embeddings(base), "weight") or not tokenizer.get_vocab():
        return
    about = partial(Reading, stage="tokens", verbatim=False)
    for role in ("bos_token", "unk_token"):
        if (wanted := getattr(plan.tokens, role)) is not None:
            found = getattr(tokenizer, role, None)
            yield about(names=(role,), where=f"{role} of the tokenizer", planned=wanted, effective=found)
    for where, config in _configs(base).items():
        if tokenizer.pad_token_id is not None:
            yield about(
                names=("pad_token",),
                where=f"pad_token_id of {where}",
                planned=tokenizer.pad_token_id,
                effective=getattr(config, "pad_token_id", None),
                code="pad-token",
            )
        if plan.tokens.eos_token is not None:
            yield about(
                names=("eos_token",),
                where=f"eos_token_id of {where}",
                planned=tokenizer.eos_token_id,
                effective=next(iter(_listed(getattr(config, "eos_token_id", None))), None),
                code="eos-token-id",
            )


def _tied(base: Any) -> Iterator[Reading]:
    """Tensors are one where the config says so, and embedding and output head only there."""
    tied = getattr(base, "all_tied_weights_keys", None)
    if tied is None:
        return
    pairs = {
        f"{target} and {source}": (_at(base, target), _at(base, source)) for target, source in tied.items()
    }
    if not tied:
        ends = [getattr(m, "original_module", m) for m in (input_embeddings(base), output_embeddings(base))]
        pairs["embedding and output head"] = tuple(getattr(module, "weight", None) for module in ends)  # type: ignore[assignment]
    for where, (one, other) in pairs.items():
        if one is None or other is None or "meta" in (one.device.type, other.device.type):
            continue
        yield Reading(
            stage="architecture",
            names=("model_kwargs.tie_word_embeddings",),
            where=f"{where} as one tensor",
            planned=bool(tied),
            effective=one is other,
            verbatim=False,
            code="tied-weights",
        )


def _at(base: Any, path: str) -> Any:
    """A parameter by the name that it has without an adapter; None where it isn't there."""
    module, _, name = path.rpartition(".")
    try:
        found = base.get_submodule(module)
    except AttributeError:
        return None
    found = getattr(found, "original_module", found)
    held = found._parameters.get(name)  # what a packed one gives as attribute isn't the tensor
    return getattr(found, name, None) if held is None else held


def _findings(plan: Plan, model: Any, processing_class: Any) -> Iterator[Finding]:
    tokenizer = tokenizer_of(processing_class)
    base = base_of(model)
    embeddings = input_embeddings(base)
    if tokenizer is None or not hasattr(embeddings, "weight"):
        return
    size = max(tokenizer.get_vocab().values(), default=-1) + 1
    rows = _rows(embeddings)
    if size > rows:
        message = "the tokenizer has ids without an embedding"
        yield _finding("vocabulary-size", message, f"{size} ids", f"{rows} rows")
    text = base.config.get_text_config()
    stated = getattr(text, "vocab_size", rows)
    if stated not in (rows, rows - EXTRA_ROWS.get(getattr(text, "model_type", ""), 0)):
        message = "vocab_size isn't what the embeddings have"
        yield _finding("vocab-size-config", message, f"{rows}", f"{stated}")
    yield from _untied(base)
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if plan.preparation.training and pad is not None and pad == eos:
        yield _finding("pad-is-eos", "the pad token is the eos token", "two tokens", tokenizer.eos_token)
    for where, config in _configs(base).items():
        own = _listed(getattr(config, "eos_token_id", None))
        if plan.preparation.training and eos is not None and eos not in own:
            yield _finding("eos-token", f"{where} has another eos token", f"{eos}", f"{own or 'none'}")


def _untied(base: Any) -> Iterator[Finding]:
    """transformers 5.23 leaves embedding and head apart where the files hold both, with different values."""
    head, tied = output_embeddings(base), getattr(base, "all_tied_weights_keys", None)
    if head is None or tied or not getattr(base.config.get_text_config(), "tie_word_embeddings", False):
        return
    declared = getattr(base, "_tied_weights_keys", None)
    if declared and base.config.tie_word_embeddings:
        yield _finding(
            "untied-weights",
            "the config ties embedding and output head, and the files hold two different ones: both are kept",
            "one tensor",
            "two",
            severity="warning",
            remedy="set tie_word_embeddings to false in config.json, or use the files that belong to it",
        )


def _mean_rows(model: Any, new: Sequence[int], *, trained: int) -> None:
    """Set new rows to the mean of the trained ones, in the input and output embeddings.

    The rows that a checkpoint has beyond its vocabulary were never trained: one that a new token takes is new
    too. A mean needs no random numbers, so every rank gets the same rows.
    """
    import torch

    output = output_embeddings(model)
    tensors = {id(m.weight): m.weight for m in (input_embeddings(model), output) if m is not None}
    if (bias := getattr(output, "bias", None)) is not None:
        tensors[id(bias)] = bias
    with torch.no_grad():
        for tensor in tensors.values():
            if tensor.shape[0] > max(new):
                mean = tensor[:trained].mean(dim=0, dtype=torch.float32)
                tensor[list(new)] = mean.to(tensor.dtype)


def _refuse_quantized(plan: Plan, model: Any, vocabulary: Vocabulary) -> None:
    """Rows can be added to floating-point embeddings only."""
    for module in (input_embeddings(model), output_embeddings(model)):
        weight = getattr(module, "weight", None)
        if weight is not None and not (weight.is_floating_point() and weight.dim() == 2):
            raise LoadError(
                f"{', '.join(vocabulary.new_tokens) or _why_more(plan)} would need more embedding rows, and "
                f"{type(module).__name__} of {plan.checkpoint.source!r} is quantized\n"
                "    fix: keep it out of quantization with skip_modules, or use tokens that the vocabulary has"
            )


def _why_more(plan: Plan) -> str:
    """What but new tokens asks for more rows."""
    multiple = plan.tokens.vocabulary_to_multiple_of
    return f"vocabulary_to_multiple_of={multiple}" if multiple else "rows of the adapter"


def _align(model: Any, plan: Plan, ids: Mapping[str, int | None]) -> None:
    """Let config and generation config name the tokenizer's special tokens.

    The eos token is what generation stops at: where several are listed there, the others stay in the list.
    """
    for where, config in _configs(model).items():
        eos, own = ids.get("eos_token_id"), _listed(getattr(config, "eos_token_id", None))
        if eos is not None and (eos not in own or (plan.tokens.eos_token and own[0] != eos)):
            several = where == "the generation config" and own and own != [eos]
            config.eos_token_id = [eos, *(i for i in own if i != eos)] if several else eos
        if plan.tokens.bos_token and hasattr(config, "bos_token_id"):
            config.bos_token_id = ids.get("bos_token_id")
        if ids.get("pad_token_id") is not None:
            config.pad_token_id = ids["pad_token_id"]


def _configs(model: Any) -> dict[str, Any]:
    """The configs that name special tokens: the text part's, the whole one's, the generation's."""
    config = model.config
    found = {"the config": config.get_text_config(), "the outer config": config}
    generation = getattr(model, "generation_config", None)
    named = {where: c for where, c in found.items() if hasattr(c, "eos_token_id")}
    return {**named, **({} if generation is None else {"the generation config": generation})}


def _listed(value: Any) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)


def _multiple(count: int, of: int | None) -> int:
    return count if not of else math.ceil(count / of) * of

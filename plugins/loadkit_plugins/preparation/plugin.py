"""preparation: k-bit preparation, then gradient checkpointing, then input gradients; always in this order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from loadkit import (
    Claim,
    Context,
    Finding,
    ModelClass,
    Option,
    Plan,
    Preparation,
    Problem,
    Quantization,
    Reading,
    Strength,
    hookimpl,
)
from loadkit.plugins import input_embeddings
from loadkit_plugins.model_types import OVER_A_CACHE
from loadkit_plugins.preparation import freezing
from loadkit_plugins.preparation.checkpointing import check_keywords, enable
from loadkit_plugins.preparation.norms import norms
from loadkit_plugins.preparation.optimizers import loadkit_optimizers

__all__ = ["loadkit_optimizers"]

_problem = partial(Problem, "preparation", "preparation")

REENTRANT = {"use_reentrant": False}
"""torch's recommended checkpointing: it keeps working over frozen inputs, under DDP and under FSDP."""

REENTRANT_UNDER_ZERO3 = {"use_reentrant": True}
"""What ZeRO-3 needs over a frozen base: it frees frozen parameters while activations are recomputed, and the
recommended kind then finds tensors of another shape (huggingface/transformers#47254). It can go when the
lowest DeepSpeed that loadkit supports has deepspeedai/DeepSpeed#8148."""


@hookimpl
def loadkit_options() -> Sequence[Option]:
    return [
        Option(
            name="training",
            type="bool",
            stage="preparation",
            help="prepare the model for training rather than inference",
        ),
        Option(
            name="gradient_checkpointing",
            type="bool",
            stage="preparation",
            help="recompute activations in the backward pass to save memory",
            aliases=("activation_checkpointing",),
        ),
        Option(
            name="gradient_checkpointing_kwargs",
            type="mapping",
            stage="preparation",
            help='how, such as {"use_reentrant": false} (the default)',
            aliases=("activation_checkpointing_kwargs",),
        ),
        Option(
            name="float32_norms",
            type="bool",
            stage="preparation",
            help="keep the norms of a quantized base that trains in float32 (the default, but where an engine shards parameters)",
        ),
        *freezing.declared_options(),
    ]


@hookimpl
def loadkit_choose_preparation(
    context: Context, architecture: ModelClass, quantization: Quantization | None
) -> Claim[Preparation]:
    request = context.request
    training = bool(request.value("training", False))
    wish = request.asked("gradient_checkpointing")
    wanted = wish is not None and bool(wish.value)
    reason = _unsupported(context, architecture) if wanted else ""
    checkpointing = wanted and not (reason and wish is not None and not wish.demanded)
    packed = quantization is not None and quantization.packed
    frozen = packed or bool(request.value("adapter", False) or request.value("peft_config", False))
    whole = training and not frozen
    only = freezing.train_only(context) if whole else ()
    trainable, refused = freezing.trainable_dtype(context) if whole else ("", "")
    frozen = frozen or bool(only)
    default = REENTRANT_UNDER_ZERO3 if frozen and context.topology.engine == "zero3" else REENTRANT
    value = Preparation(
        kbit=training and packed,
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={**default, **_wished(context, default)} if checkpointing else {},
        input_gradients=checkpointing and frozen,
        training=training,
        float32_norms=_float32_norms(context),
        norms_left=tuple(dict.fromkeys(_cast_to(context))) if training and packed else (),
        trainable_dtype=trainable,
        frozen_parts=_frozen_parts(context, architecture) if whole else (),
        train_only=only,
    )
    wishes = [asked for asked in (request.asked("training"), wish) if asked]
    strength = max((asked.strength for asked in wishes), key=lambda s: s.rank, default=Strength.FALLBACK)
    purpose = "training" if training else "inference"
    because = f"{wishes[0].by} asked for {purpose}" if wishes else "nobody asked for training"
    if reason and not checkpointing:
        because += f"; no gradient checkpointing: {reason}"
    because += f"; {refused}" if refused else ""
    if trainable:
        because += f"; what trains is {trainable}: computing in less is left to the trainer's autocast"
    norms_asked = request.asked("float32_norms")
    if value.kbit and norms_asked is not None and norms_asked.value is value.float32_norms:
        because += f"; norms {'in float32' if value.float32_norms else 'in the dtype of the weights'}: {norms_asked.because}"
    elif value.kbit and not value.float32_norms:
        because += f"; norms stay in the dtype of the weights, as {context.topology.engine} shards parameters of one dtype"
    if checkpointing and default is REENTRANT_UNDER_ZERO3:
        because += "; use_reentrant, as ZeRO-3 frees frozen parameters while activations are recomputed"
    return Claim(value=value, because=because, strength=strength)


def _float32_norms(context: Context) -> bool:
    """As asked, but where an engine shards parameters, which wants one dtype: there a demand alone counts."""
    asked, shards = context.request.asked("float32_norms"), context.topology.shards_parameters
    if asked is None or (shards and not asked.demanded):
        return not shards
    return bool(asked.value)


def _frozen_parts(context: Context, architecture: ModelClass) -> tuple[str, ...]:
    """The parts that don't train, of a model that has such."""
    asked = context.request.asked("frozen_parts")
    towers = context.towers(architecture)
    return (
        tuple(asked.value)
        if asked is not None and (towers.paths or not towers.known or asked.demanded)
        else ()
    )


def _wished(context: Context, default: dict[str, bool]) -> dict[str, Any]:
    """The keyword arguments asked for, but for a profile's wish for the kind that would fail."""
    asked = context.request.asked("gradient_checkpointing_kwargs")
    if asked is None:
        return {}
    wanted: dict[str, Any] = asked.value
    return wanted if asked.demanded or default is REENTRANT else {**wanted, **default}


@hookimpl
def loadkit_check_plan(context: Context, plan: Plan) -> Sequence[Problem]:
    return [*freezing.check(context, plan), *_problems(context, plan), *check_keywords(context, plan)]


def _problems(context: Context, plan: Plan) -> Iterator[Problem]:
    if plan.preparation.gradient_checkpointing and (reason := _unsupported(context, plan.model_class)):
        yield _problem(
            "no-gradient-checkpointing",
            f"gradient_checkpointing=True was asked for, but {reason}",
            "leave gradient_checkpointing out",
        )
    yield from _nothing_trains(plan)
    norms_asked = context.request.asked("float32_norms")
    if norms_asked is not None and norms_asked.demanded and not plan.preparation.kbit:
        yield _problem(
            "norms-unused",
            "float32_norms was given, but no quantized base trains: norms have the dtype of the others",
            "leave it out",
        )
    kwargs = context.request.asked("gradient_checkpointing_kwargs")
    if kwargs is not None and kwargs.demanded and not plan.preparation.gradient_checkpointing:
        yield _problem(
            "checkpointing-kwargs-unused",
            "gradient_checkpointing_kwargs was given, but gradient checkpointing is off",
            "give gradient_checkpointing=True with it, or leave it out",
        )


def _should_train(plan: Plan) -> bool:
    """Whether something is to train as it is loaded: adapter=False leaves that to a trainer's adapter."""
    brought = plan.request.value("adapter") is False and not plan.preparation.freezes
    return plan.preparation.training and not brought


def _nothing_trains(plan: Plan) -> Iterator[Problem]:
    """A quantized base is frozen, and so is an adapter that isn't trainable."""
    adapters = plan.adapters
    whole = plan.quantized is None if adapters is None else adapters.merge
    trains = adapters is not None and any(a.trainable for a in adapters.members if a.name == adapters.active)
    if whole or trains or not _should_train(plan):
        return
    frozen = (
        "the quantized base is frozen"
        if adapters is None
        else f"the adapter {adapters.active!r} is frozen, and so is its base"
    )
    ways = ["add adapter=True for a new adapter (adapter=False where the trainer brings its own)"]
    if plan.request.value("adapter_trainable") is False:
        ways.append("leave adapter_trainable=False out")
    if adapters is None and plan.quantized is not None:
        ways.append(_in_floating_point(plan.quantized))
    yield _problem(
        "nothing-trains",
        f"the model is to train ({plan.why('preparation').because}), and nothing would: {frozen}",
        f"{', '.join(ways)}, or leave training out",
    )


def _in_floating_point(quantized: Quantization) -> str:
    """How all weights would train."""
    if quantized.prequantized:
        return "load it in floating point to train all weights (dequantize=True, where its format can be turned back)"
    return "leave the quantization out to train all weights"


@hookimpl
def loadkit_prepare_quantized(plan: Plan, model: Any) -> Any:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name, module in norms(model).items() if plan.preparation.float32_norms else ():
        if not name.endswith(plan.preparation.norms_left):
            _in_float32(module, plan.dtype)
    _stay_trainable(model)
    return model


@hookimpl
def loadkit_freeze(plan: Plan, model: Any) -> Any:
    return freezing.freeze(plan, model)


@hookimpl
def loadkit_checkpoint_activations(plan: Plan, model: Any) -> Any:
    enable(model, plan.preparation.gradient_checkpointing_kwargs)
    # transformers 5.20 and later let gradients through with it, by functions that can't be pickled
    return _let_through(model) if getattr(model, "_require_grads_hooks", None) else model


@hookimpl
def loadkit_enable_input_gradients(model: Any) -> Any:
    return _let_through(model)


def _let_through(model: Any) -> Any:
    """As transformers' `enable_input_require_grads`, but the embeddings may be changed in place afterwards.

    The tensor that transformers marks is a leaf of the graph, which models that add positions in place (blip,
    git, udop and others) can't change.
    """
    if getattr(model, "_require_grads_hooks", None):
        model.disable_input_require_grads()
    found = {
        id(e): e for m in model.modules() if hasattr(m, "get_input_embeddings") and (e := input_embeddings(m))
    }
    model._require_grads_hooks = [e.register_forward_hook(_into_graph) for e in found.values()]
    return model


def _into_graph(module: Any, args: Any, output: Any) -> Any:
    return output.requires_grad_(True).clone() if output.is_leaf else output


@hookimpl
def loadkit_read_back(plan: Plan, model: Any) -> Sequence[Reading]:
    from loadkit_plugins.preparation.readings import readings

    return list(readings(plan, model))


@hookimpl
def loadkit_audit_model(plan: Plan, model: Any) -> Sequence[Finding]:
    return [*freezing.audit(plan, model), *_findings(plan, model)]


def _findings(plan: Plan, model: Any) -> Iterator[Finding]:
    if _should_train(plan) and not any(p.requires_grad for p in model.parameters()):
        yield Finding(
            "preparation",
            "preparation",
            "nothing-trains",
            "the model is loaded to train, and none of its parameters does",
            planned="at least one parameter that trains",
            effective=f"0 of {sum(1 for _ in model.parameters())} parameters",
            remedy="add adapter=True, train an unquantized model whole, or leave training out",
        )


def _cast_to(context: Context) -> Iterator[str]:
    """Norms that the model casts its activations to the dtype of (blip-2), by the source of transformers."""
    for family in context.library.families.values():
        for class_name, facts in family.modules.items():
            cast_to = [m for m in facts.direct if any(c.endswith("Norm") for c in facts.members.get(m, ()))]
            for other in family.modules.values() if cast_to else ():
                homes = (a for a, classes in other.members.items() if class_name in classes)
                yield from (f"{home}.{member}" for home in homes for member in cast_to)


def _stay_trainable(model: Any) -> None:
    """Keep bitsandbytes from repacking 4-bit weights for inference on the CPU.

    On a CPU with AVX512-BF16, the first forward pass in evaluation mode packs them for a kernel without a
    backward pass, and they stay so: training goes on with wrong gradients (bitsandbytes 0.50,
    `Linear4bit.forward`).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _in_float32(module: Any, dtype: str) -> None:
    """Keep a frozen norm in float32, and hand its result on in the dtype of the weights.

    PEFT's prepare_model_for_kbit_training casts every other parameter to float32 too, embeddings and head (18
    GB more for an 8 B model), and leaves float32 activations behind each norm; neither is needed.
    """
    import torch

    module.to(torch.float32)
    if isinstance(module, torch.nn.LayerNorm | torch.nn.GroupNorm):
        # torch's own kernels want input and weight in one dtype; transformers' RMS norms multiply mixed ones.
        module.register_forward_pre_hook(partial(_taken_in, dtype=torch.float32))
    module.register_forward_hook(partial(_handed_on, dtype=getattr(torch, dtype)))


def _taken_in(module: Any, args: tuple[Any, ...], *, dtype: Any) -> Any:
    return tuple(
        _cast(each, dtype) for each in args
    )  # functions of the module: hooks are pickled with the model


def _handed_on(module: Any, args: Any, output: Any, *, dtype: Any) -> Any:
    return _cast(output, dtype)


def _cast(value: Any, dtype: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_cast(each, dtype) for each in value)
    return value.to(dtype) if hasattr(value, "is_floating_point") and value.is_floating_point() else value


def _unsupported(context: Context, architecture: ModelClass) -> str:
    if context.checkpoint.model_type in OVER_A_CACHE:
        return f"{context.checkpoint.model_type} computes over its cache, which recomputing would corrupt"
    facts = context.library.class_facts(architecture.model_class)
    if facts is None or facts.supports_gradient_checkpointing:
        return ""
    return f"{architecture.model_class} doesn't support it"

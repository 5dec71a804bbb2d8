"""What a request says about adapters: existing ones, or a new one by plain options or a PEFT config."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from loadkit import (
    Adapter,
    Adapters,
    Asked,
    Claim,
    Context,
    ModelClass,
    Option,
    PassedOver,
    Preparation,
    Quantization,
    Request,
    Strength,
    Tokens,
)
from loadkit.plugins import AdapterFacts, canonical_dtype
from loadkit_plugins.adapter.experts import about_experts, choose_experts, leave_routers
from loadkit_plugins.adapter.fields import Fields, adapter_type, merged, once
from loadkit_plugins.adapter.foreign import trained_tokens
from loadkit_plugins.adapter.new_head import train_head
from loadkit_plugins.adapter.targets import EVERY_LINEAR, absent, owners_of, unadaptable

__all__ = [
    "TASK_TYPES",
    "declared_options",
    "existing_adapters",
    "needs_weights",
    "new_adapter",
    "stacked",
]

NEEDS_WEIGHTS = ("pissa", "corda", "mica", "loftq", "orthogonal")
"""Beginnings of initialisations that read or change the base's weights in floating point (PEFT 0.21)."""

TASK_TYPES: Mapping[str, str] = {
    "image-text-to-text": "CAUSAL_LM",  # as TRL, axolotl and LLaMA-Factory have it
    "causal-lm": "CAUSAL_LM",
    "seq2seq-lm": "SEQ_2_SEQ_LM",
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
}
"""Task to PEFT's task type; one left out has none in PEFT."""


def declared_options() -> Sequence[Option]:
    """The plugin's own options."""

    def option(name: str, kind: str, line: str) -> Option:
        return Option(name=name, type=kind, help=line, stage="adapter")

    return [
        option("peft_config", "mapping", "a PEFT config object, or its fields, for the new adapter"),
        option("lora_r", "int", "rank of a new LoRA adapter"),
        option("lora_alpha", "float", "scale of a new LoRA adapter"),
        option("lora_dropout", "float", "dropout of a new LoRA adapter"),
        option(
            "lora_target_modules",
            "list or str",
            'modules to adapt: a list, a pattern, "all-linear", or "every-linear" (linear layers by their last names: '
            "fused experts and routers aren't among them), which may be in a list; \"by-model-type\" for PEFT's own choice",
        ),
        option(
            "lora_target_parameters", "list", "parameters to adapt that aren't modules, such as fused experts"
        ),
        option(
            "lora_experts",
            "bool",
            "adapt the experts of a mixture too, each in the activations (by default attention and dense layers alone; "
            "routers never)",
        ),
        option("lora_exclude_modules", "list or str", "modules to leave alone, though they are targets"),
        option("lora_modules_to_save", "list", "modules to train whole and save beside the adapter"),
        option("lora_vision", "bool", "adapt the towers beside the language model too"),
        option(
            "adapter_dtype",
            "str",
            "dtype of an adapter's weights: \"auto\" (the model's; float32 where that is float16 and trains) or a name",
        ),
        option("use_rslora", "bool", "rank-stabilized LoRA"),
        option("use_dora", "bool", "weight-decomposed LoRA (DoRA)"),
        option(
            "init_lora_weights",
            "bool or str",
            'how a new adapter starts: true, "gaussian", "pissa", "olora", "loftq", …',
        ),
        option(
            "adapter_trainable", "bool", "whether an existing adapter trains on; by default when training"
        ),
        option(
            "new_adapter",
            "bool",
            "start a new adapter over an existing one, which stays on beneath it, frozen",
        ),
        option("active_adapter", "str", "of several adapters, the one that is on; by default the first"),
        option(
            "check_adapter_base", "bool", "refuse an adapter that was made for another base (the default)"
        ),
        option("merge_adapter", "bool", "work the adapter into the base's weights, and return a bare model"),
        option(
            "dequantize",
            "bool",
            "turn a quantized base back into floating point: a stored format while it is loaded, else to merge an adapter into it",
        ),
    ]


def existing_adapters(
    context: Context, dtype: str, quantization: Quantization | None, preparation: Preparation
) -> Claim[Adapters | None]:
    """The adapters that the source is, or that the option names."""
    request, found = context.request, context.beside.adapters
    trainable = bool(request.value("adapter_trainable", preparation.training))
    dtype, why_dtype, passed = _dtype(context, dtype, trains=trainable)
    active = request.value("active_adapter", next(iter(found)))
    members = tuple(
        Adapter(
            name=name,
            peft_type=str(facts.config.get("peft_type", "LORA")),
            source=facts.location,
            revision=facts.commit,
            trainable=trainable and name == active,
            dtype=dtype,
            embedding_rows=_rows(facts),
            whole=_whole(facts),
        )
        for name, facts in found.items()
    )
    asked = request.asked("adapter")
    own = context.checkpoint.adapter is not None
    because = "what you asked for is an adapter, and this is it" if own or asked is None else asked.because
    why = request.asked("adapter_trainable")
    state = "it trains on" if trainable else "it is frozen"
    because += f"; {state}: {why.because if why else 'as the model is loaded ' + ('to train' if preparation.training else 'to run')}"
    because += why_dtype
    value = Adapters(
        members=members,
        active=active if active in found else members[0].name,
        merge=bool(request.value("merge_adapter", False)),
        dequantize=_dequantizes(request, quantization),
    )
    strength = Strength.YOU if own or asked is None else asked.strength
    return Claim(value=value, because=because, strength=strength, passed_over=passed)


NEW = "new"
"""What an adapter over an existing one is called."""


def stacked(beneath: Claim[Adapters | None], new: Claim[Adapters | None]) -> Claim[Adapters | None]:
    """A new adapter over an existing one."""
    old, top = beneath.value, new.value
    assert old is not None
    assert top is not None
    frozen = tuple(msgspec.structs.replace(member, trainable=False) for member in old.members)
    name = NEW if all(member.name != NEW for member in frozen) else f"{NEW}_adapter"
    return Claim(
        value=Adapters(
            members=(*frozen, msgspec.structs.replace(top.members[0], name=name)),
            active=name,
            beneath=old.active,
        ),
        because=f"{new.because}; a new adapter over {old.active!r}, which stays on and frozen",
        strength=new.strength,
        passed_over=new.passed_over,
    )


def new_adapter(
    context: Context,
    architecture: ModelClass,
    dtype: str,
    quantization: Quantization | None,
    preparation: Preparation,
    tokens: Tokens | None,
    asked: Asked,
) -> Claim[Adapters | None]:
    """A new adapter, by plain options or a config."""
    request = context.request
    peft_type = adapter_type(request)
    lora = peft_type == "LORA"
    fields = merged(context)
    options = fields.options
    passed = [*fields.passed_over, *_without_weights(fields, quantization)]
    if lora:
        _default_targets(fields, context)
        passed += _by_parameter(fields, context, architecture)
        passed += choose_experts(fields, context, architecture)
    once(options)
    passed += _absent(fields, context, architecture)
    dtype, why_dtype, more = _dtype(context, dtype, trains=preparation.training)
    passed += more
    wide = _every(options) or options.get("target_modules") == "all-linear"
    if lora and wide and "exclude_modules" not in options:
        unfit = unadaptable(context)
        passed += [PassedOver(name, reason) for name, reason in unfit.items()]
        options |= {"exclude_modules": list(unfit)} if unfit else {}
    passed += leave_routers(options, context) if lora else []
    train_head(options, context, architecture, peft_type)
    # The stacks have CAUSAL_LM over images too; PEFT's class for it fails over classes that don't generate.
    prompts = "num_virtual_tokens" in context.peft_fields(peft_type)  # they can't do without the class
    over_images = architecture.task == "image-text-to-text" and not (request.recipe or prompts)
    if architecture.task in TASK_TYPES and not over_images:
        options.setdefault("task_type", TASK_TYPES[architecture.task])
    added = [t for t in (tokens.additional if tokens else ()) if t != (tokens.pad_token if tokens else None)]
    because = asked.because + why_dtype
    because += about_experts(options, context, architecture) if lora else ""
    because += "; the rows of new tokens train too" if lora and added else ""
    adapter = Adapter(
        peft_type=peft_type,
        options=options,
        dtype=dtype,
        exclude_vision=not request.value("lora_vision", False),
        frozen_parts=tuple(part for part in request.value("frozen_parts", ()) if part != "towers"),
        new_tokens=lora and bool(added),
    )
    value = Adapters(
        members=(adapter,),
        merge=bool(request.value("merge_adapter", False)),
        dequantize=_dequantizes(request, quantization),
    )
    return Claim(value=value, because=because, strength=asked.strength, passed_over=tuple(passed))


def _dequantizes(request: Request, quantization: Quantization | None) -> bool:
    """Whether a phase of its own turns the base back: not where transformers has done so while loading."""
    return bool(request.value("dequantize", False)) and (quantization is None or quantization.packed)


def _default_targets(fields: Fields, context: Context) -> None:
    """Where nobody demands targets: the architecture's own, a profile's or recipe's, all linear layers."""
    registered, asked = context.registered, fields.by.get("target_modules")
    if registered and registered.lora_target_modules and not (asked and asked.demanded):
        fields.options["target_modules"] = list(registered.lora_target_modules)
    if not context.request.asked("peft_config") and "target_parameters" not in fields.options:
        fields.options.setdefault("target_modules", "all-linear")


def _by_parameter(fields: Fields, context: Context, architecture: ModelClass) -> list[PassedOver]:
    """Where the weights of linear layers are named as parameters, and nobody demands modules: those alone."""
    asked, given = fields.by.get("target_modules"), fields.options.get("target_parameters") or ()
    if (
        (asked and asked.demanded)
        or not isinstance(given, list)
        or not owners_of(given, context, architecture)
    ):
        return []
    targets = fields.options.get("target_modules")
    fields.options["target_modules"] = []  # else PEFT adds its own for the model's type
    reason = "a linear layer is adapted by its name or by its parameter's, and parameters were named"
    return [PassedOver(f"lora_target_modules={targets}", reason)] if targets else []


def _dtype(context: Context, dtype: str, *, trains: bool) -> tuple[str, str, tuple[PassedOver, ...]]:
    """The dtype of an adapter's weights, a reason where it isn't the base's, and what gave way.

    Gradient scaling, which float16 trains with, refuses float16 gradients (torch 2.13: "Attempting to unscale
    FP16 gradients"). FSDP flattens or groups parameters of one dtype, so a mere wish for another gives way
    there.
    """
    asked, engine = context.request.asked("adapter_dtype"), context.topology.engine
    wanted = canonical_dtype(asked.value) if asked is not None else "auto"
    sharded = engine in ("fsdp", "fsdp2")
    if asked is not None and wanted not in ("auto", dtype):
        if asked.demanded or not sharded:
            return wanted, f"; its weights are {wanted}: {asked.because}", ()
        passed = PassedOver(f"an adapter in {wanted}", f"{engine} shards parameters of one dtype")
        return dtype, "", (passed,)
    if wanted == "auto" and dtype == "float16" and trains and not sharded:
        return "float32", "; its weights are float32, as gradient scaling refuses float16 gradients", ()
    return dtype, "", ()


def _every(options: Mapping[str, Any]) -> bool:
    given = options.get("target_modules")
    return EVERY_LINEAR in ([given] if isinstance(given, str) else given or ())


def _absent(fields: Fields, context: Context, architecture: ModelClass) -> list[PassedOver]:
    """Names of a profile's or recipe's list that the model doesn't have: PEFT takes what is there."""
    asked = fields.by.get("target_modules")
    if asked is None or asked.demanded:
        return []
    weights = [w.module for w in context.weights(architecture) if w.kind != "experts"]
    members = [
        m for f in context.library.families.values() for facts in f.modules.values() for m in facts.members
    ]
    missing = absent(fields.options.get("target_modules"), [*weights, *members]) if weights else []
    return [PassedOver(name, "the model has no module of that name") for name in missing]


def _without_weights(fields: Fields, quantization: Quantization | None) -> list[PassedOver]:
    """Leave a profile's or recipe's initialisation out where it needs weights that the base doesn't have."""
    asked, init = fields.by.get("init_lora_weights"), fields.options.get("init_lora_weights")
    if (
        asked is None
        or asked.demanded
        or quantization is None
        or not quantization.packed
        or not needs_weights(init)
    ):
        return []
    del fields.options["init_lora_weights"]
    spelt = "peft_config.init_lora_weights" if asked.name == "peft_config" else asked.name
    return [
        PassedOver(f"{spelt}={init}", "it needs the base's unquantized weights, and the base is quantized")
    ]


def needs_weights(init: object) -> bool:
    """Whether an initialisation works on unquantized weights only."""
    return isinstance(init, str) and init.lower().startswith(NEEDS_WEIGHTS)


def _whole(facts: AdapterFacts) -> tuple[str, ...]:
    """The model's tensors that an adapter holds, by the names that the model has for them."""
    names = (
        name.removeprefix("base_model.model.").replace(".modules_to_save", "")
        for name in facts.tensors
        if name.startswith("base_model.model.")
    )
    return tuple(
        sorted(n for n in names if not re.search(r"\.(lora|ia3|hada|lokr|oft|boft|vera|token_adapter)_?", n))
    )


def _rows(facts: AdapterFacts) -> int:
    """Embedding rows that an adapter was saved with, by a saved embedding or the highest token it trains."""
    saved = [
        header.shape[0]
        for name, header in facts.tensors.items()
        if len(header.shape) == 2
        and name.endswith(("embed_tokens.weight", "lm_head.weight", "base_layer.weight"))
        and ("embed_tokens" in name or "lm_head" in name or "wte" in name)
    ]
    return max([*saved, *(i + 1 for i in trained_tokens(facts))], default=0)

"""What a request says about adapters: existing ones by their source, or a new one by plain options or a PEFT config."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

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
    Strength,
    Tokens,
)
from loadkit.plugins import AdapterFacts
from loadkit_plugins.adapter.fields import Fields, adapter_type, merged
from loadkit_plugins.adapter.targets import absent, unadaptable

__all__ = ["TASK_TYPES", "declared_options", "existing_adapters", "needs_weights", "new_adapter"]

NEEDS_WEIGHTS = ("pissa", "corda", "mica", "loftq", "orthogonal")
"""Initialisations that read or change the base's weights in floating point (PEFT 0.21; "pissa" stands for pissa_niter_N too)."""

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""Config fields that tell how many experts a layer has."""

TASK_TYPES: Mapping[str, str] = {
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
        option("lora_target_modules", "list or str", 'modules to adapt: a list, a pattern, or "all-linear"'),
        option(
            "lora_target_parameters", "list", "parameters to adapt that aren't modules, such as fused experts"
        ),
        option("lora_modules_to_save", "list", "modules to train whole and save beside the adapter"),
        option("lora_vision", "bool", "adapt the towers beside the language model too"),
        option("use_rslora", "bool", "rank-stabilized LoRA"),
        option("use_dora", "bool", "weight-decomposed LoRA (DoRA)"),
        option(
            "init_lora_weights",
            "bool or str",
            'how a new adapter starts: true, "gaussian", "pissa", "olora", "loftq", …',
        ),
        option(
            "adapter_trainable",
            "bool",
            "whether an existing adapter trains on; by default when training",
        ),
        option("active_adapter", "str", "of several adapters, the one that is on; by default the first"),
        option(
            "check_adapter_base", "bool", "refuse an adapter that was made for another base (the default)"
        ),
        option("merge_adapter", "bool", "work the adapter into the base's weights, and return a bare model"),
        option(
            "dequantize",
            "bool",
            "turn a quantized base back into floating point, to merge an adapter into it",
        ),
    ]


def existing_adapters(context: Context, dtype: str, preparation: Preparation) -> Claim[Adapters | None]:
    """The adapters that the source is, or that the option names."""
    request, found = context.request, context.beside.adapters
    trainable = bool(request.value("adapter_trainable", preparation.training))
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
    value = Adapters(
        members=members,
        active=active if active in found else members[0].name,
        merge=bool(request.value("merge_adapter", False)),
        dequantize=bool(request.value("dequantize", False)),
    )
    strength = Strength.YOU if own or asked is None else asked.strength
    return Claim(value=value, because=because, strength=strength)


def new_adapter(
    context: Context,
    architecture: ModelClass,
    dtype: str,
    quantization: Quantization | None,
    tokens: Tokens | None,
    asked: Asked,
) -> Claim[Adapters | None]:
    """A new adapter, by plain options or a config."""
    request = context.request
    peft_type = adapter_type(request)
    lora = peft_type == "LORA"
    fields = merged(context)
    options = fields.options
    passed = [
        *fields.passed_over,
        *_without_dropout(fields, context),
        *_without_weights(fields, quantization),
    ]
    if lora:
        _default_targets(fields, context)
    passed += _without_absent(fields, context, architecture)
    if lora and options.get("target_modules") == "all-linear" and "exclude_modules" not in options:
        unfit = unadaptable(context)
        passed += [PassedOver(name, reason) for name, reason in unfit.items()]
        options |= {"exclude_modules": list(unfit)} if unfit else {}
    if architecture.task in TASK_TYPES:
        options.setdefault("task_type", TASK_TYPES[architecture.task])
    added = [t for t in (tokens.additional if tokens else ()) if t != (tokens.pad_token if tokens else None)]
    because = asked.because
    if lora and added:
        because += "; the rows of new tokens train too"
    adapter = Adapter(
        peft_type=peft_type,
        options=options,
        dtype=dtype,
        exclude_vision=not request.value("lora_vision", False),
        new_tokens=lora and bool(added),
    )
    value = Adapters(
        members=(adapter,),
        merge=bool(request.value("merge_adapter", False)),
        dequantize=bool(request.value("dequantize", False)),
    )
    return Claim(value=value, because=because, strength=asked.strength, passed_over=tuple(passed))


def _default_targets(fields: Fields, context: Context) -> None:
    """Where nobody demands targets: the architecture's own, else those of a profile or recipe, else all linear layers."""
    registered, asked = context.registered, fields.by.get("target_modules")
    if registered and registered.lora_target_modules and not (asked and asked.demanded):
        fields.options["target_modules"] = list(registered.lora_target_modules)
    if not context.request.asked("peft_config") and "target_parameters" not in fields.options:
        fields.options.setdefault("target_modules", "all-linear")


def _without_absent(fields: Fields, context: Context, architecture: ModelClass) -> list[PassedOver]:
    """Leave out those of a profile's or recipe's targets that the model doesn't have, as long as it has one."""
    asked, targets = fields.by.get("target_modules"), fields.options.get("target_modules")
    if asked is None or asked.demanded or not isinstance(targets, list):
        return []
    missing = absent(targets, context, architecture)
    if not missing or len(missing) == len(targets):
        return []
    fields.options["target_modules"] = [name for name in targets if name not in missing]
    return [PassedOver(name, f"{asked.by} names it, and no module is called so") for name in missing]


def _without_dropout(fields: Fields, context: Context) -> list[PassedOver]:
    """Leave a profile's dropout out where the experts are adapted as fused parameters, over which PEFT has none."""
    asked, options = fields.by.get("lora_dropout"), fields.options
    config = context.checkpoint.text_config
    experts = any(isinstance(config.get(key), int) and config[key] > 1 for key in EXPERTS)
    if not experts or asked is None or asked.demanded or not options.get("lora_dropout"):
        return []
    wanted = options.pop("lora_dropout")
    reason = "the model has experts, whose weights are fused, and PEFT has no dropout over fused weights"
    return [PassedOver(f"lora_dropout={wanted:g}", reason)]


def _without_weights(fields: Fields, quantization: Quantization | None) -> list[PassedOver]:
    """Leave a profile's or recipe's initialisation out where it needs weights that the base doesn't have."""
    asked, init = fields.by.get("init_lora_weights"), fields.options.get("init_lora_weights")
    if asked is None or asked.demanded or quantization is None or not needs_weights(init):
        return []
    del fields.options["init_lora_weights"]
    return [
        PassedOver(
            f"init_lora_weights={init}", "it needs the base's unquantized weights, and the base is quantized"
        )
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
    """Rows of the embeddings that an adapter was saved with: of a saved embedding, or up to the highest token that it trains."""
    saved = [
        header.shape[0]
        for name, header in facts.tensors.items()
        if len(header.shape) == 2
        and name.endswith(("embed_tokens.weight", "lm_head.weight", "base_layer.weight"))
        and ("embed_tokens" in name or "lm_head" in name or "wte" in name)
    ]
    indices = facts.config.get("trainable_token_indices")
    listed = list(indices.values()) if isinstance(indices, dict) else [indices]
    ids = [i for each in listed if isinstance(each, list) for i in each if isinstance(i, int)]
    return max([*saved, *(i + 1 for i in ids)], default=0)

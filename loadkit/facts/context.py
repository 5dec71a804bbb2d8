"""The facts of one request, bundled for the plugins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from loadkit.facts.checkpoint.checkpoint import Checkpoint, ProcessingFacts
from loadkit.facts.checkpoint.companions import Beside
from loadkit.facts.checkpoint.vocabulary import vocabulary_of
from loadkit.facts.library.experts import experts_implementations
from loadkit.facts.library.heads import head_layers
from loadkit.facts.library.library import Library
from loadkit.facts.library.peft_configs import (
    PeftField,
    peft_class_fields,
    peft_fields,
    peft_refusal,
    peft_task_types,
    peft_types,
)
from loadkit.facts.library.peft_layers import (
    peft_adapts,
    peft_biases,
    peft_layer_refusal,
    peft_packages,
)
from loadkit.facts.library.peft_targets import peft_default_targets
from loadkit.facts.library.shapes import Shape, expected_shapes
from loadkit.facts.library.towers import Towers, read_towers
from loadkit.facts.library.tp_plan import read_tp_plan
from loadkit.facts.library.weight_roles import Weight, read_weights
from loadkit.facts.machine.machine import Machine
from loadkit.facts.machine.topology import Topology
from loadkit.schema.request import Request
from loadkit.schema.values import Architecture, ModelClass

__all__ = ["Context"]


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a plugin may know. It never probes for itself.

    Parameters:
        request: what was asked, and by whom.
        checkpoint: config, files and headers of the checkpoint.
        beside: what the request names beside it: another tokenizer, a chat template, adapters.
        machine: accelerators, memory, packages.
        topology: processes and the engine that spreads the model over them.
        library: what the installed transformers offers for this checkpoint.
        architectures: what plugins registered, by model type.
    """

    request: Request
    checkpoint: Checkpoint
    machine: Machine
    topology: Topology
    library: Library
    beside: Beside = Beside()
    architectures: dict[str, Architecture] = {}

    @property
    def registered(self) -> Architecture | None:
        """The architecture that a plugin registered for this checkpoint's model type, if any."""
        return self.architectures.get(self.checkpoint.model_type)

    def weights(self, architecture: ModelClass) -> tuple[Weight, ...]:
        """Every tensor that the class will hold, with its role; empty where the files have no headers."""
        return read_weights(self.checkpoint, self.library, architecture)

    def shapes(self, architecture: ModelClass, changed: Mapping[str, Any]) -> dict[str, frozenset[Shape]]:
        """The shapes that config.json gives the files' tensors, as far as transformers' source tells.

        Only for models that are one language model: its config is then the whole config, and no tower's.

        Parameters:
            architecture: the class that loads it.
            changed: fields that the request sets otherwise.
        """
        family = self.library.families.get(self.library.model_type_of(self.checkpoint.config))
        if family is None or architecture.implementation != "transformers" or family.config.sub_configs:
            return {}
        checkpoint = self.checkpoint
        return expected_shapes(
            self.library,
            architecture.model_class,
            family.config,
            checkpoint.config,
            checkpoint.tensors,
            changed,
        )

    def towers(self, architecture: ModelClass) -> Towers:
        """Where the class has towers beside its language model, for images or sound."""
        return read_towers(self.library, self.checkpoint.config, architecture)

    def head_layers(self, architecture: ModelClass) -> Mapping[str, tuple[str, ...]]:
        """The members of a classifier's head, each to its linear layers: {"pooler": ("pooler.dense",)}."""
        return head_layers(self.library, architecture)

    def tp_plan(self, architecture: ModelClass) -> dict[str, str]:
        """How tensor parallelism splits the class, as `tp_plan` changes it; empty where no plan is known."""
        return read_tp_plan(self.library, architecture, self.request.value("tp_plan", "auto"))

    @property
    def vocabulary(self) -> frozenset[str] | None:
        """Every token of the tokenizer; None where that isn't known before loading it."""
        return vocabulary_of(self.processing)

    @property
    def experts_implementations(self) -> tuple[str, ...]:
        """What the installed transformers has to run experts with; empty where that isn't known."""
        return experts_implementations()

    @property
    def peft_types(self) -> tuple[str, ...]:
        """The adapter types that the installed PEFT has; none where that isn't known."""
        return tuple(peft_types())

    @property
    def peft_task_types(self) -> tuple[str, ...]:
        """The task types that the installed PEFT has; none where that isn't known."""
        return peft_task_types()

    def peft_fields(self, peft_type: str, nested: str = "") -> Mapping[str, PeftField]:
        """The fields of the config of one of PEFT's adapter types; empty where that isn't known.

        Parameters:
            peft_type: the type.
            nested: the class of a config that is a field of it; "" for its own.
        """
        return peft_class_fields(peft_type, nested) if nested else peft_fields(peft_type)

    def peft_refusal(self, peft_type: str, options: Mapping[str, Any], nested: str = "") -> str:
        """What PEFT's config says against given fields when it is made; "" for nothing, as far as its source
        tells.

        Parameters:
            peft_type: the adapter type.
            options: the fields.
            nested: the class of a config within the type's, whose fields they are; "" for its own.
        """
        return peft_refusal(peft_type, options, nested)

    def peft_layer_refusal(
        self, peft_type: str, options: Mapping[str, Any], inputs: int | None, outputs: int | None
    ) -> str:
        """What a linear layer of one of PEFT's types says to given fields; "" for nothing that is known.

        Parameters:
            peft_type: the adapter type.
            options: fields of its config.
            inputs: the layer's width; None where it isn't known.
            outputs: the width of what it gives.
        """
        return peft_layer_refusal(peft_type, options, inputs, outputs)

    def peft_adapts(self, peft_type: str, layer: str) -> bool:
        """Whether one of PEFT's adapter types has layers for another kind of layer than linear ones.

        Parameters:
            peft_type: the adapter type.
            layer: the kind, by its class: "Embedding", "Conv1D".
        """
        return peft_adapts(peft_type, layer)

    def peft_targets(self, peft_type: str, architecture: ModelClass, field: str = "target_modules") -> Any:
        """What one of PEFT's adapter types targets in a model where its config names nothing.

        Parameters:
            peft_type: the adapter type.
            architecture: the class that is loaded.
            field: the field that is left open, "target_modules" or "feedforward_modules".

        Returns:
            A list of names, or a pattern; an empty list where PEFT has none for the model's type and refuses
            it; None for a type that needs none.
        """
        known = peft_default_targets(peft_type, field)
        if known is None:
            return None
        nested = self.checkpoint.config.get(architecture.config_key) if architecture.config_key else None
        config = nested if isinstance(nested, dict) else self.checkpoint.config
        return known.get(str(config.get("model_type") or self.checkpoint.model_type), [])

    def peft_biases(self, peft_type: str) -> frozenset[str]:
        """What `bias` may be in the config of one of PEFT's adapter types."""
        return peft_biases(peft_type)

    def peft_packages(self, peft_type: str) -> tuple[str, ...]:
        """The packages that the config of one of PEFT's adapter types can't be made without, PEFT aside."""
        return peft_packages(peft_type)

    @property
    def processing(self) -> ProcessingFacts:
        """The tokenizer or processor: the one asked for, else the adapter's own, else the checkpoint's."""
        if self.beside.tokenizer is not None:
            return self.beside.tokenizer
        adapter = self.checkpoint.adapter
        if adapter is not None and "tokenizer_config.json" in adapter.processing.files:
            return adapter.processing
        return self.checkpoint.processing

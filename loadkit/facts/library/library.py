"""The installed transformers as a frozen fact: which classes it has, and what their source declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from loadkit.facts.library.registrations import Registration
from loadkit.text.suggest import nearest_name

__all__ = ["ConfigFacts", "Family", "Keywords", "Library", "ModelFacts", "ModuleFacts"]


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a model class declares of itself, inherited declarations included.

    Parameters:
        name: the class.
        module: where it is defined, such as "transformers.models.mistral.modeling_mistral".
        supports_sdpa: whether it can run on torch's scaled dot product attention.
        supports_flash_attn: whether it can run on FlashAttention.
        supports_flex_attn: whether it can run on torch's FlexAttention.
        supports_attention_backend: whether it takes any registered attention function.
        supports_gradient_checkpointing: whether gradient checkpointing can be turned on.
        config_class: its config's class; "A | B" where it is declared for either; None where for none.
        no_split_modules: classes of submodules that must stay on one device.
        keep_in_fp32_modules: names of submodules kept in float32 when the load dtype is float16.
        keep_in_fp32_modules_strict: the same for float16 and bfloat16.
        ignored: patterns of what files may hold and the class has no place for.
        compatible_flash_implementations: the only flash kernels it works with; empty for no such limit.
        tp_plan: how tensor parallelism splits the class's own modules, beside the config's plan.
        arguments: what its constructor takes by name beside the config.
    """

    name: str
    module: str
    supports_sdpa: bool = False
    supports_flash_attn: bool = False
    supports_flex_attn: bool = False
    supports_attention_backend: bool = False
    supports_gradient_checkpointing: bool = False
    config_class: str | None = None
    no_split_modules: tuple[str, ...] = ()
    keep_in_fp32_modules: tuple[str, ...] = ()
    keep_in_fp32_modules_strict: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    compatible_flash_implementations: tuple[str, ...] = ()
    tp_plan: dict[str, str] = {}
    arguments: tuple[str, ...] = ()


class ConfigFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a config class declares of itself, inherited declarations included.

    Parameters:
        name: the class.
        module: where it is defined.
        model_type: what it writes into config.json; "" for a part that has no type of its own.
        sub_configs: attribute of a nested config to the model type it has by default; "" where it has none.
        sub_config_classes: the same attributes to their class, "AutoConfig" where the model type decides.
        fields: every field to its default; None also stands for a default that isn't a literal.
        attribute_map: other names of fields to the field.
        tp_plan: how tensor parallelism splits the base model: path, "*" for a layer's number, to style.
        types: fields whose values are checked, to their annotation: `{"hidden_size": "int"}`.
        settable: further attributes that its methods set, or have a setter for.
    """

    name: str
    module: str
    model_type: str = ""
    sub_configs: dict[str, str] = {}
    sub_config_classes: dict[str, str] = {}
    fields: dict[str, Any] = {}
    attribute_map: dict[str, str] = {}
    tp_plan: dict[str, str] = {}
    types: dict[str, str] = {}
    settable: tuple[str, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """Everything that can be set on it by name."""
        return frozenset((*self.fields, *self.attribute_map, *self.settable))

    @property
    def has_use_cache(self) -> bool:
        """Whether the config itself (not a nested one) has a `use_cache` field."""
        return "use_cache" in self.fields


class ModuleFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a module class is made of, inherited parts included.

    Parameters:
        members: attribute to the classes that its constructor calls for it: `{"q_proj": ("Linear",)}`.
        given: members that are made from a sub-config, to its attribute: `{"vision_tower": "vision_config"}`;
            "config" to "" where a class keeps its config without being a model.
        linear: whether it is itself a kind of `torch.nn.Linear`.
        head: where its `get_output_embeddings` finds the output head; "" for transformers' own rule.
        direct: members whose weight it computes with itself, or casts to the dtype of: they can't be packed.
        shapes: layers and parameters that it makes, to the shapes that they may have, an expression an axis.
        values: the other attributes that those expressions name, to what they may be.
        packable: parameters that it only multiplies with, routers aside: they can be packed as the weights of
            linear layers are. Each to where it has the number of its matrices: "0" for the first axis, an
            attribute for flat stacks, "" for a single one.
        experts: whether transformers runs it by `experts_implementation`.
        routers: plain linear layers that it makes to choose experts.
    """

    members: dict[str, tuple[str, ...]] = {}
    given: dict[str, str] = {}
    linear: bool = False
    head: str = ""
    direct: tuple[str, ...] = ()
    shapes: dict[str, tuple[tuple[str, ...], ...]] = {}
    values: dict[str, tuple[str, ...]] = {}
    packable: dict[str, str] = {}
    experts: bool = False
    routers: tuple[str, ...] = ()


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """One model type: its config, and the model classes that come with it.

    Parameters:
        model_type: its name in config.json.
        config: the config class that the type stands for.
        configs: every config class of its source folder, which holds the parts that have no model type.
        models: every model class of its source folder, and those of other folders that serve the type.
        modules: every class of its modeling files, to what it is made of; where it has no such files, of
            those that its models come from.
    """

    model_type: str
    config: ConfigFacts
    configs: dict[str, ConfigFacts] = {}
    models: dict[str, ModelFacts] = {}
    modules: dict[str, ModuleFacts] = {}


class Keywords(msgspec.Struct, frozen=True, kw_only=True):
    """What transformers' `from_pretrained` takes beside the fields of a config.

    Parameters:
        taken: its keyword arguments, to their annotation; "" where none tells.
        ignored: older ones that it takes and doesn't look at.
        generation: fields of a generation config, which no config of a model has.
        rope: what `rope_parameters` may hold, to its annotation.
        rope_types: the kinds of rotary embeddings, to the keys that each needs.
        activations: the names of activation functions.
    """

    taken: dict[str, str] = {}
    ignored: tuple[str, ...] = ()
    generation: tuple[str, ...] = ()
    rope: dict[str, str] = {}
    rope_types: dict[str, tuple[str, ...]] = {}
    activations: tuple[str, ...] = ()


class Library(msgspec.Struct, frozen=True, kw_only=True):
    """What the installed transformers offers, read off its source.

    Where a map names several classes, they stand in transformers' order of preference.

    Parameters:
        version: transformers' version; "" where it isn't installed.
        auto_classes: auto class ("AutoModelForCausalLM") to model type to model classes.
        config_classes: model type to config class, in transformers' order.
        modules: model type to its folder below `transformers.models`, dotted.
        tokenizer_classes: model type to tokenizer classes.
        processor_classes: model type to processor classes.
        image_processor_classes: model type to image processor classes, torchvision's first.
        conversions: model type to the one whose files it is stored like: single experts' weights are stacked.
        families: model type to its classes, for the types that occur in one checkpoint.
        keywords: what `from_pretrained` takes.
        registrations: what other distributions register with it.
    """

    version: str = ""
    auto_classes: dict[str, dict[str, tuple[str, ...]]] = {}
    config_classes: dict[str, str] = {}
    modules: dict[str, str] = {}
    tokenizer_classes: dict[str, tuple[str, ...]] = {}
    processor_classes: dict[str, tuple[str, ...]] = {}
    image_processor_classes: dict[str, tuple[str, ...]] = {}
    conversions: dict[str, str] = {}
    families: dict[str, Family] = {}
    keywords: Keywords = Keywords()
    registrations: tuple[Registration, ...] = ()

    def knows(self, model_type: str) -> bool:
        """Whether transformers has a config class for the model type."""
        return model_type in self.config_classes

    def nearest(self, model_type: str) -> str | None:
        """The known model type that is spelt most like this one; None where none is near."""
        return nearest_name(model_type, self.config_classes) or None

    def model_type_of(self, config: Mapping[str, Any]) -> str:
        """The model type that `AutoConfig` takes a config.json for; "" where it names none.

        A mistral config with `layer_types` is read as ministral
        (transformers/models/auto/configuration_auto.py, AutoConfig.from_pretrained).
        """
        model_type = config.get("model_type")
        if not isinstance(model_type, str):
            return ""
        if model_type == "mistral" and "layer_types" in config and self.knows("ministral"):
            return "ministral"
        return model_type

    def model_class(self, auto_class: str, model_type: str, architectures: Sequence[str] = ()) -> str | None:
        """The class that an auto class's `from_pretrained` loads.

        transformers looks it up by the config's class, and takes the last model type with that config class;
        so a type can be in the map and still not be loadable through it (evolla, which its config's class
        turns into "EvollaModel"). Source: `_LazyAutoMapping` and `_get_model_class` in
        transformers/models/auto/auto_factory.py.

        Parameters:
            auto_class: such as "AutoModelForCausalLM".
            model_type: the config's type.
            architectures: the checkpoint's; they choose among several classes, else the first is taken.

        Returns:
            The class's name; None where transformers would refuse or doesn't have the auto class.
        """
        config_class = self.config_classes.get(model_type)
        if config_class is None:
            return None
        keys = [key for key, name in self.config_classes.items() if name == config_class]
        classes = self.auto_classes.get(auto_class, {}).get(keys[-1], ())
        return next((name for name in architectures if name in classes), classes[0] if classes else None)

    def class_facts(self, class_name: str) -> ModelFacts | None:
        """A model class of the loaded families; None for another."""
        found = (family.models.get(class_name) for family in self.families.values())
        return next((facts for facts in found if facts), None)

    def config_facts(self, class_name: str) -> ConfigFacts | None:
        """A config class of the loaded families; None for another."""
        found = (
            family.config if family.config.name == class_name else family.configs.get(class_name)
            for family in self.families.values()
        )
        return next((facts for facts in found if facts), None)

    def sub_config(self, config: ConfigFacts, key: str, model_type: str = "") -> ConfigFacts | None:
        """The config class that transformers builds for a nested config.

        Parameters:
            config: the config that it is nested in.
            key: its attribute.
            model_type: what the checkpoint calls it; it counts only where the class isn't fixed.

        Returns:
            Its facts; None where `config` has no such attribute or the class isn't among the loaded families.
        """
        class_name = config.sub_config_classes.get(key)
        if class_name is None:
            return None
        if class_name != "AutoConfig":
            return self.config_facts(class_name)
        family = self.families.get(model_type or config.sub_configs[key])
        return family.config if family else None

    def text_class(self, model_type: str, config: Mapping[str, Any] | None = None) -> tuple[str, str] | None:
        """The causal language model inside a vision-language type, for text-only use.

        Parameters:
            model_type: the whole model's type, one of the loaded families.
            config: the checkpoint's config.json, whose nested model type counts before the default one.

        Returns:
            The class's name and the attribute of the nested config that it takes ("text_config"); None where
            the type has no text config, or one for an encoder-decoder, or transformers has no causal language
            model for it.
        """
        family = self.families.get(model_type)
        if family is None:
            return None
        given = (config or {}).get(_TEXT_CONFIG)
        given_type = given.get("model_type") if isinstance(given, Mapping) else None
        text = self.sub_config(family.config, _TEXT_CONFIG, given_type if isinstance(given_type, str) else "")
        if text is None or text.fields.get("is_encoder_decoder"):
            return None  # florence2's text part is a whole bart: the causal class is only its decoder
        name = self.model_class("AutoModelForCausalLM", text.model_type)
        return (name, _TEXT_CONFIG) if name else None


_TEXT_CONFIG = "text_config"
"""What every composite config of transformers since 2024 calls the language model's part."""

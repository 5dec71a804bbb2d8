"""The plain values that stages decide. Nothing here knows torch: a dtype is "bfloat16", a class is a name."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import msgspec

__all__ = [
    "Architecture",
    "Experimental",
    "HEADED_TASKS",
    "ModelClass",
    "Placement",
    "Preparation",
    "Quantization",
    "StoredFormat",
    "Support",
    "Supported",
    "Unsupported",
]


HEADED_TASKS = ("sequence-classification", "token-classification")
"""Tasks with a head of their own, which is new when the checkpoint was made for another task."""


class Supported(msgspec.Struct, frozen=True, tag="supported"):
    """The architecture has it."""


class Unsupported(msgspec.Struct, frozen=True, tag="unsupported"):
    """The architecture doesn't have it, and why."""

    reason: str


class Experimental(msgspec.Struct, frozen=True, tag="experimental"):
    """The architecture has it, with a caveat: used when asked for by name, never chosen."""

    reason: str


Support = Supported | Unsupported | Experimental


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """Declarative facts of a model family, registered by a plugin.

    Parameters:
        model_type: the `model_type` of its config.json.
        config: "module:Class" of its configuration, imported only when loading; "" to use transformers' own.
        models: task ("causal-lm", "image-text-to-text", …) to "module:Class".
        processing_class: "module:Class" of its tokenizer or processor; "" to use the Auto classes.
        attention: `attn_implementation` name to what the family says of it; a name left out is unknown. Where
            `models` names classes, it is said of those, and doesn't count where transformers' own serve.
        lora_target_modules: what LoRA adapts by default; empty for all linear layers.
        skip_modules: modules never to quantize, as dotted paths or their last parts.
        preferred: use these classes even where transformers knows the model type.
        chat_template: a template in Jinja, for a tokenizer or processor of the checkpoint's own that has
            none; "" for none.
        unsavable: why models of these classes can't be saved, which the plan then says; "" where they can.
    """

    model_type: str
    config: str = ""
    models: dict[str, str] = {}
    processing_class: str = ""
    attention: dict[str, Support] = {}
    lora_target_modules: tuple[str, ...] = ()
    skip_modules: tuple[str, ...] = ()
    preferred: bool = False
    chat_template: str = ""
    unsavable: str = ""


class ModelClass(msgspec.Struct, frozen=True, kw_only=True):
    """Which class loads the checkpoint.

    Parameters:
        task: "causal-lm", "image-text-to-text", "seq2seq-lm", "sequence-classification",
            "token-classification".
        auto_class: the transformers Auto class that resolves it; "" where a class is named outright.
        model_class: the class it resolves to: a bare name in transformers, or "module:Class".
        implementation: whose code it is.
        config_key: the sub-config that the class takes ("text_config" of a vision-language checkpoint for its
            text half); "" for the whole config.
        key_mapping: pattern to replacement for the checkpoint's tensor names, as `from_pretrained` takes it.
        config_class: "module:Class" of a configuration to register first; "" for transformers' own.
        code: the checkpoint's own Python files that may run, to their SHA-256; empty where none does.
    """

    task: str
    auto_class: str
    model_class: str
    implementation: Literal["transformers", "plugin", "remote code"] = "transformers"
    config_key: str = ""
    key_mapping: dict[str, str] = {}
    config_class: str = ""
    code: dict[str, str] = {}


class StoredFormat(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint that is stored quantized is in memory on the machine planned for.

    Parameters:
        dtype: what transformers turns the weights back into; "" where they stay as they are stored.
        because: why they are turned back, or what happens to them later; "" where there is nothing to tell.
        asked: they are turned back as `dequantize=True` asks for it, so transformers is told.
        trains: whether the model can train: an adapter over weights that stay quantized, anything otherwise.
        saves: whether `save_pretrained` can write the model.
        needs: the packages that this takes, as requirements such as "gptqmodel>=1.4.3".
        settings: fields of the checkpoint's own quantization config that this load sets.
    """

    dtype: str = ""
    because: str = ""
    asked: bool = False
    trains: bool = True
    saves: bool = True
    needs: tuple[str, ...] = ()
    settings: dict[str, Any] = {}


class Quantization(msgspec.Struct, frozen=True, kw_only=True):
    """How the weights are quantized.

    Parameters:
        method: the quantizer, such as "bitsandbytes".
        bits: bits a weight.
        options: the method's own settings, as plain data in the method's own names.
        skip_modules: modules kept out in addition to the automatic ones, as dotted paths or their last parts.
        prequantized: the checkpoint is stored this way; nothing is passed to `from_pretrained`, but for a
            `dequantize` that was asked for.
        format: of a checkpoint that is stored so, what it is in memory; unset where it isn't, and in plans of
            loadkit before 1.0.
        decoded_from: how a checkpoint is stored whose weights are decoded and quantized again, one by one:
            its `quant_method`, and the fields of its config that decoding goes by; unset for any other.
        unsavable: why a model that is quantized so can't be saved, which the plan then says; unset where it
            can.
    """

    method: str
    bits: float
    options: dict[str, Any] = {}
    skip_modules: tuple[str, ...] = ()
    prequantized: bool = False
    format: StoredFormat | msgspec.UnsetType = msgspec.UNSET
    decoded_from: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    unsavable: str | msgspec.UnsetType = msgspec.UNSET

    @property
    def again(self) -> str:
        """The method that the checkpoint is stored by, where its weights are quantized again; or ""."""
        return "" if self.decoded_from is msgspec.UNSET else str(self.decoded_from.get("quant_method", ""))

    @property
    def packed(self) -> bool:
        """Whether the weights are quantized in memory: transformers turns some stored formats back."""
        return self.format is msgspec.UNSET or not self.format.dtype

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of the checkpoint's own quantization config that the load sets."""
        return {} if self.format is msgspec.UNSET else self.format.settings

    @property
    def handed_on(self) -> bool:
        """Whether `from_pretrained` is given a quantization config."""
        return not self.prequantized or (self.format is not msgspec.UNSET and self.format.asked)


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Where the weights go.

    Parameters:
        device_map: as `from_pretrained` takes it; None leaves placing to the engine that trains.
        max_memory: device ("0", "cpu") to bytes or to a string such as "20GiB"; None for no limit.
    """

    SPREADING: ClassVar[tuple[str, ...]] = ("auto", "balanced", "balanced_low_0", "sequential")
    """Device maps by which accelerate fills device after device."""

    device_map: str | dict[str, int | str] | None
    max_memory: dict[str, int | str] | None = None

    @property
    def spreads(self) -> bool:
        """Whether the model is spread over the devices that there are."""
        return isinstance(self.device_map, str) and self.device_map in self.SPREADING


class Preparation(msgspec.Struct, frozen=True, kw_only=True):
    """What is done to the loaded model before an adapter is attached, in this order.

    Parameters:
        kbit: freeze the quantized base and, with `float32_norms`, keep its norms in float32.
        gradient_checkpointing: recompute activations in the backward pass.
        gradient_checkpointing_kwargs: as `gradient_checkpointing_enable` takes them.
        input_gradients: let gradients flow from the embeddings (needed by reentrant checkpointing over a
            frozen base).
        training: leave the model in training mode; False leaves `eval()`.
        float32_norms: whether k-bit preparation keeps norms in float32; engines that shard want one dtype.
        norms_left: ends of the paths of norms left in the weights' dtype, as the model casts to theirs.
        trainable_dtype: dtype of the base's weights that train, "" for that of the others.
        frozen_parts: parts that don't train: "towers", "projector", "language-model".
        train_only: patterns that the paths of the parameters that train begin with; empty for all.
    """

    kbit: bool = False
    gradient_checkpointing: bool = False
    gradient_checkpointing_kwargs: dict[str, Any] = {}
    input_gradients: bool = False
    training: bool = False
    float32_norms: bool = True
    norms_left: tuple[str, ...] = ()
    trainable_dtype: str = ""
    frozen_parts: tuple[str, ...] = ()
    train_only: tuple[str, ...] = ()

    @property
    def freezes(self) -> bool:
        """Whether some weights of the base train, and others don't, or train in a dtype of their own."""
        return bool(self.trainable_dtype or self.frozen_parts or self.train_only)

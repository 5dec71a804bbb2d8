"""The plain values that stages decide. Nothing here knows torch: a dtype is "bfloat16", a class is a name."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import msgspec

__all__ = [
    "Adapter",
    "Adapters",
    "Architecture",
    "Experimental",
    "HEADED_TASKS",
    "ModelClass",
    "Opened",
    "Packed",
    "Placement",
    "Preparation",
    "Processing",
    "Quantization",
    "Support",
    "Supported",
    "Tokens",
    "Unsupported",
    "Vocabulary",
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


class ModelClass(msgspec.Struct, frozen=True, kw_only=True):
    """Which class loads the checkpoint.

    Parameters:
        task: "causal-lm", "image-text-to-text", "seq2seq-lm", "sequence-classification",
            "token-classification".
        auto_class: the transformers Auto class that resolves it; "" where a class is named outright.
        model_class: the class it resolves to: a bare name in transformers, or "module:Class".
        implementation: whose code it is.
        config_key: the sub-config that the class takes ("text_config" for the text half of a
            vision-language checkpoint); "" for the whole config.
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


class Quantization(msgspec.Struct, frozen=True, kw_only=True):
    """How the weights are quantized.

    Parameters:
        method: the quantizer, such as "bitsandbytes".
        bits: bits a weight.
        options: the method's own settings, as plain data in the method's own names.
        skip_modules: modules kept out in addition to the automatic ones, as dotted paths or their last parts.
        prequantized: the checkpoint is stored this way; nothing is passed to `from_pretrained`.
    """

    method: str
    bits: float
    options: dict[str, Any] = {}
    skip_modules: tuple[str, ...] = ()
    prequantized: bool = False


class Packed(msgspec.Struct, frozen=True, kw_only=True):
    """What a quantized weight takes.

    Parameters:
        data: bytes of its codes.
        constants: bytes of its scales and code books.
        dtype: what the codes are packed in, by its name in torch: engines that shard parameters take floating
            point only.
    """

    data: int
    constants: int = 0
    dtype: str = "uint8"


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """What a quantized parameter consists of. It lives while loading only, and is never stored.

    Parameters:
        data: the `torch.Tensor` of its codes.
        constants: further tensors: scales, zero points, code books. None twice, and none that shares the
            data's storage.
        count: how many weights it stands for.
    """

    data: Any
    constants: tuple[Any, ...] = ()
    count: int


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Where the weights go.

    Parameters:
        device_map: as `from_pretrained` takes it; None leaves placing to the engine that trains.
        max_memory: device ("0", "cpu") to bytes or to a string such as "20GiB"; None for no limit.
    """

    SPREADING: ClassVar = ("auto", "balanced", "balanced_low_0", "sequential")
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
        float32_norms: whether k-bit preparation keeps norms in float32; engines that shard parameters want
            one dtype.
        norms_left: norms that k-bit preparation leaves in the dtype of the weights, as the ends of their
            paths: the model casts to their dtype.
    """

    kbit: bool = False
    gradient_checkpointing: bool = False
    gradient_checkpointing_kwargs: dict[str, Any] = {}
    input_gradients: bool = False
    training: bool = False
    float32_norms: bool = True
    norms_left: tuple[str, ...] = ()


class Processing(msgspec.Struct, frozen=True, kw_only=True):
    """The tokenizer or processor that goes with the model.

    Parameters:
        kind: which Auto class loads it; "none" for a checkpoint without one.
        source: where it is loaded from: a folder or a repository id.
        revision: the commit of that repository; "" for a folder.
        processing_class: "module:Class" where a plugin registered one.
        chat_template: a template to set; None keeps its own.
        template_origin: where that template comes from: a file, a checkpoint, or a plugin's architecture; ""
            where it was given as text.
        padding_side: "left" or "right"; None keeps its own.
        options: further keyword arguments of its `from_pretrained`.
    """

    kind: Literal["tokenizer", "processor", "none"]
    source: str = ""
    revision: str = ""
    processing_class: str = ""
    chat_template: str | None = None
    template_origin: str = ""
    padding_side: Literal["left", "right"] | None = None
    options: dict[str, Any] = {}


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """The special tokens, and what they ask of the embeddings.

    Parameters:
        eos_token: the token that ends a text; None keeps the tokenizer's own.
        pad_token: the token that fills up a batch; None keeps the tokenizer's own.
        additional: special tokens to add where the vocabulary lacks them, the two above included where they
            are new.
        pad_to_multiple_of: embedding rows are made a multiple of it when tokens are added; None for no
            padding.
    """

    eos_token: str | None = None
    pad_token: str | None = None
    additional: tuple[str, ...] = ()
    pad_to_multiple_of: int | None = None


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """What a loaded tokenizer's vocabulary asks of the model.

    Parameters:
        size: one more than its highest id.
        new_tokens: the tokens that loadkit added, to their ids.
        special_ids: "bos_token_id", "eos_token_id", "pad_token_id" to the id; None where the tokenizer has
            none.
        rows: rows that the embeddings must have at least, because an adapter was saved with so many; 0 for no
            demand.
    """

    size: int
    new_tokens: dict[str, int] = {}
    special_ids: dict[str, int | None] = {}
    rows: int = 0


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """A PEFT adapter: a new one by its options, or an existing one by its source.

    Parameters:
        name: the adapter's name in the model.
        peft_type: "LORA" or another of PEFT's types.
        options: fields of that type's PEFT config, as plain data.
        source: folder or repository of an existing adapter; "" for a new one.
        revision: its commit; "" for a folder.
        trainable: whether its parameters train.
        dtype: dtype of its parameters.
        exclude_vision: leave the towers of a multimodal model other than the text one alone.
        new_tokens: for a new one: train the embedding rows of the tokens that were added, the pad token's
            aside.
        embedding_rows: rows that the embeddings must have because an existing adapter was saved with so many;
            0 for no demand.
    """

    name: str = "default"
    peft_type: str = "LORA"
    options: dict[str, Any] = {}
    source: str = ""
    revision: str = ""
    trainable: bool = True
    dtype: str = "float32"
    exclude_vision: bool = True
    new_tokens: bool = False
    embedding_rows: int = 0


class Adapters(msgspec.Struct, frozen=True, kw_only=True):
    """The adapters of a model, and what becomes of them.

    Parameters:
        members: one or several, in the order in which they are attached.
        active: the name of the one that is on.
        merge: work the active one into the weights of the base, and return a bare model.
        dequantize: turn a quantized base back into floating point before merging.
    """

    members: tuple[Adapter, ...]
    active: str = "default"
    merge: bool = False
    dequantize: bool = False

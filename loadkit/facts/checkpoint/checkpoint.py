"""The checkpoint as a frozen fact: its config, its files and its weights' headers, never the weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

from loadkit.schema.dtypes import SAFETENSORS_FLOATS

__all__ = ["AdapterFacts", "Checkpoint", "File", "ProcessingFacts", "TensorHeader"]


QUANTIZED = re.compile(
    r"\.(absmax|quant_map|nested_absmax|SCB|qweight|qzeros|weight_scale|weight_scale_inv|weight_packed)$|\.quant_state\."
    r"|_proj_(blocks|scales)$"
)
"""Names that only quantized weights have: of bitsandbytes, GPTQ, AWQ, fp8, compressed-tensors, mxfp4."""

WHOLE_FLOATS = ("F64", "F32", "F16", "BF16")


class File(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the checkpoint: its path inside it, its size in bytes, -1 where unknown."""

    name: str
    size: int = -1


class TensorHeader(msgspec.Struct, frozen=True, array_like=True):
    """One tensor as a safetensors header describes it; `dtype` in safetensors' spelling, such as "BF16"."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: str


class ProcessingFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a folder or repository holds of a tokenizer or processor.

    Parameters:
        location: what `from_pretrained` is given: the folder's path or the repository's id.
        commit: the commit of that repository; "" for a folder.
        files: the names of its files.
        tokenizer_config: tokenizer_config.json over special_tokens_map.json, empty where there is neither.
        processor_config: processor_config.json over preprocessor_config.json, empty where there is neither.
        chat_template: the template in its files; None where there is none.
        added_tokens: tokens beside the trained vocabulary, special ones among them, to their ids, as far as
            the beginning of tokenizer.json goes.
        gguf_file: the GGUF file whose vocabulary it is; "" where it has files of its own.
    """

    location: str = ""
    commit: str = ""
    files: tuple[str, ...] = ()
    tokenizer_config: dict[str, Any] = {}
    processor_config: dict[str, Any] = {}
    chat_template: str | None = None
    added_tokens: dict[str, int] = {}
    gguf_file: str = ""

    def special_token(self, role: str) -> str | None:
        """The token of a role such as "eos_token"; None where the config names none."""
        found = self.tokenizer_config.get(role)
        if isinstance(found, dict):
            found = found.get("content")
        return found if isinstance(found, str) and found else None


class AdapterFacts(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter.

    Parameters:
        source: what was asked for.
        location: the folder's path or the repository's id.
        commit: the commit of that repository; "" for a folder.
        config: adapter_config.json.
        tensors: tensor name to header.
        processing: the tokenizer or processor that lies beside it.
        base_is_same: whether the base that its config names is the checkpoint; None where that isn't known.
    """

    source: str
    location: str
    commit: str
    config: dict[str, Any]
    tensors: dict[str, TensorHeader] = {}
    processing: ProcessingFacts = ProcessingFacts()
    base_is_same: bool | None = None


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What loadkit knows of a checkpoint before loading it.

    Parameters:
        source: what the user asked for.
        kind: a folder on this machine, a repository on the Hub, or what a plugin brings.
        location: the folder's path, the repository's id, or the address.
        revision: the revision asked for; "" for the default branch or a folder.
        commit: the commit hash that serves everything; "" for a folder.
        config: config.json.
        generation_config: generation_config.json, empty where there is none.
        processing: its tokenizer or processor.
        files: every file, sorted by name.
        tensors: tensor name to header, over all safetensors files or the GGUF file; empty for pickles.
        weight_files: the files that hold the weights.
        weight_format: how they are stored; "none" where there are no weights.
        adapter: the adapter that was asked for, where the source is one: the rest then is its base.
    """

    source: str
    kind: Literal["folder", "hub", "store"] = "folder"
    location: str = ""
    revision: str = ""
    commit: str = ""
    config: dict[str, Any] = {}
    generation_config: dict[str, Any] = {}
    processing: ProcessingFacts = ProcessingFacts()
    files: tuple[File, ...] = ()
    tensors: dict[str, TensorHeader] = {}
    weight_files: tuple[str, ...] = ()
    weight_format: Literal["safetensors", "pickle", "gguf", "none"] = "none"
    adapter: AdapterFacts | None = None

    @property
    def model_type(self) -> str:
        """`model_type` of config.json; "" where it has none."""
        found = self.config.get("model_type")
        return found if isinstance(found, str) else ""

    @property
    def architectures(self) -> tuple[str, ...]:
        """`architectures` of config.json; empty where it has none."""
        found = self.config.get("architectures")
        return tuple(a for a in found if isinstance(a, str)) if isinstance(found, list) else ()

    @property
    def auto_map(self) -> dict[str, Any]:
        """`auto_map` of config.json: the checkpoint's own code; empty where it has none."""
        found = self.config.get("auto_map")
        return found if isinstance(found, dict) else {}

    @property
    def quantization_config(self) -> dict[str, Any]:
        """How the checkpoint is stored quantized, from the config or its text part; empty where it isn't."""
        for config in self._whole_and_text():
            found = config.get("quantization_config")
            if isinstance(found, dict) and found:
                return found
        return {}

    @property
    def quantized_tensors(self) -> tuple[str, ...]:
        """Tensors that only quantized weights have: packed ones, and scales."""
        return tuple(sorted(name for name in self.tensors if QUANTIZED.search(name)))

    @property
    def looks_quantized(self) -> bool | None:
        """Whether the headers are those of quantized weights; None where there are none, or none tells."""
        if not self.tensors:
            return None
        if self.quantized_tensors:
            return True
        odd = any(h.dtype not in WHOLE_FLOATS for h in self.tensors.values() if len(h.shape) > 1)
        return None if odd or any("scale" in name for name in self.tensors) else False

    @property
    def stored_dtype(self) -> str:
        """The floating dtype that most bytes of the weights have, in torch's spelling; "" where unknown."""
        sizes: dict[str, int] = {}
        for header in self.tensors.values():
            if header.dtype in SAFETENSORS_FLOATS:
                name = SAFETENSORS_FLOATS[header.dtype]
                sizes[name] = sizes.get(name, 0) + header.nbytes
        return max(sizes, key=lambda name: (sizes[name], name)) if sizes else ""

    @property
    def config_dtype(self) -> str:
        """The dtype that config.json or its text part states as `dtype` or the older `torch_dtype`; or ""."""
        for config in self._whole_and_text():
            for key in ("dtype", "torch_dtype"):
                found = config.get(key)
                if isinstance(found, str) and found != "auto":
                    return found.removeprefix("torch.")
        return ""

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part of config.json; the whole where it has no such part."""
        found = self.config.get("text_config")
        return found if isinstance(found, dict) else self.config

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors in the weight files, by their headers."""
        return sum(header.nbytes for header in self.tensors.values())

    def sub_configs(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (dotted key, config) of every nested config, such as "text_config", outermost first."""
        yield from _nested("", self.config)

    def has_file(self, name: str) -> bool:
        """Whether the checkpoint holds a file of exactly this path."""
        return any(f.name == name for f in self.files)

    def _whole_and_text(self) -> Iterator[dict[str, Any]]:
        yield self.config
        yield from (config for key, config in self.sub_configs() if key.startswith("text"))


def _nested(prefix: str, config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, value in config.items():
        if (
            isinstance(value, dict)
            and ("model_type" in value or key.endswith("_config"))
            and key != "quantization_config"
        ):
            dotted = f"{prefix}{key}"
            yield dotted, value
            yield from _nested(f"{dotted}.", value)

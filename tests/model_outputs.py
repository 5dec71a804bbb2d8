"""Plain transformers beside loadkit: the same arguments, the same inputs, the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from loadkit import Loaded, Plan


def plain(plan: Plan, *, location: str | None = None) -> Any:
    """What a user of transformers would load with the arguments of the plan."""
    kwargs = dict(plan.kwargs)
    quantization = kwargs.pop("quantization_config", None)
    if quantization is not None:
        assert quantization.pop("method") == "bitsandbytes"
        assert "skip_modules" not in quantization
        if plan.checkpoint.model_type == "bert":
            quantization["llm_int8_skip_modules"] = ["classifier"]  # transformers would quantize the head
        beside = quantization.pop("packed_parameters", {})
        kwargs.pop("experts_implementation", None)
        kwargs["quantization_config"] = transformers.BitsAndBytesConfig(**quantization)
    auto = getattr(transformers, plan.model_class.auto_class)
    model = auto.from_pretrained(location or plan.checkpoint.location, **kwargs).eval()
    for module in model.modules() if quantization is not None else ():
        for name, units in beside.get(type(module).__name__, {}).items():
            assert units == "0"
            _round(module.get_parameter(name).data, quantization)
    if plan.preparation.kbit:
        for module in (
            model.modules()
        ):  # bitsandbytes' kernel for inference rounds otherwise, and can't be trained over
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    return model


def _round(stack: torch.Tensor, quantization: dict[str, Any]) -> None:
    """Give every expert of a stack the values that bitsandbytes' codes stand for."""
    from bitsandbytes import functional

    for matrix in stack:
        if quantization.get("load_in_8bit"):
            codes, scales, _ = functional.int8_vectorwise_quant(matrix.to(torch.float16))
            matrix.copy_(functional.int8_vectorwise_dequant(codes, scales))
            continue
        codes, state = functional.quantize_4bit(
            matrix.contiguous(),
            blocksize=64,
            compress_statistics=quantization["bnb_4bit_use_double_quant"],
            quant_type=quantization["bnb_4bit_quant_type"],
        )
        matrix.copy_(functional.dequantize_4bit(codes, state))


def batch(loaded: Loaded, *, seed: int = 0) -> dict[str, Any]:
    """A small batch that the model takes: token ids, labels, and pixels where it sees."""
    generator = torch.Generator().manual_seed(seed)
    model, processing = loaded.model, loaded.processing_class
    if loaded.plan.processing.kind == "processor":
        return images_and_text(processing)
    config = model.config.get_text_config()
    ids = torch.randint(5, config.vocab_size - 8, (2, 12), generator=generator)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    task = loaded.plan.model_class.task
    inputs["labels"] = torch.tensor([0, 1]) if task == "sequence-classification" else ids
    return inputs


def images_and_text(processor: Any) -> dict[str, Any]:
    """One picture and a question about it, through the chat template."""
    from PIL import Image

    picture = Image.new("RGB", (64, 64), (200, 30, 30))
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What colour is it?"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = dict(processor(text=[text], images=[[picture]], return_tensors="pt"))
    inputs["labels"] = inputs["input_ids"]
    return inputs


def logits(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """The logits in evaluation mode, whatever mode the model is in."""
    mode = model.training
    model.eval()
    with torch.no_grad():
        found = model(**inputs).logits
    model.train(mode)
    return found


def folder_bytes(folder: Path) -> int:
    """Bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

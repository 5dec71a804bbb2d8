"""One model type through every profile: what loadkit makes of it, beside what plain `from_pretrained`
does."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from zoo.expected import PROFILES, model_types
from zoo.inputs import inputs_of
from zoo.shrinking import tiny_config

import loadkit
from loadkit.audit.measurements import ADAPTED

__all__ = ["Outcome", "sweep"]


OWN_CLASSES = {
    "evolla": "EvollaForProteinText2Text",
    "musicgen": "MusicgenForConditionalGeneration",
    "musicgen_melody": "MusicgenMelodyForConditionalGeneration",
}
"""Model types that the Auto class lists and can't make (TRAPS 30), to the class that can."""


class Outcome(NamedTuple):
    """What became of one profile.

    verdict: "works" (loaded, audited, run, trained where the profile trains), "refused" (a LoadkitError),
        "runs not" (loaded and audited, but the forward or backward pass fails), "broken" (anything else).
    said: why.
    plain: the same of `from_pretrained` with the same dtype, attention and quantization: "works", "runs not",
        "loads not".
    off: how far the plan's estimates of the base's bytes and of the adapters' are from what was measured, as
        shares of it.
    """

    verdict: str
    said: str = ""
    plain: str = ""
    off: tuple[float, float] = (0.0, 0.0)


def make(model_type: str, folder: Path) -> str:
    """Write a tiny checkpoint of a model type; returns why transformers can't, "" where it can."""
    auto = _auto_class(model_types()[model_type])
    own = OWN_CLASSES.get(model_type)
    try:
        config = tiny_config(model_type)
        torch.manual_seed(0)
        with _quiet():
            made = (
                getattr(transformers, own)(config) if own else auto.from_config(config, dtype=torch.float32)
            )
            model = made.to(torch.bfloat16)
            model.save_pretrained(folder)
    except Exception as error:
        return _line(error)
    return ""


def sweep(model_type: str, folder: Path) -> dict[str, Outcome]:
    """Load a tiny checkpoint with every profile, and run it.

    Parameters:
        model_type: one of `model_types()`.
        folder: a folder of its own.

    Returns:
        Profile to outcome; the profile "made" alone where transformers itself can't make the model.
    """
    if impossible := make(model_type, folder):
        return {"made": Outcome("not made", impossible)}
    return {profile: _outcome(folder, profile) for profile in PROFILES}


def _outcome(folder: Path, profile: str) -> Outcome:
    gc.collect()
    task = _task(folder)
    theirs, their_logits = _plain(folder, profile, task)
    with _quiet():
        try:
            loaded = loadkit.load(folder, profile)
        except loadkit.AuditError as error:
            errors = [f for f in error.loaded.report.findings if f.severity == "error"]
            return Outcome("refused", "audit: " + "; ".join(f"{f.code}: {f.message}" for f in errors), theirs)
        except loadkit.PlanError as error:
            return Outcome("refused", "; ".join(f"{p.code}: {p.message}" for p in error.problems), theirs)
        except loadkit.LoadkitError as error:
            return Outcome("refused", _line(error), theirs)
        except Exception as error:
            return Outcome("broken", _line(error), theirs)
        off = _off(loaded)
        try:
            batch = _inputs(loaded.model)
            if loaded.plan.preparation.training:
                _train(loaded, batch)
            ours = _logits(loaded.model, batch)
        except Exception as error:
            return Outcome("runs not", _line(error), theirs)
    if not torch.isfinite(ours).all():
        return Outcome("runs not", "logits aren't finite", theirs)
    if profile in ("full", "inference") and their_logits is not None and not torch.equal(ours, their_logits):
        return Outcome("broken", "other logits than plain from_pretrained's", theirs)
    return Outcome("works", "", theirs, off)


def _off(loaded: Any) -> tuple[float, float]:
    """How far the estimates of the base and of the adapters are off; buffers that aren't saved aside, of
    which a tiny model has disproportionately many."""
    model, memory = loaded.model, loaded.plan.memory
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    saved = set(base.state_dict())
    passing = sum(b.numel() * b.element_size() for name, b in base.named_buffers() if name not in saved)
    added = sum(p.numel() * p.element_size() for n, p in model.named_parameters() if ADAPTED.search(n))
    held = loaded.report.measurements.footprint - passing - added
    return (memory.model - memory.adapters) / held - 1, memory.adapters / added - 1 if added else 0.0


def _train(loaded: Any, batch: dict[str, Any]) -> None:
    loaded.model.train()
    output = loaded.model(**batch)
    loss = output.loss if output.get("loss") is not None else output.logits.float().pow(2).mean()
    loss.backward()
    reached = [p for p in loaded.model.parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)]
    loaded.model.zero_grad()
    if not reached:
        raise RuntimeError("no gradient reached a parameter")


def _logits(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    model.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        output = model(**batch)
    return (output.logits if output.get("logits") is not None else output.loss).float()


def _plain(folder: Path, profile: str, task: str) -> tuple[str, torch.Tensor | None]:
    """What a user of transformers gets, and the logits."""
    kwargs: dict[str, Any] = {"dtype": torch.bfloat16}
    if profile == "qlora":
        kwargs["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16"
        )  # fmt: skip
    if profile == "qlora-8bit":
        kwargs["quantization_config"] = transformers.BitsAndBytesConfig(load_in_8bit=True)
    with _quiet():
        try:
            model, info = _auto_class(task).from_pretrained(folder, output_loading_info=True, **kwargs)
        except Exception as error:
            return f"loads not: {_line(error)}", None
        if info["missing_keys"] or info["mismatched_keys"]:
            return "loads not: random weights", None
        for config in (model.config, model.config.get_text_config()):
            if profile == "full" and hasattr(config, "use_cache"):
                config.use_cache = False  # codegen's bits differ with it
        try:
            return "works", _logits(model, _inputs(model))
        except Exception as error:
            return f"runs not: {_line(error)}", None


def _inputs(model: Any) -> dict[str, Any]:
    batch = {key: value for key, value in inputs_of(model.config).items() if value is not None}
    return {
        k: v.to(torch.bfloat16) if hasattr(v, "is_floating_point") and v.is_floating_point() else v
        for k, v in batch.items()
    }


def _task(folder: Path) -> str:
    import json

    return model_types()[json.loads((folder / "config.json").read_text())["model_type"]]


def _auto_class(task: str) -> Any:
    name = {"causal-lm": "AutoModelForCausalLM", "image-text-to-text": "AutoModelForImageTextToText"}[task]
    return getattr(transformers, name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"

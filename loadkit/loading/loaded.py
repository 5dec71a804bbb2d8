"""What a load gives: the model with its plan and its proof."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from loadkit.audit.model_access import tokenizer_of
from loadkit.errors import Finding
from loadkit.loading.as_loaded import AsLoaded
from loadkit.loading.inference_mode import InferenceMode
from loadkit.manifest.manifest import Manifest, make_manifest
from loadkit.schema.plans import Plan
from loadkit.schema.reports import Loading, Report
from loadkit.schema.request import Progress

__all__ = ["BareModel", "Loaded", "LoadkitWarning"]


class BareModel(NamedTuple):
    """The model as `from_pretrained` gave it, in evaluation mode, before any phase.

    Parameters:
        loading: what `from_pretrained` said of its weights.
        own_use_cache: path of a nested config ("" for the outermost) to the checkpoint's own `use_cache`.
        shortcuts: what came of the loading aids, a line each.
        findings: what its weights are, held against the files.
    """

    model: Any
    loading: Loading
    own_use_cache: dict[str, bool]
    weight_files: tuple[Path, ...]
    shortcuts: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


class LoadkitWarning(UserWarning):
    """What `strict=False` lets pass, and what the plan warned of."""


class Loaded:
    """A loaded model with its plan and its proof. Unpacks as `(model, processing_class)`.

    Parameters:
        model: the `transformers.PreTrainedModel`, or the `peft.PeftModel` around it.
        processing_class: the tokenizer or processor; None where the checkpoint has neither.
        plan: what was planned.
        report: what was found.
    """

    def __init__(self, model: Any, processing_class: Any, plan: Plan, report: Report) -> None:
        self.model = model
        self.processing_class = processing_class
        self.plan = plan
        self.report = report
        self._as_loaded = AsLoaded(model, plan)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, a processor's own included; None where there is none."""
        return tokenizer_of(self.processing_class)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Save the model (with an adapter: the adapter alone, as PEFT does) and its processing class.

        The configs that are written hold the checkpoint's own `use_cache`, whatever training needed; so do
        those that a trainer writes with `model.save_pretrained`.

        Parameters:
            folder: where to; made where it isn't there.

        Returns:
            The folder.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        grown = any(c.phase == "vocabulary" for c in self.report.changes) and self.plan.adapter is not None
        self.model.save_pretrained(target, **({"save_embedding_layers": True} if grown else {}))
        if self.processing_class is not None:
            self.processing_class.save_pretrained(target)
        return target

    def manifest(self, progress: Progress | None = None) -> Manifest:
        """Take down what was loaded, from what and by what, to load it again. Every file is hashed.

        Parameters:
            progress: called with a short sentence for each file.
        """
        return make_manifest(self.plan, self.report, progress)

    def for_inference(self) -> InferenceMode:
        """Turn evaluation mode and the key-value cache on, at once.

        Returns:
            What takes it back: at the end of a `with` block, or by its `undo()`.
        """
        return InferenceMode(self.model)

    def reference(self, *, trained_in_full: bool | None = None) -> Any:
        """The frozen model as it was loaded, for preference training, without a second load.

        It is a model of its own that shares every weight with the policy that doesn't train, and can be a
        trainer's `ref_model`. A fresh LoRA adds nothing yet: the reference is the base, at any time, and
        takes no memory. Of any other adapter, and of what else trains beside one, it holds a copy. Without an
        adapter it shares the policy's storage, and refuses to run once that has trained; a policy that is
        trained in full gets a real copy instead.

        Parameters:
            trained_in_full: whether the policy's own weights will train. By default as planned: training,
                without an adapter, over a base that isn't quantized. Give False where the trainer injects an
                adapter itself.

        Returns:
            A model in evaluation mode, without trainable parameters: the class that the policy's base has;
            where an adapter works outside the layers (prompts), a module around it with the same calls.

        Raises:
            LoadkitError: the reference has to be copied, and the policy isn't what was loaded any more.
        """
        from loadkit.loading.reference_model import adapter_reference, frozen_copy, shared_reference

        plan = self.plan
        if plan.adapter is not None and hasattr(self.model, "disable_adapter"):
            return adapter_reference(
                self.model,
                self._as_loaded,
                name=plan.adapter.name,
                beneath=plan.adapters.beneath if plan.adapters is not None else "",
            )
        if trained_in_full is None:
            trained_in_full = plan.preparation.training and not plan.preparation.kbit
        make = frozen_copy if trained_in_full else shared_reference
        return make(self.model, self._as_loaded)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.processing_class))

    def __repr__(self) -> str:
        return f"<Loaded {type(self.model).__name__} from {self.plan.checkpoint.source!r}>"

    def __str__(self) -> str:
        return f"{self.plan}\n\n{self.report}"

    def _repr_html_(self) -> str:
        return self.plan._repr_html_() + self.report._repr_html_()

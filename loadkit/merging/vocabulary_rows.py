"""Rows that the tokenizer or the adapter asks for, and that the base's files don't have: what a load makes of
them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loadkit.audit.model_access import input_embeddings, output_embeddings
from loadkit.hooks import hookspecs as hooks
from loadkit.hooks.manager import PluginManager
from loadkit.loading.process_wide import one_at_a_time
from loadkit.merging.layout import Layout
from loadkit.merging.skeleton import build_bare
from loadkit.merging.stored_files import StoredFiles
from loadkit.merging.values import MoreRows
from loadkit.schema.plans import Plan
from loadkit.schema.processing import Vocabulary

__all__ = ["rows_asked_for"]


def rows_asked_for(
    plan: Plan,
    config: Any,
    vocabulary: Vocabulary,
    manager: PluginManager,
    files: StoredFiles,
    layout: Layout,
    shapes: Mapping[str, Any],
) -> dict[str, MoreRows]:
    """The rows by which embeddings and head differ from the files once the vocabulary fits.

    The plugin that fits the vocabulary while loading does so here, on a model of which embeddings and head
    alone are in memory.

    Parameters:
        config: the model's, as the checkpoint has it.
        shapes: the fitted model's tensors, on the meta device.
    """
    stored = {
        target: next(iter(group.stored))
        for target, group in layout.groups.items()
        if group.converter is None and target in shapes
    }
    short = [t for t, name in stored.items() if _more(shapes[t].shape, files.header(name).shape)]
    if not short and not vocabulary.new_tokens:
        return {}
    with one_at_a_time():
        model = build_bare(plan, config)
        ends = _ends(model)
        before = {}
        for target, (module, attribute) in ends.items():
            if target in stored:
                before[target] = files[stored[target]].tensor(stored[target])
                module._parameters[attribute] = _parameter(before[target])
        model.tie_weights()
        model = manager.first(hooks.loadkit_fit_vocabulary, plan=plan, model=model, vocabulary=vocabulary)
        after = {
            target: module._parameters[attribute] for target, (module, attribute) in _ends(model).items()
        }
    return {
        target: found
        for target, old in before.items()
        if (found := _difference(old, after[target].data)) is not None
    }


def _more(fitted: tuple[int, ...], stored: tuple[int, ...]) -> bool:
    return len(fitted) == len(stored) > 0 and fitted[0] > stored[0] and fitted[1:] == stored[1:]


def _ends(model: Any) -> dict[str, tuple[Any, str]]:
    """The parameters of the embeddings and the head, by their names."""
    paths = {module: path for path, module in model.named_modules()}
    ends = [module for module in (input_embeddings(model), output_embeddings(model)) if module in paths]
    return {
        f"{paths[module]}.{attribute}".lstrip("."): (module, attribute)
        for module in ends
        for attribute, parameter in module._parameters.items()
        if parameter is not None
    }


def _parameter(tensor: Any) -> Any:
    import torch

    return torch.nn.Parameter(tensor.clone(), requires_grad=False)


def _difference(old: Any, new: Any) -> MoreRows | None:
    """The rows that are new or other."""
    import torch

    count = old.shape[0]
    changed = (new[:count] != old).reshape(count, -1).any(dim=1).nonzero().flatten()
    rows = torch.cat([changed, torch.arange(count, new.shape[0])])
    return MoreRows(new.shape[0], rows, new[rows].clone()) if len(rows) else None

"""The calls of `from_pretrained`: the plan's plain values become the real objects here, and nowhere else."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from loadkit import hookspecs as hooks
from loadkit.errors import LoadError, LoadkitError
from loadkit.manager import PluginManager
from loadkit.plans import KWARGS, Plan
from loadkit.report import Loading
from loadkit.skipping import modules_to_skip

__all__ = ["load_model", "load_processing_class"]

HEADED = ("sequence-classification", "token-classification")
"""Tasks with a head of their own. transformers 5.23 means to leave the last module unquantized, but misses one that has a
bias (`get_keys_to_not_convert` strips ".weight" only), so that BERT's classifier would be quantized."""

HUB_KWARGS = ("cache_dir", "local_files_only", "revision")


def load_model(plan: Plan, manager: PluginManager, token: str | bool | None = None) -> tuple[Any, Loading]:
    """Load the model that the plan names.

    Parameters:
        plan: the plan.
        manager: the plugins that may load it another way, and that build its quantization config.
        token: the Hub token.

    Returns:
        The model in evaluation mode, and what `from_pretrained` said of its weights.

    Raises:
        LoadError: transformers failed; its exception is the cause.
    """
    other = manager.first(hooks.loadkit_load_model, plan=plan)
    if other is not None:
        return other, Loading()
    with _explained(plan, "the model"):
        config, further = load_config(plan, token)
        kwargs: dict[str, Any] = {**plan.kwargs, **further, **({} if token is None else {"token": token})}
        for name in plan_kwargs(plan).keys() - further.keys() - set(HUB_KWARGS):
            kwargs.pop(name)  # the config took it
        quantization = plan.quantization
        if quantization is not None and not quantization.prequantized:
            kwargs["quantization_config"] = _quantization_config(plan, config, manager)
        if "max_memory" in kwargs:
            kwargs["max_memory"] = {int(k) if k.isdigit() else k: v for k, v in kwargs["max_memory"].items()}
        model, info = _class(plan).from_pretrained(
            plan.checkpoint.location,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told, not raised, so that the audit can name every tensor
            **kwargs,
        )
    return model, _loading(info)


def load_config(plan: Plan, token: str | bool | None = None) -> tuple[Any, dict[str, Any]]:
    """Load the config at the plan's commit, with `use_cache` set at every depth that has it.

    Parameters:
        plan: the plan.
        token: the Hub token.

    Returns:
        The config that the model's class takes, and those further keyword arguments that aren't fields of it.
    """
    import transformers

    model_class = plan.model_class
    loader = _imported(model_class.config_class) if model_class.config_class else transformers.AutoConfig
    hub = {name: value for name, value in plan.kwargs.items() if name in HUB_KWARGS}
    further = {name: value for name, value in plan_kwargs(plan).items() if name not in HUB_KWARGS}
    config, unused = loader.from_pretrained(
        plan.checkpoint.location,
        return_unused_kwargs=True,
        trust_remote_code=model_class.implementation == "remote code",
        **({} if token is None else {"token": token}),
        **hub,
        **further,
    )
    if model_class.config_key:
        whole, config = config, getattr(config, model_class.config_key)
        if getattr(whole, "quantization_config", None) is not None:
            config.quantization_config = whole.quantization_config
    if plan.use_cache is not None:
        for nested in _configs(config):
            if hasattr(nested, "use_cache"):
                nested.use_cache = plan.use_cache
    return config, {name: value for name, value in unused.items() if name in further}


def load_processing_class(plan: Plan, token: str | bool | None = None) -> Any:
    """Load the tokenizer or processor that the plan names; None where it names none.

    Raises:
        LoadError: transformers failed; its exception is the cause.
    """
    processing = plan.processing
    if processing.kind == "none":
        return None
    import transformers

    with _explained(plan, f"the {processing.kind}"):
        auto = transformers.AutoProcessor if processing.kind == "processor" else transformers.AutoTokenizer
        loader = _imported(processing.processing_class) if processing.processing_class else auto
        kwargs = {name: value for name, value in plan_kwargs(plan).items() if name in HUB_KWARGS}
        loaded = loader.from_pretrained(
            processing.source,
            trust_remote_code=plan.model_class.implementation == "remote code",
            **({} if token is None else {"token": token}),
            **({"revision": processing.revision} if processing.revision else {}),
            **kwargs,
            **processing.options,
        )
    tokenizer = getattr(loaded, "tokenizer", loaded)
    if processing.padding_side is not None:
        tokenizer.padding_side = processing.padding_side
    if processing.chat_template is not None:
        loaded.chat_template = processing.chat_template
    return loaded


def plan_kwargs(plan: Plan) -> dict[str, Any]:
    """The keyword arguments that no stage owns."""
    return {d.stage.removeprefix(KWARGS): d.value for d in plan.decisions if d.stage.startswith(KWARGS)}


def _quantization_config(plan: Plan, config: Any, manager: PluginManager) -> Any:
    quantization = plan.quantization
    assert quantization is not None
    skip: Sequence[str] | None = None
    if quantization.skip_modules or plan.model_class.task in HEADED:
        skip = modules_to_skip(
            _class(plan), config, quantization.skip_modules, plan.model_class.implementation == "remote code"
        )
    built = manager.first(
        hooks.loadkit_build_quantization_config, plan=plan, quantization=quantization, skip_modules=skip
    )
    if built is None:
        raise LoadError(
            f"the plan quantizes with {quantization.method!r}, and no plugin builds its config: "
            "install the plugin that made the plan, or plan again"
        )
    return built


def _class(plan: Plan) -> Any:
    import transformers

    model_class = plan.model_class
    if model_class.auto_class:
        return getattr(transformers, model_class.auto_class)
    return _imported(model_class.model_class)


def _imported(reference: str) -> Any:
    module, _, name = reference.rpartition(":")
    return getattr(importlib.import_module(module or "transformers"), name)


def _configs(config: Any) -> Iterator[Any]:
    yield config
    for key in config.sub_configs:
        nested = getattr(config, key, None)
        if hasattr(nested, "sub_configs"):
            yield from _configs(nested)


def _loading(info: dict[str, Any]) -> Loading:
    return Loading(
        missing=tuple(sorted(info.get("missing_keys", ()))),
        unexpected=tuple(sorted(info.get("unexpected_keys", ()))),
        mismatched=tuple(
            sorted(
                f"{key[0]}: {tuple(key[1])} in the file, {tuple(key[2])} in the model"
                for key in info.get("mismatched_keys", ())
            )
        ),
        errors=tuple(str(e) for e in info.get("error_msgs", ()) or ()),
    )


@contextmanager
def _explained(plan: Plan, what: str) -> Iterator[None]:
    """Say what was being loaded when a library underneath raises."""
    try:
        yield
    except LoadkitError:
        raise
    except Exception as error:
        checkpoint = plan.checkpoint
        at = f" at {checkpoint.commit}" if checkpoint.commit else ""
        raise LoadError(
            f"{what} of {checkpoint.source!r}{at} couldn't be loaded as planned "
            f"({plan.model_class.model_class}, {plan.dtype}): {type(error).__name__}: {error}\n"
            "    fix: `loadkit plan` shows what was to happen and who decided it"
        ) from error

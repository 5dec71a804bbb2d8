"""The calls of `from_pretrained`: the plan's plain values become the real objects here, and nowhere else."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loadkit.audit.model_access import configs
from loadkit.errors import Finding, LoadError, LoadkitError
from loadkit.facts.load_facts import LoadFacts, fingerprint_of
from loadkit.facts.local_copies import handed_over
from loadkit.hooks import hookspecs as hooks
from loadkit.hooks.manager import PluginManager
from loadkit.loading.byte_bar import bar_of_bytes
from loadkit.loading.download import HUB_KWARGS, explain, fetch_weights, may_ask, plan_kwargs
from loadkit.loading.fresh_weights import initialised, starts_anew
from loadkit.loading.fusions import for_one_load
from loadkit.loading.loaded import BareModel
from loadkit.loading.out_of_memory import is_out_of_memory, memory_remedy
from loadkit.loading.process_wide import one_at_a_time
from loadkit.loading.skip_modules import modules_to_skip
from loadkit.loading.speed.gc_pause import pause_gc
from loadkit.loading.speed.page_release import released_while_loading
from loadkit.loading.speed.run_aids import NO_AIDS, Aids, with_aids
from loadkit.loading.turned_back import (
    finish_turning_back,
    forget_stored,
    gguf_in_floating_point,
    saved_as_stored,
    set_stored,
)
from loadkit.loading.use_cache import set_use_cache
from loadkit.schema.loading_aids import Stored
from loadkit.schema.plans import Plan
from loadkit.schema.reports import Loading
from loadkit.schema.request import Progress, Token
from loadkit.schema.values import Quantization

__all__ = ["load_config", "load_model", "load_processing_class", "model_class_of"]

FirstOnNode = Callable[[str, Callable[[], tuple[Path, ...]]], tuple[Path, ...]]

NO_ADAPTER = {"subfolder": "loadkit-attaches-adapters"}
"""Where transformers is sent to look for an adapter beside the weights: it finds none, and injects none
(transformers 5.23: `maybe_load_adapters`). An adapter that the plan has is attached in its own phase."""


def load_model(
    plan: Plan,
    facts: LoadFacts,
    manager: PluginManager,
    token: Token = None,
    progress: Progress | None = None,
    aids: Aids = NO_AIDS,
    compare: Callable[[BareModel], Sequence[Finding]] = lambda loaded: (),
    first_on_node: FirstOnNode = lambda _, fetching: fetching(),
) -> BareModel:
    """Load the model that the plan names, and hold it against its files.

    Parameters:
        compare: what a model's weights are, held against the files.
        first_on_node: lets one process of a machine fetch first.
    """
    loaded: list[BareModel] = []

    def own() -> Any:
        loaded[:] = [_by_loadkit(plan, facts, manager, token, progress, aids, compare, first_on_node)]
        return loaded[0].model

    hook: Any = hooks.loadkit_load_model
    model = manager.first_or(hook, own, plan=plan)
    bare = loaded[0] if loaded else BareModel(model, Loading(), {}, facts.weight_files)
    if loaded and not manager.wrapped(hook):
        return bare
    bare = bare._replace(model=model)
    return bare._replace(findings=tuple(dict.fromkeys([*bare.findings, *compare(bare)])))


def _by_loadkit(
    plan: Plan,
    facts: LoadFacts,
    manager: PluginManager,
    token: Token,
    progress: Progress | None,
    aids: Aids,
    compare: Callable[[BareModel], Sequence[Finding]],
    first_on_node: FirstOnNode,
) -> BareModel:
    """As `load_model`, where no plugin loads."""
    if starts_anew(plan):
        bare = _from_config(plan, token, facts.weight_files)
        return bare._replace(findings=tuple(compare(bare)))
    return with_aids(
        aids,
        fetch=lambda: first_on_node("the weights", lambda: fetch_weights(plan, facts, token, progress)),
        load=lambda files: _load(plan, manager, token, files),
        read=lambda stored: _load(plan, manager, token, facts.weight_files, stored),
        compare=compare,
        changed=lambda: facts.fingerprint != fingerprint_of(plan),
    )


def _load(
    plan: Plan, manager: PluginManager, token: Token, files: Sequence[Path], stored: Stored | None = None
) -> BareModel:
    """Call `from_pretrained` for the checkpoint, or for what is stored of it quantized already."""
    quantization = plan.quantization if plan.quantization and plan.quantization.handed_on else None
    # Files that are only read, to make other weights of them, needn't stay in memory.
    made = plan.quantization is not None and not (plan.quantization.prequantized and plan.quantization.packed)
    read_only = files if made and stored is None else ()
    with _explained(plan, "the model"), one_at_a_time(), pause_gc(), released_while_loading(read_only):
        config, further = load_config(plan, token)
        own_use_cache = set_use_cache(config, plan.use_cache)
        kwargs: dict[str, Any] = {**plan.kwargs, **further, **_access(plan, token)}
        for name in plan_kwargs(plan).keys() - further.keys() - set(HUB_KWARGS):
            kwargs.pop(name)  # the config took it
        gguf = plan.checkpoint.weight_format == "gguf"
        if quantization is not None and quantization.prequantized and not gguf:
            del kwargs["quantization_config"]
            set_stored(config, {"dequantize": True})
        elif gguf:
            kwargs |= gguf_in_floating_point()
        elif quantization is not None:
            if quantization.again:
                forget_stored(config)
            kwargs["quantization_config"] = _quantization_config(plan, quantization, config, manager)
        elif plan.quantization is not None and plan.quantization.prequantized:
            set_stored(config, plan.quantization.settings)
            _introduce_format(plan, plan.quantization, config, manager)
        if "max_memory" in kwargs:
            kwargs["max_memory"] = {int(k) if k.isdigit() else k: v for k, v in kwargs["max_memory"].items()}
        location = handed_over(plan.checkpoint.location, plan.checkpoint.commit)
        if stored is not None:
            location = stored.folder
            config.quantization_config = kwargs.pop("quantization_config").to_dict()
            if kwargs.pop("revision", None) and plan.model_class.implementation == "remote code":
                kwargs.setdefault("code_revision", plan.checkpoint.commit)
        read = files if stored is None else sorted(Path(stored.folder).glob("*.safetensors"))
        with for_one_load(config, kwargs), bar_of_bytes(read):
            model, info = model_class_of(plan).from_pretrained(
                location,
                config=config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # not raised, so that the audit can name every tensor
                **_adapter_kwargs(plan, stored),
                **kwargs,
            )
        if stored is not None:
            model.hf_quantizer.pre_quantized = False  # as one that was quantized just now
        _as_from(plan.checkpoint.location, location, model)
        if plan.quantization is not None and not plan.quantization.packed:
            import torch

            finish_turning_back(model, getattr(torch, plan.dtype))
        elif plan.quantization is not None and plan.quantization.prequantized:
            saved_as_stored(model)
    return BareModel(model, _loading(info), own_use_cache, tuple(files))


def _adapter_kwargs(plan: Plan, stored: Stored | None) -> dict[str, Any]:
    """Where transformers looks for an adapter beside the weights: at the same commit, if at all.

    Up to 5.10 at least it takes the newest of the branch by itself (`maybe_load_adapters`: "don't override
    revision"); later ones take the model's. It can go with a floor of those.
    """
    if plan.checkpoint.kind != "hub" or stored is not None:
        return {"adapter_kwargs": NO_ADAPTER}
    return {"adapter_kwargs": {"revision": plan.checkpoint.commit}} if plan.checkpoint.commit else {}


def _from_config(plan: Plan, token: Token, files: tuple[Path, ...]) -> BareModel:
    """Initialise the weights anew: no file is fetched; those that are here are what it is told apart from."""
    with _explained(plan, "the model"), pause_gc():
        config, further = load_config(plan, token)
        own_use_cache = set_use_cache(config, plan.use_cache)
        model = initialised(
            plan, model_class_of(plan), config, {**plan.kwargs, **further, **_access(plan, token)}
        )
    return BareModel(model, Loading(), own_use_cache, files)


def _as_from(location: str, folder: str, model: Any) -> None:
    """Have a model that was loaded from what is stored, or from a copy, say where its checkpoint is."""
    if folder == location:
        return
    named = [(module, "name_or_path") for module in model.modules()]
    for each, name in [*named, *((nested, "_name_or_path") for _, nested in configs(model.config))]:
        if getattr(each, name, None) == folder:
            setattr(each, name, location)


def load_config(plan: Plan, token: Token = None) -> tuple[Any, dict[str, Any]]:
    """The config that the model's class takes, and those further keyword arguments that aren't its fields."""
    model_class = plan.model_class
    hub = {name: value for name, value in plan.kwargs.items() if name in (*HUB_KWARGS, "gguf_file")}
    further = {name: value for name, value in plan_kwargs(plan).items() if name not in HUB_KWARGS}
    config, unused = _imported(model_class.config_class or "AutoConfig").from_pretrained(
        handed_over(plan.checkpoint.location, plan.checkpoint.commit),
        return_unused_kwargs=True,
        **{**hub, **further, **_access(plan, token)},
    )
    if model_class.config_key:
        whole, config = config, getattr(config, model_class.config_key)
        if getattr(whole, "quantization_config", None) is not None:
            config.quantization_config = whole.quantization_config
    return config, {name: value for name, value in unused.items() if name in further}


def load_processing_class(plan: Plan, token: Token = None) -> Any:
    """Load the tokenizer or processor that the plan names; None where it names none."""
    processing = plan.processing
    if processing.kind == "none":
        return None
    remedy = f"the files of {processing.source!r} are damaged or not whole: fetch them again, or save it again with save_pretrained"
    with _explained(plan, f"the {processing.kind}", remedy):
        auto = "AutoProcessor" if processing.kind == "processor" else "AutoTokenizer"
        kwargs = {name: value for name, value in plan_kwargs(plan).items() if name in HUB_KWARGS}
        place = handed_over(processing.source, processing.revision)
        of_the_hub = processing.revision and place == processing.source
        loaded = _imported(processing.processing_class or auto).from_pretrained(
            place,
            **({"revision": processing.revision} if of_the_hub else {}),
            **{**kwargs, **_access(plan, token)},
            **_registered_config(plan, kwargs, token),
            **processing.options,
        )
        if place != processing.source:
            _named(processing.source, place, loaded)
        return loaded


def _named(location: str, folder: str, loaded: Any) -> None:
    """Have a tokenizer, or those of a processor, say where its files are rather than where their copy is."""
    for each in (loaded, *vars(loaded).values()):
        if getattr(each, "name_or_path", None) == folder:
            each.name_or_path = location


def _registered_config(plan: Plan, hub: Mapping[str, Any], token: Token) -> dict[str, Any]:
    """The config of a registered family, for Auto classes that would look for its type in vain, and warn that
    they read it as another (transformers 5)."""
    registered = plan.model_class.config_class
    own = plan.processing.source == plan.checkpoint.location and not plan.processing.processing_class
    if plan.model_class.implementation != "plugin" or not registered or not own:
        return {}
    location = handed_over(plan.checkpoint.location, plan.checkpoint.commit)
    return {"config": _imported(registered).from_pretrained(location, **{**hub, **_access(plan, token)})}


def _access(plan: Plan, token: Token) -> dict[str, Any]:
    """What transformers may do: not ask a Hub that was down while planning, as it would ask for minutes."""
    down = bool(plan.checkpoint.commit) and not may_ask(plan)
    return {
        "trust_remote_code": plan.model_class.implementation == "remote code",
        **({} if token is None else {"token": token}),
        **({"local_files_only": True} if down else {}),
    }


def _quantization_config(plan: Plan, quantization: Quantization, config: Any, manager: PluginManager) -> Any:
    skip = modules_to_skip(plan, model_class_of(plan), config)
    built = manager.first(
        hooks.loadkit_build_quantization_config, plan=plan, quantization=quantization, skip_modules=skip
    )
    if built is None:
        raise LoadError(
            f"the plan quantizes with {quantization.method!r}, and no plugin builds its config: "
            "install the plugin that made the plan, or plan again"
        )
    return built


def _introduce_format(plan: Plan, quantization: Quantization, config: Any, manager: PluginManager) -> None:
    """Let the plugin whose format it is register it, where transformers doesn't know what is stored."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    own = getattr(config, "quantization_config", None)
    method = own.get("quant_method") if isinstance(own, dict) else None
    if method is not None and method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        hook: Callable[..., Any] = hooks.loadkit_build_quantization_config
        manager.first(hook, plan=plan, quantization=quantization, skip_modules=None)


def model_class_of(plan: Plan) -> Any:
    """The class whose `from_pretrained` loads the plan's model, or the Auto class that finds it."""
    model_class = plan.model_class
    return _imported(model_class.auto_class or model_class.model_class)


def _imported(reference: str) -> Any:
    module, _, name = reference.rpartition(":")
    return getattr(importlib.import_module(module or "transformers"), name)


def _loading(info: dict[str, Any]) -> Loading:
    mismatched = (
        f"{name}: {tuple(stored)} in the file, {tuple(built)} in the model"
        for name, stored, built, *_ in info.get("mismatched_keys", ())
    )
    return Loading(
        missing=tuple(sorted(info.get("missing_keys", ()))),
        unexpected=tuple(sorted(info.get("unexpected_keys", ()))),
        mismatched=tuple(sorted(mismatched)),
        errors=tuple(str(e) for e in info.get("error_msgs", ()) or ()),
    )


@contextmanager
def _explained(
    plan: Plan, what: str, remedy: str = "`loadkit plan` shows what was to happen and who decided it"
) -> Iterator[None]:
    """A LoadError says what was being loaded when a library underneath raised, which is its cause."""
    try:
        yield
    except LoadkitError:
        raise
    except Exception as error:
        checkpoint = plan.checkpoint
        at = f" at {checkpoint.commit}" if checkpoint.commit else ""
        problem = explain(error, plan) if checkpoint.commit else None
        if problem is not None:
            raise LoadError(
                f"{what} of {checkpoint.source!r}{at} couldn't be loaded: {problem.message}\n"
                f"    fix: {problem.remedy}  [{problem.code}]"
            ) from (None if problem.code == "bad-token" else error)  # the HTTP library's may quote the token
        if is_out_of_memory(error):
            raise LoadError(
                f"memory ran out while {what} of {checkpoint.source!r}{at} was loaded "
                f"({plan.model_class.model_class}, {plan.dtype}): {type(error).__name__}: {error}\n"
                f"    fix: {memory_remedy(plan)}"
            ) from error
        raise LoadError(
            f"{what} of {checkpoint.source!r}{at} couldn't be loaded as planned "
            f"({plan.model_class.model_class}, {plan.dtype}): {type(error).__name__}: {error}\n"
            f"    fix: {remedy}"
        ) from error

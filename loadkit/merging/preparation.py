"""Everything that a merge works out before it writes: what goes where, and why it can't."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from loadkit.errors import LoadError, Problem
from loadkit.facts.load_facts import LoadFacts
from loadkit.facts.local_copies import folder_of
from loadkit.hooks.manager import PluginManager
from loadkit.loading.download import fetch_adapters, fetch_small_files, fetch_weights
from loadkit.loading.from_pretrained import load_config, load_processing_class
from loadkit.loading.imports import import_libraries
from loadkit.loading.process_wide import one_at_a_time
from loadkit.loading.tokenizer_setup import finish_processing
from loadkit.merging.beside_weights import changed_fields, companions, edited
from loadkit.merging.layout import read_layout
from loadkit.merging.moves import find_moves, unmergeable
from loadkit.merging.outline import OutFile, outline
from loadkit.merging.problems import merge_problem, refuse
from loadkit.merging.skeleton import Skeleton, build, build_bare
from loadkit.merging.stored_files import StoredFiles
from loadkit.merging.ties import Ties, still_tied, untie
from loadkit.merging.values import Values
from loadkit.merging.vocabulary_rows import rows_asked_for
from loadkit.schema.dtypes import SAFETENSORS_FLOATS
from loadkit.schema.plans import Plan
from loadkit.schema.request import Progress, Token

__all__ = ["Prepared", "prepare"]

INDEX = "model.safetensors.index.json"
CONFIG, GENERATION = "config.json", "generation_config.json"
HEAD_FIELDS = ("id2label", "label2id", "problem_type")
"""Fields of a config that belong to a classifier's head."""

SPARE = 64 << 20
"""Bytes for what isn't weights, when the disk is asked."""


class Prepared(NamedTuple):
    """A merge that can be carried out.

    Parameters:
        plan: what was planned.
        sources: what is read: "the base" and "the adapter", to their folders.
        values: the tensors.
        outline: the weight files to write.
        companions: every other file to its place, by its name.
        edits: name of one of them to the fields that change.
        index_name: the index of the weight files; "" for a single file.
        left_out: tensors of the base that the merged model's class has no place for.
        index_metadata: what the base's index says beside the map.
    """

    plan: Plan
    sources: dict[str, Path]
    values: Values
    outline: list[OutFile]
    companions: dict[str, Path]
    edits: dict[str, dict[str, Any]]
    index_name: str
    left_out: tuple[str, ...]
    index_metadata: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """About the bytes of everything that will be written."""
        return SPARE + sum(file.nbytes for file in self.outline)

    @property
    def config_changes(self) -> list[str]:
        """The fields of config.json that change."""
        return sorted(self.edits.get(CONFIG, {}))


def prepare(
    plan: Plan, facts: LoadFacts, source: str, manager: PluginManager, token: Token, say: Progress, dtype: str
) -> Prepared:
    """Fetch what is needed, and work out every tensor and file of the merged model.

    Parameters:
        source: the adapter that was asked for.
        dtype: torch's name of the dtype that was asked for; "" for each tensor's own.

    Raises:
        PlanError: it can't be merged so.
        LoadError: the libraries underneath failed, or the Hub did.
    """
    refuse(source, _unfit(plan, source))
    say("fetching what isn't here")
    say("importing torch, transformers and peft")
    import_libraries(plan, facts.machine)
    fetch_small_files(plan, facts, token)
    adapters = fetch_adapters(plan, facts, token)
    weights = fetch_weights(plan, facts, token, say)
    assert adapters is not None
    adapter = next(each for each in adapters.members if each.name == adapters.active)
    config_of_adapter = _read(Path(adapter.source, "adapter_config.json"))
    refuse(source, [problem for problem in (unmergeable(source, config_of_adapter),) if problem])
    base = _base_folder(plan)
    with one_at_a_time():
        vocabulary = finish_processing(plan, load_processing_class(plan, token))
        config = load_config(plan, token)[0]
        before = config.to_dict()
    say("building the model without its weights")
    skeleton, problems = build(plan, adapter, vocabulary, manager, token, _read(base / GENERATION))
    refuse(source, problems)
    index = _read(base / INDEX)
    paths = dict(zip(plan.checkpoint.weight_files, weights, strict=True))
    files = StoredFiles(paths, index.get("weight_map") or {})
    layout = read_layout(skeleton.bare, {name: files.header(name) for name in files.homes})
    shapes = skeleton.bare.state_dict()
    ties = untie(skeleton.bare, find_moves(skeleton), adapter.name)
    more = rows_asked_for(plan, load_config(plan, token)[0], vocabulary, manager, files, layout, shapes)
    left_out = layout.unused if _another_class(plan, skeleton.bare, base) else ()
    for name in left_out:
        del files.homes[name]
    values = Values(files, layout, ties, adapter.name, more)
    stored = _most(files)
    written, problems = outline(values, shapes, dtype, stored, _kept_wide(skeleton.bare, dtype))
    edits = _edits(plan, skeleton, before, ties, base, dtype)
    tied = still_tied(skeleton.bare, lambda: _rebuilt(plan, token, base, edits[CONFIG]), ties, source)
    refuse(source, [*problems, *([tied] if tied else []), *_nothing(values, source)])
    processing = plan.processing
    place = (
        None
        if processing.kind == "none"
        else folder_of(processing.source, processing.revision, plan.kwargs.get("cache_dir"))
    )
    several = len(written) > 1 or (base / INDEX).is_file()
    about = index.get("metadata") or {}
    return Prepared(
        plan=plan,
        sources={"the base": base, "the adapter": Path(adapter.source)},
        values=values,
        outline=written,
        companions=companions(plan, base, place),
        edits={name: fields for name, fields in edits.items() if fields},
        index_name=INDEX if several else "",
        left_out=left_out,
        index_metadata={key: value for key, value in about.items() if key != "total_size"},
    )


def _unfit(plan: Plan, source: str) -> list[Problem]:
    """What the plan itself says against it."""
    checkpoint, quantization, adapter = plan.checkpoint, plan.quantization, plan.adapter
    if quantization is not None:
        return [
            merge_problem(
                "merge-stored",
                f"{checkpoint.location!r} is {'stored' if quantization.prequantized else 'to be'} quantized ({quantization.method}): "
                "rounding to those weights again would lose much of what the adapter learned",
                "merge into the model that isn't quantized (--base MODEL), or load the adapter with merge_adapter=True and "
                "dequantize=True and save that, which keeps the error of quantizing",
            )
        ]
    if checkpoint.weight_format != "safetensors":
        return [
            merge_problem(
                "merge-stored",
                f"the weights of {checkpoint.location!r} are stored as {checkpoint.weight_format}, of which no tensor can be read alone",
                "save the base as safetensors first: load it and call save_pretrained",
            )
        ]
    if adapter is None or not adapter.source:
        return [
            merge_problem(
                "merge-type", f"{source!r} isn't an adapter that exists", "name its folder or Hub id"
            )
        ]
    return []


def _base_folder(plan: Plan) -> Path:
    checkpoint = plan.checkpoint
    found = folder_of(checkpoint.location, checkpoint.commit, plan.kwargs.get("cache_dir"))
    if found is None:
        raise LoadError(
            f"the files of {checkpoint.location!r} aren't on this machine\n    fix: fetch them with `hf download`"
        )
    return found


def _read(path: Path) -> dict[str, Any]:
    """A JSON file's content; nothing where there is none. Planning has read it, and told what is wrong."""
    try:
        found = json.loads(path.read_bytes())  # which has infinity too, as configs of transformers do
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _most(files: StoredFiles) -> str:
    """The floating dtype that most bytes are stored in; "" for none."""
    sizes: dict[str, int] = {}
    for name in files.homes:
        about = files.header(name)
        if about.dtype in SAFETENSORS_FLOATS:
            sizes[about.dtype] = sizes.get(about.dtype, 0) + about.nbytes
    return SAFETENSORS_FLOATS[max(sizes, key=lambda name: sizes[name])] if sizes else ""


def _kept_wide(bare: Any, dtype: str) -> Any:
    """Which tensors transformers keeps in float32 whatever dtype the others have."""
    strict = set(getattr(bare, "_keep_in_fp32_modules_strict", None) or ())
    half = set(getattr(bare, "_keep_in_fp32_modules", None) or ()) if dtype == "float16" else set()
    patterns = [f"*{name}*" for name in (strict | half) if dtype in ("bfloat16", "float16")]
    return lambda target: any(fnmatchcase(target, pattern) for pattern in patterns)


def _edits(
    plan: Plan, skeleton: Skeleton, before: Mapping[str, Any], ties: Ties, base: Path, dtype: str
) -> dict[str, dict[str, Any]]:
    """The fields of the base's configs that the merged model needs otherwise."""
    bare, raw = skeleton.bare, _read(base / CONFIG)
    after = bare.config.to_dict()
    fields = changed_fields(before, after)
    fields = _without(
        fields, ("dtype", "torch_dtype", "architectures", "transformers_version", "_name_or_path")
    )
    key = plan.model_class.config_key
    if _another_class(plan, bare, base):
        fields["architectures"] = [type(bare).__name__]
        fields |= {
            name: after[name] for name in HEAD_FIELDS if name in after and after[name] != raw.get(name)
        }
    fields = {key: fields} if key and fields else fields
    if ties.apart:
        fields = _both(
            fields, _everywhere(raw, "tie_word_embeddings", False) | {"tie_word_embeddings": False}
        )
    if dtype:
        named = next((name for name in ("dtype", "torch_dtype") if name in raw), "dtype")
        fields = _both(
            fields, _everywhere(raw, "dtype", dtype) | _everywhere(raw, "torch_dtype", dtype) | {named: dtype}
        )
    generation = changed_fields(skeleton.generation[0], skeleton.generation[1])
    return {CONFIG: fields, GENERATION: generation if (base / GENERATION).is_file() else {}}


def _another_class(plan: Plan, bare: Any, base: Path) -> bool:
    """Whether the merged model is of another class than the base, such as a classifier over it."""
    raw = _read(base / CONFIG)
    named = raw.get("architectures") or ()
    return not plan.model_class.config_key and not raw.get("auto_map") and type(bare).__name__ not in named


def _without(fields: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Fields without some, at any depth, and without what is empty then."""
    kept = {
        key: _without(value, names) if isinstance(value, dict) else value
        for key, value in fields.items()
        if key not in names
    }
    return {key: value for key, value in kept.items() if value != {} or fields[key] == {}}


def _everywhere(config: Mapping[str, Any], field: str, value: Any) -> dict[str, Any]:
    """A field set to a value wherever a config or one that is nested in it has the field."""
    found: dict[str, Any] = {field: value} if config.get(field) not in (None, value) else {}
    for key, inner in config.items():
        if isinstance(inner, dict) and (deeper := _everywhere(inner, field, value)):
            found[key] = deeper
    return found


def _both(one: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(one)
    for key, value in other.items():
        mine = merged.get(key)
        merged[key] = _both(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
    return merged


def _rebuilt(plan: Plan, token: Token, base: Path, edits: Mapping[str, Any]) -> Any:
    """A model of the class by the config that will be written; None where that changes more than it says."""
    kind = type(load_config(plan, token)[0])
    raw = _read(base / CONFIG)
    changed = json.loads(edited(json.dumps(raw), edits))
    key = plan.model_class.config_key
    before, after = (kind.from_dict(config[key] if key else config) for config in (raw, changed))
    more = changed_fields(before.to_dict(), after.to_dict())
    expected = edits.get(key, {}) if key else edits
    if set(more) - {*expected, "tie_word_embeddings"}:
        return None
    with one_at_a_time():
        return build_bare(plan, after)


def _nothing(values: Values, source: str) -> list[Problem]:
    if values.ties.moves:
        return []
    return [
        merge_problem(
            "merge-incomplete",
            f"{source!r} moves no tensor of the base",
            "check that its file and its config belong together",
        )
    ]

"""Bring a plan's files onto this machine before the libraries that load look for them.

transformers 5.23 takes a file that the Hub refuses (HTTP 503, a broken connection) for one that doesn't
exist, wherever it can do without: a tokenizer then lacks its settings, in silence. What lies in the cache at
the plan's commit is taken from there; so it is brought there first, by calls that raise a LoadError where a
file can't be had, or isn't what the Hub promised.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec

from loadkit.errors import LoadError, Problem
from loadkit.facts.checkpoint.references import is_reference
from loadkit.facts.hub.problems import hub_problem
from loadkit.facts.hub.retry import class_names
from loadkit.facts.load_facts import Listings, LoadFacts
from loadkit.facts.local_copies import Copy, copy_of
from loadkit.facts.local_weight_files import local_weight_files
from loadkit.schema.adapters import Adapter, Adapters
from loadkit.schema.plans import KWARGS, Plan
from loadkit.schema.request import Progress, Token

__all__ = [
    "HUB_KWARGS",
    "explain",
    "fetch_adapters",
    "fetch_small_files",
    "fetch_weights",
    "may_ask",
    "plan_kwargs",
]

HUB_KWARGS = ("cache_dir", "local_files_only", "revision")

SMALL = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.spm", "*.bpe")
"""What configs, tokenizers and processors are made of."""

TEMPLATES = "additional_chat_templates"

UNREACHABLE = ("hub-unreachable", "source-unreachable")

HUB_ERRORS = {"HfHubHTTPError", "LocalEntryNotFoundError", "HTTPError"}
"""Names of the classes, or bases, of what is raised when the Hub is asked; the last is the HTTP library's."""


def plan_kwargs(plan: Plan) -> dict[str, Any]:
    """The keyword arguments that no stage owns."""
    return {d.stage.removeprefix(KWARGS): d.value for d in plan.decisions if d.stage.startswith(KWARGS)}


def fetch_small_files(plan: Plan, facts: LoadFacts, token: Token = None) -> None:
    """Download what tokenizer and configs are read from, unless all weights, which come last, are here."""
    checkpoint, processing = plan.checkpoint, plan.processing
    if not (checkpoint.commit or processing.revision) or not may_ask(plan):
        return
    places = {(checkpoint.location, checkpoint.commit): None, (processing.source, processing.revision): None}
    own = _copy(plan, checkpoint.location, checkpoint.commit, facts, token)
    if checkpoint.kind == "hub" and not own.missing(checkpoint.weight_files):
        del places[checkpoint.location, checkpoint.commit]
    patterns = (*SMALL, "*.py") if plan.model_class.implementation == "remote code" else SMALL
    for location, commit in places:
        if commit:  # else a folder, or no tokenizer at all
            copy = _copy(plan, location, commit, facts, token)
            names = _listed(plan, copy, location, commit, facts.listings, f"the files of {location!r}")
            _fetch(plan, copy, [name for name in names if _is_small(name, patterns)], "the files")


def fetch_weights(
    plan: Plan, facts: LoadFacts, token: Token = None, progress: Progress | None = None
) -> tuple[Path, ...]:
    """Download the weight files that aren't here; the safetensors files that are on this machine then."""
    checkpoint = plan.checkpoint
    if not checkpoint.commit or len(facts.weight_files) == len(checkpoint.weight_files):
        return facts.weight_files
    copy = _copy(plan, checkpoint.location, checkpoint.commit, facts, token)
    missing = copy.missing(checkpoint.weight_files)
    if missing:
        if not may_ask(plan):
            raise _not_cached(missing, checkpoint.location, checkpoint.commit)
        if progress:
            progress(f"downloading {len(missing)} weight files of {checkpoint.location}")
        _fetch(plan, copy, missing, "the files")
    return tuple(local_weight_files(plan))


def fetch_adapters(plan: Plan, facts: LoadFacts, token: Token = None) -> Adapters | None:
    """Bring files of existing adapters here: the plan's adapters, with the folder of each as its source."""
    adapters = plan.adapters
    if adapters is None:
        return None
    members = (_fetched(plan, a, facts, token) if a.revision else a for a in adapters.members)
    return msgspec.structs.replace(adapters, members=tuple(members))


def may_ask(plan: Plan) -> bool:
    """Whether the Hub may be asked; what was planned from the cache, as it was down, is loaded from it."""
    from huggingface_hub import is_offline_mode

    fell_back = any(problem.code in UNREACHABLE for problem in plan.warnings)
    return not (is_offline_mode() or plan_kwargs(plan).get("local_files_only") or fell_back)


def explain(error: BaseException, plan: Plan) -> Problem | None:
    """What went wrong with the Hub, where that is why a library raised the error or one of its causes."""
    cause: BaseException | None = error
    while cause is not None:
        names = class_names(cause)
        if "RemoteEntryNotFoundError" in names:
            return None  # the Hub did answer: what is wrong is the repository
        if not names.isdisjoint(HUB_ERRORS):
            return hub_problem(cause, plan.checkpoint.location, plan.checkpoint.revision)
        cause = cause.__cause__ or cause.__context__
    return None


def _fetched(plan: Plan, adapter: Adapter, facts: LoadFacts, token: Token) -> Adapter:
    copy = _copy(plan, adapter.source, adapter.revision, facts, token)
    if may_ask(plan):
        said = f"the adapter {adapter.source!r}"
        names = _listed(plan, copy, adapter.source, adapter.revision, facts.listings, said)
        wanted = [name for name in names if fnmatchcase(name, "adapter_*")]
        _fetch(plan, copy, wanted, f"the adapter {adapter.source!r}")
    elif missing := copy.missing(["adapter_config.json"]):
        raise _not_cached(missing, adapter.source, adapter.revision)
    return msgspec.structs.replace(adapter, source=str(copy.folder), revision="")


def _copy(plan: Plan, location: str, commit: str, facts: LoadFacts, token: Token) -> Copy:
    cache_dir = plan_kwargs(plan).get("cache_dir")
    return copy_of(location, commit, token=token, cache_dir=cache_dir, stores=facts.stores)


def _listed(
    plan: Plan, copy: Copy, location: str, commit: str, listings: Listings, what: str
) -> Sequence[str]:
    """The names of a place's files: as planning has listed them, else by asking it."""
    known = listings.get((location, commit))
    names = copy.listed() if known is None else known
    if isinstance(names, Problem):
        raise _error(plan, what, [names])
    return names


def _not_cached(missing: Sequence[str], location: str, commit: str) -> LoadError:
    remedy = f"fetch it while online: `hf download {location} --revision {commit}`"
    if is_reference(location):
        remedy = "load it once while online, which keeps a copy"
    return LoadError(
        f"{', '.join(missing)} of {location!r} at commit {commit[:12]} isn't in the cache, and its source "
        "isn't asked (HF_HUB_OFFLINE, local_files_only, or it couldn't be reached while planning)\n"
        f"    fix: {remedy}"
    )


def _is_small(name: str, patterns: Sequence[str]) -> bool:
    folder, _, file = name.rpartition("/")
    return folder in ("", TEMPLATES) and any(fnmatchcase(file, pattern) for pattern in patterns)


def _fetch(plan: Plan, copy: Copy, names: Sequence[str], what: str) -> None:
    if problems := copy.fetch(names):
        raise _error(plan, what, problems)


def _error(plan: Plan, what: str, problems: Sequence[Problem]) -> LoadError:
    checkpoint = plan.checkpoint
    causes = "\n".join(f"{p.message}\n    fix: {p.remedy}  [{p.code}]" for p in problems)
    return LoadError(f"{what} of {checkpoint.source!r} at {checkpoint.commit} couldn't be fetched: {causes}")

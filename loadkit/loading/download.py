"""Bring a plan's files onto this machine before the libraries that load look for them.

transformers 5.23 takes a file that the Hub refuses (HTTP 503, a broken connection) for one that doesn't exist, wherever
it can do without: a tokenizer then lacks its settings, in silence. What lies in the cache at the plan's commit is taken
from there; so it is brought there first, by a call that fails loudly.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec

from loadkit.errors import LoadError, Problem
from loadkit.facts.hub.download import RepositoryAt, spoilt_files
from loadkit.facts.hub.problems import hub_problem
from loadkit.facts.hub.retry import with_retries
from loadkit.schema.plans import KWARGS, Plan
from loadkit.schema.request import Progress, Token
from loadkit.schema.values import Adapter, Adapters

__all__ = [
    "HUB_KWARGS",
    "explain",
    "fetch_adapters",
    "fetch_small_files",
    "fetch_weights",
    "may_ask",
    "plan_kwargs",
    "unquoting",
]

HUB_KWARGS = ("cache_dir", "local_files_only", "revision")

SMALL = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.spm", "*.bpe")
"""What configs, tokenizers and processors are made of."""

CODE = "*.py"

TEMPLATES = "additional_chat_templates"


def plan_kwargs(plan: Plan) -> dict[str, Any]:
    """The keyword arguments that no stage owns."""
    return {d.stage.removeprefix(KWARGS): d.value for d in plan.decisions if d.stage.startswith(KWARGS)}


def fetch_small_files(plan: Plan, token: Token = None) -> None:
    """Download what the tokenizer or processor and the configs are read from. Nothing where all weights are cached:
    they are downloaded last.

    Parameters:
        plan: the plan.
        token: the Hub token.

    Raises:
        LoadError: a file can't be had, or isn't what the Hub promised.
    """
    checkpoint, processing = plan.checkpoint, plan.processing
    if not (checkpoint.commit or processing.revision) or not may_ask(plan):
        return
    places = {(checkpoint.location, checkpoint.commit): None, (processing.source, processing.revision): None}
    own = _repository(plan, checkpoint.location, checkpoint.commit, token)
    if checkpoint.commit and not own.missing(checkpoint.weight_files):
        del places[checkpoint.location, checkpoint.commit]
    patterns = (*SMALL, CODE) if plan.model_class.implementation == "remote code" else SMALL
    for location, commit in places:
        if not commit:
            continue  # a folder, or no tokenizer at all
        repository = _repository(plan, location, commit, token)
        names = repository.listed()
        if isinstance(names, Problem):
            raise _error(plan, f"the files of {location!r}", [names])
        _raise(plan, repository.fetch([name for name in names if _is_small(name, patterns)]))


def fetch_weights(plan: Plan, token: Token = None, progress: Progress | None = None) -> None:
    """Download the weight files.

    Parameters:
        plan: the plan.
        token: the Hub token.
        progress: called with a short sentence before a download.

    Raises:
        LoadError: a file can't be had, isn't what the Hub promised, or isn't cached and the Hub mayn't be asked.
    """
    checkpoint = plan.checkpoint
    if not checkpoint.commit:
        return
    repository = _repository(plan, checkpoint.location, checkpoint.commit, token)
    missing = repository.missing(checkpoint.weight_files)
    if not missing:
        return
    if not may_ask(plan):
        raise LoadError(
            f"{', '.join(missing)} of {checkpoint.location!r} at commit {checkpoint.commit[:12]} isn't in the cache, and the Hub "
            "isn't asked (HF_HUB_OFFLINE, local_files_only, or it couldn't be reached while planning)\n"
            f"    fix: fetch it while online: `hf download {checkpoint.location} --revision {checkpoint.commit}`"
        )
    if progress:
        progress(f"downloading {len(missing)} weight files of {checkpoint.location}")
    _raise(plan, repository.fetch(missing))


def fetch_adapters(plan: Plan, token: Token = None) -> Adapters | None:
    """Bring the files of existing adapters onto this machine, at their commits.

    Returns:
        The plan's adapters, with the folder of each as its source; None for a bare model.

    Raises:
        LoadError: the Hub can't be reached, or refuses.
    """
    adapters = plan.adapters
    if adapters is None:
        return None
    return msgspec.structs.replace(
        adapters, members=tuple(_fetched(plan, a, token) if a.revision else a for a in adapters.members)
    )


def may_ask(plan: Plan) -> bool:
    """Whether the Hub may be asked; what was planned from the cache, because the Hub was down, is loaded from it."""
    from huggingface_hub import is_offline_mode

    fell_back = any(problem.code == "hub-unreachable" for problem in plan.warnings)
    return not (is_offline_mode() or plan_kwargs(plan).get("local_files_only") or fell_back)


def explain(error: BaseException, plan: Plan) -> Problem | None:
    """What went wrong with the Hub, where that is why a library failed.

    Parameters:
        error: what the library raised; its causes are looked at.
        plan: the plan.
    """
    import httpx2
    from huggingface_hub import errors

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, errors.RemoteEntryNotFoundError):
            return None  # the Hub did answer: what is wrong is the repository
        if isinstance(cause, (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, httpx2.HTTPError)):
            return hub_problem(cause, plan.checkpoint.location, plan.checkpoint.revision)
        cause = cause.__cause__ or cause.__context__
    return None


def unquoting(error: Exception, problem: Problem) -> Exception | None:
    """The cause to name for an error: none where it may quote the token, as the HTTP library does with one that it can't send."""
    return None if problem.code == "bad-token" else error


def _fetched(plan: Plan, adapter: Adapter, token: Token) -> Adapter:
    from huggingface_hub import snapshot_download

    kwargs = {name: value for name, value in plan_kwargs(plan).items() if name in HUB_KWARGS}
    repository = _repository(plan, adapter.source, adapter.revision, token)
    weights = ("adapter_model.safetensors",)
    new = repository.missing(weights)
    try:
        folder = with_retries(
            lambda: snapshot_download(
                adapter.source, revision=adapter.revision, token=token, allow_patterns=["adapter_*"], **kwargs
            )
        )
    except Exception as error:  # whatever it is, it ends the load
        problem = hub_problem(error, adapter.source, adapter.revision)
        raise _error(plan, f"the adapter {adapter.source!r}", [problem]) from unquoting(error, problem)
    there = [name for name in new if (Path(folder) / name).is_file()]
    _raise(plan, spoilt_files(adapter.source, Path(folder), there))
    return msgspec.structs.replace(adapter, source=folder, revision="")


def _repository(plan: Plan, location: str, commit: str, token: Token) -> RepositoryAt:
    return RepositoryAt(location, commit, token=token, cache_dir=plan_kwargs(plan).get("cache_dir"))


def _is_small(name: str, patterns: Sequence[str]) -> bool:
    folder, _, file = name.rpartition("/")
    return folder in ("", TEMPLATES) and any(fnmatchcase(file, pattern) for pattern in patterns)


def _raise(plan: Plan, problems: Sequence[Problem]) -> None:
    if problems:
        raise _error(plan, "the files", problems)


def _error(plan: Plan, what: str, problems: Sequence[Problem]) -> LoadError:
    checkpoint = plan.checkpoint
    told = "\n".join(f"{p.message}\n    fix: {p.remedy}  [{p.code}]" for p in problems)
    return LoadError(f"{what} of {checkpoint.source!r} at {checkpoint.commit} couldn't be fetched: {told}")

"""Load with the plugins' aids: what is stored where it is there and whole, else the checkpoint itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from loadkit.audit.weight_comparison import OTHER_VALUES
from loadkit.cache.entries import Entries
from loadkit.errors import Finding, LoadError, LoadkitError, PluginError
from loadkit.facts.load_facts import LoadFacts
from loadkit.hooks import hookspecs as hooks
from loadkit.hooks.manager import PluginManager
from loadkit.loading.loaded import BareModel
from loadkit.loading.out_of_memory import is_out_of_memory
from loadkit.loading.use_cache import own_use_cache
from loadkit.schema.loading_aids import LoadingAid, Stored
from loadkit.schema.plans import Plan
from loadkit.schema.request import Progress

__all__ = ["NO_AIDS", "Aids", "Ready", "gather_aids", "with_aids"]


class Ready(NamedTuple):
    """What is stored, and the aid that has it."""

    plugin: str
    aid: LoadingAid
    stored: Stored


class Aids(NamedTuple):
    """The aids of one load, sorted by plugin, and the first that has something stored."""

    every: tuple[tuple[str, LoadingAid], ...] = ()
    ready: Ready | None = None


NO_AIDS = Aids()

DOUBTS = ("checkpoint-changed", OTHER_VALUES)
"""Findings with which a model is nothing to keep for the next load."""


def gather_aids(plan: Plan, facts: LoadFacts, manager: PluginManager, progress: Progress) -> Aids:
    """Ask plugins for aids, and the aids for what lies ready, which can be read while torch is imported."""
    hook: Callable[..., Any] = hooks.loadkit_shorten_loading
    about = {"identity": facts.fingerprint, "machine": facts.machine, "entries": Entries()}
    aids = []
    for plugin, aid in manager.answers(hook, plan=plan, progress=progress, **about):
        if not isinstance(aid, LoadingAid):
            fault = f"it answered {aid!r}; this hook returns a LoadingAid, or None"
            raise PluginError(plugin, fault, hook=hook.__name__)
        aids.append((plugin, aid))
    return Aids(tuple(aids), next(_ready(aids), None))


def with_aids(
    aids: Aids,
    *,
    fetch: Callable[[], tuple[Path, ...]],
    load: Callable[[tuple[Path, ...]], BareModel],
    read: Callable[[Stored], BareModel],
    compare: Callable[[BareModel], Sequence[Finding]],
    changed: Callable[[], bool],
) -> BareModel:
    """Load the model, with the aids at their places, and hold it against the files.

    Aids keep only what holds what the files have, and only while these are the files that were planned with.

    Parameters:
        fetch: brings the checkpoint's weights here. Called before an aid is entered: one that waits for
            another process mustn't keep that one waiting.
        load: loads the checkpoint from the files that were fetched.
        read: loads what is stored.
        compare: what a model's weights are, held against the files.
        changed: whether the checkpoint's files are others than they were while planning.
    """
    loaded = None if aids.ready is None else _proved(aids.ready, read, compare)
    if loaded is None:
        files = fetch()
        # In here an aid may wait for another process of this launch, which has got this far too. So nothing
        # in here may wait for a rank: what ranks wait for each other with (the fetching, random numbers,
        # findings) lies before and after. All enter their aids in one order.
        with ExitStack() as stack:
            for plugin, aid in aids.every:
                with _named(plugin):
                    stack.enter_context(aid)
            # another process may have left it there meanwhile
            again = (_proved(ready, read, compare) for ready in _ready(aids.every))
            loaded = next((found for found in again if found is not None), None)
            if loaded is None:
                loaded = load(files)
                loaded = loaded._replace(findings=(*_change(changed()), *compare(loaded)))
                if not any(finding.code in DOUBTS for finding in loaded.findings):
                    _keep(aids, loaded)
    lines = tuple(f"{aid.line} ({plugin})" for plugin, aid in aids.every if aid.line)
    return loaded._replace(shortcuts=lines)


def _keep(aids: Aids, loaded: BareModel) -> None:
    with own_use_cache(loaded.model, loaded.own_use_cache):
        for plugin, aid in aids.every:
            with _named(plugin):
                aid.keep(loaded.model, loaded.loading)


def _ready(aids: Sequence[tuple[str, LoadingAid]]) -> Iterator[Ready]:
    """What lies ready, aid by aid."""
    for plugin, aid in aids:
        with _named(plugin):
            stored = aid.stored()
        if stored is not None:
            yield Ready(plugin, aid, stored)


def _proved(
    ready: Ready,
    read: Callable[[Stored], BareModel],
    compare: Callable[[BareModel], Sequence[Finding]],
) -> BareModel | None:
    """The model from what is stored; None where it can't be loaded, its aid doesn't find it whole, or it
    doesn't hold what the files have.

    Raises:
        LoadError: for a reason that says nothing of what is stored, such as memory that ran out.
    """
    try:
        loaded = read(ready.stored)
    except LoadError as error:
        if error.__cause__ is not None and _says_nothing_of_it(error.__cause__):
            raise
        with _named(ready.plugin):
            ready.aid.failed(error)
        return None
    with _named(ready.plugin):
        if not ready.aid.proved(loaded.model, loaded.loading):
            return None
    findings = tuple(compare(loaded))
    if different := next((f for f in findings if f.code == OTHER_VALUES), None):
        with _named(ready.plugin):
            ready.aid.disproved(different.message)
        return None
    return loaded._replace(loading=ready.stored.loading, findings=findings)


def _says_nothing_of_it(error: BaseException) -> bool:
    return is_out_of_memory(error) or isinstance(error, ImportError)


def _change(changed: bool) -> list[Finding]:
    if not changed:
        return []
    return [
        Finding(
            "weights",
            "loadkit",
            "checkpoint-changed",
            "the checkpoint's files changed between planning and the end of loading: the model may be of both",
            "the files that were planned with",
            "others in their place",
            severity="warning",
            remedy="load again when nobody writes to the folder, or name the folder that a link leads to",
        )
    ]


@contextmanager
def _named(plugin: str) -> Iterator[None]:
    """What an aid raises carries its plugin's name."""
    try:
        yield
    except LoadkitError:
        raise
    except Exception as error:
        raise PluginError(
            plugin,
            f"its aid raised {type(error).__name__}: {error}; tell its author, or go on without it: LOADKIT_DISABLE={plugin}",
            hook=hooks.loadkit_shorten_loading.__name__,
        ) from error

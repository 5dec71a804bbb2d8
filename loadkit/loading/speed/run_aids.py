"""Load with the plugins' aids: what is stored where it is there and whole, else the checkpoint itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from loadkit.cache.entries import Entries
from loadkit.errors import LoadError, LoadkitError, PluginError
from loadkit.facts.load_facts import LoadFacts
from loadkit.hooks import hookspecs as hooks
from loadkit.hooks.manager import PluginManager
from loadkit.loading.loaded import BareModel
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
) -> BareModel:
    """Load the model, with the aids at their places.

    Parameters:
        fetch: brings the checkpoint's weights here. Called before an aid is entered: one that waits for
            another process mustn't keep that one waiting.
        load: loads the checkpoint from the files that were fetched.
        read: loads what is stored.
    """
    loaded = None if aids.ready is None else _proved(aids.ready, read)
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
            loaded = next((found for ready in _ready(aids.every) if (found := _proved(ready, read))), None)
            if loaded is None:
                loaded = load(files)
                with own_use_cache(loaded.model, loaded.own_use_cache):
                    for plugin, aid in aids.every:
                        with _named(plugin):
                            aid.keep(loaded.model, loaded.loading)
    lines = tuple(f"{aid.line} ({plugin})" for plugin, aid in aids.every if aid.line)
    return loaded._replace(shortcuts=lines)


def _ready(aids: Sequence[tuple[str, LoadingAid]]) -> Iterator[Ready]:
    """What lies ready, aid by aid."""
    for plugin, aid in aids:
        with _named(plugin):
            stored = aid.stored()
        if stored is not None:
            yield Ready(plugin, aid, stored)


def _proved(ready: Ready, read: Callable[[Stored], BareModel]) -> BareModel | None:
    """The model from what is stored; None where it can't be loaded, or its aid doesn't find it whole."""
    try:
        loaded = read(ready.stored)
    except LoadError as error:
        with _named(ready.plugin):
            ready.aid.failed(error)
        return None
    with _named(ready.plugin):
        whole = ready.aid.proved(loaded.model, loaded.loading)
    return loaded._replace(loading=ready.stored.loading) if whole else None


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

"""Load with what plugins lend: something stored where it is there and proves whole, else the checkpoint itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from loadkit.cache.entries import Entries
from loadkit.errors import LoadError, LoadkitError, PluginError
from loadkit.hooks import hookspecs as hooks
from loadkit.hooks.manager import PluginManager
from loadkit.loading.use_cache import own_cache
from loadkit.planning.pipeline import identity_of, this_machine
from loadkit.schema.loading_aids import LoadingAid, Stored
from loadkit.schema.plans import Plan
from loadkit.schema.reports import Loading
from loadkit.schema.request import Progress

__all__ = ["Aided", "Lent", "LoadedModel", "Ready", "lend", "with_aids"]


class LoadedModel(NamedTuple):
    """What `load_model` gives.

    Parameters:
        model: the model in evaluation mode.
        loading: what `from_pretrained` said of its weights.
        own_cache: path of a nested config ("" for the outermost) to the checkpoint's own `use_cache`.
        shortcuts: what came of the aids, a line each.
    """

    model: Any
    loading: Loading
    own_cache: dict[str, bool]
    shortcuts: tuple[str, ...] = ()


class Aided(NamedTuple):
    """An aid, with the plugin that lends it."""

    plugin: str
    aid: LoadingAid


class Ready(NamedTuple):
    """What is stored, and the aid that has it."""

    plugin: str
    aid: LoadingAid
    stored: Stored


class Lent(NamedTuple):
    """What plugins lend to one load.

    Parameters:
        aids: all aids, sorted by plugin.
        first: what lies ready; None where nothing does.
    """

    aids: tuple[Aided, ...] = ()
    first: Ready | None = None


def lend(plan: Plan, manager: PluginManager, progress: Progress | None = None) -> Lent:
    """Ask every plugin for an aid, and the aids for what lies ready. It needs no torch: what is stored can be read while that is imported.

    Parameters:
        plan: the plan.
        manager: the plugins.
        progress: what they may tell of things that take long.

    Raises:
        PluginError: a plugin raised, or lends something else.
    """
    hook = hooks.loadkit_shorten_loading
    aids = []
    for plugin, aid in manager.answers(
        hook,
        plan=plan,
        identity=identity_of(plan),
        machine=this_machine(),
        entries=Entries(),
        progress=progress or (lambda _: None),
    ):
        if not isinstance(aid, LoadingAid):
            raise PluginError(
                plugin, f"it answered {aid!r}; this hook returns a LoadingAid, or None", hook=hook.__name__
            )
        aids.append(Aided(plugin, aid))
    return Lent(tuple(aids), next(_ready(aids), None))


def with_aids(
    lent: Lent,
    *,
    fetch: Callable[[], None],
    load: Callable[[], LoadedModel],
    read: Callable[[Stored], LoadedModel],
) -> LoadedModel:
    """Load the model, with the aids at their places.

    Parameters:
        lent: the aids.
        fetch: brings the checkpoint's weights here. Called before an aid is entered: one that waits for another process mustn't keep it waiting.
        load: loads the checkpoint.
        read: loads what is stored.

    Raises:
        PluginError: an aid raised.
        LoadError: the checkpoint couldn't be loaded.
    """
    loaded = None if lent.first is None else _proved(lent.first, read)
    if loaded is None:
        fetch()
        # In here an aid may wait for another process of this launch, which has got this far too. So nothing in here may wait for a rank: what
        # ranks wait for each other with (the fetching, random numbers, findings) lies before and after. All enter their aids in one order.
        with ExitStack() as stack:
            for plugin, aid in lent.aids:
                with _named(plugin):
                    stack.enter_context(aid)
            # another process may have left it there meanwhile
            loaded = next((found for ready in _ready(lent.aids) if (found := _proved(ready, read))), None)
            if loaded is None:
                loaded = load()
                with own_cache(loaded.model, loaded.own_cache):
                    for plugin, aid in lent.aids:
                        with _named(plugin):
                            aid.keep(loaded.model, loaded.loading)
    lines = tuple(f"{aid.line} ({plugin})" for plugin, aid in lent.aids if aid.line)
    return loaded._replace(shortcuts=lines)


def _ready(aids: Sequence[Aided]) -> Iterator[Ready]:
    """What lies ready, aid by aid."""
    for plugin, aid in aids:
        with _named(plugin):
            stored = aid.stored()
        if stored is not None:
            yield Ready(plugin, aid, stored)


def _proved(ready: Ready, read: Callable[[Stored], LoadedModel]) -> LoadedModel | None:
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

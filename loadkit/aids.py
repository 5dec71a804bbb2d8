"""Load with what plugins lend: something stored where it is there and proves whole, else the checkpoint itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from loadkit import hookspecs as hooks
from loadkit.entries import Entries
from loadkit.errors import LoadError, LoadkitError, PluginError
from loadkit.manager import PluginManager
from loadkit.pipeline import identity_of, this_machine
from loadkit.plans import Plan
from loadkit.report import Loading
from loadkit.saving import own_cache
from loadkit.shortcuts import LoadingAid, Stored

__all__ = ["Lent", "LoadedModel", "lent_aids", "with_aids"]


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


class Lent(NamedTuple):
    """An aid, with the plugin that lends it."""

    plugin: str
    aid: LoadingAid


def lent_aids(
    plan: Plan, manager: PluginManager, progress: Callable[[str], None] | None = None
) -> list[Lent]:
    """Ask every plugin for an aid, sorted by name.

    Parameters:
        plan: the plan.
        manager: the plugins.
        progress: what they may tell of things that take long.

    Raises:
        PluginError: a plugin raised, or lends something else.
    """
    hook = hooks.loadkit_shorten_loading
    lent = []
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
        lent.append(Lent(plugin, aid))
    return lent


def with_aids(
    lent: Sequence[Lent],
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
    loaded = _from_stored(lent, read)
    if loaded is None:
        fetch()
        with ExitStack() as stack:
            for plugin, aid in lent:
                with _named(plugin):
                    stack.enter_context(aid)
            loaded = _from_stored(lent, read)  # another process may have left it there meanwhile
            if loaded is None:
                loaded = load()
                with own_cache(loaded.model, loaded.own_cache):
                    for plugin, aid in lent:
                        with _named(plugin):
                            aid.keep(loaded.model, loaded.loading)
    lines = tuple(f"{aid.line} ({plugin})" for plugin, aid in lent if aid.line)
    return loaded._replace(shortcuts=lines)


def _from_stored(lent: Sequence[Lent], read: Callable[[Stored], LoadedModel]) -> LoadedModel | None:
    """The model from the first aid that has it stored and proves it whole."""
    for plugin, aid in lent:
        with _named(plugin):
            stored = aid.stored()
        if stored is None:
            continue
        try:
            loaded = read(stored)
        except LoadError as error:
            with _named(plugin):
                aid.failed(error)
            continue
        with _named(plugin):
            whole = aid.proved(loaded.model, loaded.loading)
        if whole:
            return loaded._replace(loading=stored.loading)
    return None


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

"""What plugins do so that the weights come sooner, and never a bit different."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from loadkit.schema.reports import Loading

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LoadingAid", "Shortcut", "Stored"]


class Shortcut(msgspec.Struct, frozen=True, kw_only=True):
    """What will make a load faster, as things are while planning: how, not what, so no part of the digest.

    Parameters:
        plugin: who tells it.
        line: a short sentence: what will serve, or why it won't.
        serves: whether it will serve.
    """

    plugin: str
    line: str
    serves: bool = True


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A folder from which `from_pretrained` loads exactly what the plan makes of the checkpoint.

    Parameters:
        folder: where it is: safetensors and configs, quantized already.
        loading: what `from_pretrained` said of the checkpoint's own weights.
    """

    folder: str
    loading: Loading = Loading()


class LoadingAid:
    """What a plugin gives to make one load faster: make a subclass, and say what it does.

    The core asks `stored` first. Where no plugin has anything stored, it enters the aid, asks once more,
    calls `from_pretrained`, hands the model to `keep` and leaves the aid. Nothing here may raise: what fails
    makes a load slower, and `line` says so.
    """

    line = ""
    """What came of it, for the report: one short sentence; "" for nothing worth telling."""

    def stored(self) -> Stored | None:
        """Where the same weights lie ready; None where they don't."""
        return None

    def proved(self, model: Any, loading: Loading) -> bool:
        """Whether what was loaded from `stored` is whole: its checksum holds, and every tensor had its place.

        Parameters:
            model: the `transformers.PreTrainedModel`.
            loading: what `from_pretrained` said of the stored weights.

        Returns:
            False has the model thrown away and the checkpoint loaded instead.
        """
        return not (loading.missing or loading.unexpected or loading.mismatched or loading.errors)

    def failed(self, error: Exception) -> None:
        """What was stored couldn't be loaded; the checkpoint is loaded instead.

        Not called where memory ran out or an import failed, which says nothing of what is stored: the load
        fails then.
        """

    def disproved(self, difference: str) -> None:
        """What was stored was loaded whole, and doesn't hold what the checkpoint's files have; they are
        loaded instead.

        Parameters:
            difference: which tensors differ, and how.
        """

    def __enter__(self) -> Self:
        """Just before `from_pretrained` reads the checkpoint."""
        return self

    def keep(self, model: Any, loading: Loading) -> None:
        """Right after the checkpoint was loaded, before any phase.

        Parameters:
            model: the `transformers.PreTrainedModel`; it mustn't be changed.
            loading: what `from_pretrained` said of its weights.
        """

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """After it, whether that went well or not."""

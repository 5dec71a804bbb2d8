"""What is asked of a process of its own in which the kit tries a plugin, and what that tells."""

from __future__ import annotations

import msgspec

__all__ = ["Account", "Question"]


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What another process is to try.

    Parameters:
        module: the module to import; "" to plan instead.
        home: its top package.
        plugin, distribution: the plugin that answers, by its entry point's name and its distribution.
        scenarios: those to plan, encoded: `loadkit.testing.scenarios` imports half of loadkit.
    """

    module: str = ""
    home: str = ""
    plugin: str = ""
    distribution: str = ""
    scenarios: tuple[msgspec.Raw, ...] = ()


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """What another process tells.

    Parameters:
        heavy: the heavy libraries that came in.
        seconds: how long importing took, or would have taken on a machine that does nothing else.
        seen: what importing it did, in words.
        answers: for each scenario its answers, as text.
        failure: how the plugin failed; "" where it didn't.
    """

    heavy: tuple[str, ...] = ()
    seconds: float = 0.0
    seen: tuple[str, ...] = ()
    answers: tuple[tuple[str, ...], ...] = ()
    failure: str = ""

"""The processes of one launch load together: one plan, one download a node, one verdict.

`rank_of_this_launch` gives what `load` asks at its steps: a `Ranks` for a process on its own, which has nothing to do,
or a `LaunchedRank`. Everything goes through the key-value store that launchers keep for their processes
(`stores`); no process group is made. `watch` sees that the others are alive, `passports` says what must be equal.
"""

from __future__ import annotations

from loadkit.ranks.ranks import Ranks, ranks_of_this_launch

__all__ = ["Ranks", "ranks_of_this_launch"]

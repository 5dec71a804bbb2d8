"""The processes of one launch load together: one plan, one download a node, one verdict.

`ranks_of_this_launch` gives what `load` asks at its steps: a `Ranks` for a process on its own, or a
`LaunchedRank`. No process group is made: `messages` go through the key-value store that launchers keep
(`stores`), `heartbeat` sees that the others are alive, and `agreement` says what must be equal.
"""

from __future__ import annotations

from loadkit.ranks.ranks import Ranks, ranks_of_this_launch

__all__ = ["Ranks", "ranks_of_this_launch"]

"""What plugins say (claims) and what the core concludes (decisions)."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from loadkit.errors import Problem

__all__ = ["Claim", "Decision", "Overruled", "PassedOver", "StampedClaim", "Strength", "decide"]

T = TypeVar("T")


class Strength(str, enum.Enum):
    """How much a claim weighs: fallback < claim < profile < you.

    `PROFILE` is the weight of a profile's or a recipe's preference, `YOU` that of an option the caller gave.
    """

    FALLBACK = "fallback"
    CLAIM = "claim"
    PROFILE = "profile"
    YOU = "you"

    @property
    def rank(self) -> int:
        """The place in the order, 0 for the weakest."""
        return tuple(Strength).index(self)


class PassedOver(msgspec.Struct, frozen=True):
    """A link of a preference chain that couldn't be had, and why."""

    value: str
    reason: str


class Claim(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """One plugin's opinion at one stage.

    Parameters:
        value: plain data of the stage's type; None is a value too ("no quantization").
        because: one line that explains it to the user.
        strength: how much it weighs against others.
        passed_over: for a preference chain, the earlier links and why each couldn't be had.
    """

    value: T
    because: str
    strength: Strength = Strength.CLAIM
    passed_over: tuple[PassedOver, ...] = ()


class StampedClaim(NamedTuple):
    """A claim and the plugin it came from."""

    plugin: str
    claim: Claim[Any]


class Overruled(msgspec.Struct, frozen=True, kw_only=True):
    """A claim that lost, kept so that the plan can show it."""

    value: Any
    plugin: str
    because: str
    strength: Strength


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What the core concluded at one stage.

    Parameters:
        stage: its name, such as "dtype", or "kwargs.NAME" for a further keyword argument.
        value: the winning value, as plain data.
        plugin: whose claim won; the first by name where several agree.
        because: that claim's reason.
        strength: that claim's strength.
        concurring: other plugins that claimed the same value at the same strength.
        instead_of: the claims that were overruled, strongest first.
        passed_over: the links of the winner's preference chain that couldn't be had.
    """

    stage: str
    value: Any
    plugin: str
    because: str
    strength: Strength
    concurring: tuple[str, ...] = ()
    instead_of: tuple[Overruled, ...] = ()
    passed_over: tuple[PassedOver, ...] = ()

    def __str__(self) -> str:
        from loadkit.schema.plan_text import decision_row

        row = decision_row(self)
        return "\n".join([f"{row.name}: {row.text}", *(f"  {line}" for line in row.below)])

    def __repr__(self) -> str:
        from loadkit.schema.value_text import value_text

        return f"<Decision {self.stage}: {value_text(self.value)}, by {self.plugin}>"

    def _repr_html_(self) -> str:
        from loadkit.schema.notebook import notebook_html
        from loadkit.schema.plan_text import decision_row

        row = decision_row(self)
        return notebook_html("", "", [("", [row])])


def decide(
    stage: str, claims: Sequence[StampedClaim], *, option: str = "", demands: Sequence[str] = ()
) -> Decision | Problem | None:
    """Conclude one stage: the strongest claim wins, whatever order the plugins registered in.

    Parameters:
        option: the option by which a user settles this stage, named in a conflict's remedy: its name, or the
            whole of what to write, with "=".
        demands: what the user gave for this stage, such as "dtype='float16'": named instead where demands
            contradict each other.

    Returns:
        A `Problem` where the strongest claims disagree; None where nobody claimed.
    """
    if not claims:
        return None
    ordered = sorted(claims, key=lambda c: (-c.claim.strength.rank, c.plugin, _canonical(c.claim.value)))
    top = ordered[0].claim.strength
    contenders = [c for c in ordered if c.claim.strength is top]
    plugin, winner = contenders[0]
    others = [c for c in ordered if _canonical(c.claim.value) != _canonical(winner.value)]
    if any(c.claim.strength is top for c in others):
        return _conflict(stage, contenders, option, demands)
    return Decision(
        stage=stage,
        value=winner.value,
        plugin=plugin,
        because=winner.because,
        strength=top,
        concurring=tuple(dict.fromkeys(c.plugin for c in contenders if c.plugin != plugin)),
        instead_of=tuple(
            Overruled(value=claim.value, plugin=name, because=claim.because, strength=claim.strength)
            for name, claim in others
        ),
        passed_over=winner.passed_over,
    )


def _conflict(stage: str, contenders: Sequence[StampedClaim], option: str, demands: Sequence[str]) -> Problem:
    said = "; ".join(
        f"{c.plugin!r} says {msgspec.to_builtins(c.claim.value)!r} because {c.claim.because}"
        for c in contenders
    )
    plugins = sorted({c.plugin for c in contenders})
    choose = f"choose with {option if '=' in option else f'{option}=…'}, or " if option else ""
    if contenders[0].claim.strength is Strength.YOU and len(demands) > 1:
        choose = f"keep one of {', '.join(demands)} and take back the others, or "
    return Problem(
        stage,
        "loadkit",
        "conflict",
        f"plugins disagree with equal strength ({contenders[0].claim.strength.value}): {said}",
        f"{choose}leave one out with LOADKIT_DISABLE={plugins[-1]} (or {', '.join(plugins[:-1]) or plugins[-1]})",
    )


def _canonical(value: object) -> bytes:
    return msgspec.json.encode(value, order="sorted")

"""`decide`: the strongest claim wins, whatever the order; equal strength with different values is a
conflict."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loadkit import Claim, Decision, Problem, Strength
from loadkit.schema.claims import Overruled, PassedOver, StampedClaim, decide

values = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(["a", "b"]),
    st.dictionaries(st.sampled_from("xy"), st.integers(0, 2)),
)
claims = st.lists(
    st.builds(
        StampedClaim,
        st.sampled_from(["one", "two", "three", "four"]),
        st.builds(
            Claim,
            value=values,
            because=st.sampled_from(["so", "thus"]),
            strength=st.sampled_from(list(Strength)),
        ),
    ),
    max_size=6,
)


def stamped(
    plugin: str, value: object, strength: Strength = Strength.CLAIM, because: str = "so"
) -> StampedClaim:
    return StampedClaim(plugin, Claim(value=value, because=because, strength=strength))


@given(claims, st.randoms(use_true_random=False))
def test_order_never_matters(found: list[StampedClaim], random) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)
    first, second = decide("s", found), decide("s", shuffled)
    if isinstance(first, Decision):
        assert isinstance(second, Decision)
        assert (first.value, first.plugin, first.strength) == (second.value, second.plugin, second.strength)
        assert first.concurring == second.concurring
        assert sorted(map(repr, first.instead_of)) == sorted(map(repr, second.instead_of))
    else:
        assert type(first) is type(second)


@given(claims)
def test_the_strongest_wins_and_nothing_is_lost(found: list[StampedClaim]) -> None:
    decided = decide("s", found)
    if not found:
        assert decided is None
        return
    top = max(c.claim.strength.rank for c in found)
    strongest = [c for c in found if c.claim.strength.rank == top]
    if isinstance(decided, Problem):
        assert len({repr(c.claim.value) for c in strongest}) > 1
        for claim in strongest:
            assert repr(claim.plugin) in decided.message
            assert claim.claim.because in decided.message
    else:
        assert decided.strength.rank == top
        assert all(
            type(c.claim.value) is type(decided.value) and c.claim.value == decided.value for c in strongest
        )
        assert {decided.plugin, *decided.concurring} == {c.plugin for c in strongest}
        for claim in found:
            same = type(claim.claim.value) is type(decided.value) and claim.claim.value == decided.value
            assert same or any(
                o.plugin == claim.plugin and o.value == claim.claim.value for o in decided.instead_of
            )


def test_the_order_of_strengths() -> None:
    assert [s.value for s in sorted(Strength, key=lambda s: s.rank)] == [
        "fallback",
        "claim",
        "profile",
        "you",
    ]


def test_a_conflict_says_how_to_choose() -> None:
    found = decide(
        "dtype",
        [stamped("a", "float16", because="it is small"), stamped("b", "float32", because="it is exact")],
        option="dtype",
    )
    assert isinstance(found, Problem)
    assert found.code == "conflict"
    for words in ("'a' says 'float16' because it is small", "'b' says 'float32' because it is exact"):
        assert words in found.message
    assert "dtype=" in found.remedy
    assert "LOADKIT_DISABLE=" in found.remedy


def test_a_conflict_of_demands_says_what_to_take_back() -> None:
    claims = [stamped("a", "float16", Strength.YOU), stamped("b", "float32", Strength.YOU)]
    found = decide("dtype", claims, option="dtype", demands=["half=True", "exact=True"])
    assert isinstance(found, Problem)
    assert "keep one of half=True, exact=True and take back the others" in found.remedy
    assert "LOADKIT_DISABLE=b (or a)" in found.remedy
    weaker = [stamped("a", "float16"), stamped("b", "float32")]
    found = decide("dtype", weaker, option="dtype", demands=["half=True", "exact=True"])
    assert isinstance(found, Problem)
    assert "choose with dtype=…" in found.remedy


def test_a_conflict_names_every_plugin_once_in_the_order_of_their_names() -> None:
    found = decide("s", [stamped("c", 3), stamped("a", 1), stamped("b", 2, because="thus"), stamped("b", 4)])
    assert found == Problem(
        "s",
        "loadkit",
        "conflict",
        "plugins disagree with equal strength (claim): 'a' says 1 because so; 'b' says 2 because thus; "
        "'b' says 4 because so; 'c' says 3 because so",
        "leave one out with LOADKIT_DISABLE=c (or a, b)",
    )


def test_a_plugin_that_contradicts_itself_is_named() -> None:
    found = decide("s", [stamped("a", 1), stamped("a", 2)])
    assert isinstance(found, Problem)
    assert "LOADKIT_DISABLE=a" in found.remedy
    assert "(or )" not in found.remedy


def test_a_single_demand_is_no_choice_among_demands() -> None:
    claims = [stamped("a", 1, Strength.YOU), stamped("b", 2, Strength.YOU)]
    found = decide("s", claims, option="o", demands=["half=True"])
    assert isinstance(found, Problem)
    assert found.remedy == "choose with o=…, or leave one out with LOADKIT_DISABLE=b (or a)"


def test_the_decision_keeps_all_that_the_winner_said_and_all_that_lost() -> None:
    tried = (PassedOver("flash", "it isn't installed"),)
    winner = Claim(value="sdpa", because="it is there", strength=Strength.PROFILE, passed_over=tried)
    lost = [stamped("b", "y", because="of b"), stamped("b", "x"), stamped("a", "z", Strength.FALLBACK)]
    expected = Decision(
        stage="s",
        value="sdpa",
        plugin="w",
        because="it is there",
        strength=Strength.PROFILE,
        instead_of=(
            Overruled(value="x", plugin="b", because="so", strength=Strength.CLAIM),
            Overruled(value="y", plugin="b", because="of b", strength=Strength.CLAIM),
            Overruled(value="z", plugin="a", because="so", strength=Strength.FALLBACK),
        ),
        passed_over=tried,
    )
    assert decide("s", [*lost, StampedClaim("w", winner)]) == expected
    assert decide("s", [StampedClaim("w", winner), *reversed(lost)]) == expected


def test_the_order_of_a_mappings_keys_is_no_disagreement() -> None:
    found = decide("s", [stamped("a", {"x": 0, "y": 1}), stamped("b", {"y": 1, "x": 0})])
    assert isinstance(found, Decision)
    assert found.concurring == ("b",)


def test_equal_values_concur() -> None:
    found = decide(
        "dtype",
        [stamped("b", "float16"), stamped("a", "float16"), stamped("c", "float32", Strength.FALLBACK)],
    )
    assert isinstance(found, Decision)
    assert (found.plugin, found.concurring) == ("a", ("b",))
    assert [(o.plugin, o.value) for o in found.instead_of] == [("c", "float32")]


def test_true_isnt_one() -> None:
    assert isinstance(decide("s", [stamped("a", True), stamped("b", 1)]), Problem)

"""How many requests there may be at once: 1 to all rows, more with successes, half as many with an overload."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from asyncgen.backends.openai.pace import FIRST, Pace

STEPS = st.lists(st.sampled_from(["begin", "success", "overload", "nothing"]), max_size=200)


@given(st.integers(1, 64), STEPS, st.randoms(use_true_random=False))
def test_whatever_happens_the_limit_stays_in_its_bounds_and_is_cut_once_a_round(
    most: int, steps: list[str], random: object
) -> None:
    pace, flying, cut_after = Pace(most), [], 0
    begun = 0
    for step in steps:
        before = pace.limit
        if step == "begin":
            if pace.in_flight < pace.limit:
                begun += 1
                assert pace.begin() == begun
                flying.append(begun)
            continue
        if not flying:
            continue
        number = flying.pop(random.randrange(len(flying)))  # type: ignore[attr-defined]  # hypothesis gives a Random
        if step == "success":
            pace.succeeded()
            assert before <= pace.limit <= before + 1
        elif step == "overload":
            pace.overloaded(number)
            if number > cut_after:
                assert pace.limit <= max(1, before)
                assert pace.limit >= before // 2
                cut_after = begun
            else:
                assert pace.limit == before
        pace.end()
        assert pace.in_flight == len(flying)
        assert 1 <= pace.limit <= most


def full(pace: Pace) -> list[int]:
    """Fills all places."""
    return [pace.begin() for _ in range(pace.limit - pace.in_flight)]


def round_of_successes(pace: Pace) -> None:
    for _ in full(pace):
        pace.succeeded()
        pace.end()
        full(pace)
    for _ in range(pace.in_flight):
        pace.end()


def test_it_begins_small_and_doubles_each_round_until_it_hurts_then_grows_by_about_one() -> None:
    pace = Pace(1000)
    limits = [pace.limit]
    for _ in range(4):
        round_of_successes(pace)
        limits.append(pace.limit)
    assert limits == [FIRST * 2**n for n in range(5)]
    numbers = full(pace)
    for number in numbers:
        pace.overloaded(number)
        pace.end()
    assert pace.limit == FIRST * 8, "all of one round are one overload"
    round_of_successes(pace)
    assert FIRST * 8 <= pace.limit <= FIRST * 8 + 1


def test_what_was_not_in_use_does_not_grow() -> None:
    pace = Pace(64)
    for _ in range(50):
        pace.begin()
        pace.succeeded()
        pace.end()
    assert pace.limit == FIRST

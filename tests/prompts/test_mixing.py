"""Which item of which source an index is: every item once and in order, shares by weight, any index at once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncgen.prompts.mixing import End, Mixing, Place

weights_of = st.lists(st.integers(1, 7), min_size=1, max_size=5)


@st.composite
def mixes(draw: st.DrawFn) -> tuple[list[int], list[End]]:
    """Weights, and ends of some but not all of the sources."""
    weights = draw(weights_of)
    order = draw(st.permutations(range(len(weights))))
    index, ends = 0, []
    for source in order[: draw(st.integers(0, len(weights) - 1))]:
        index += draw(st.integers(0, 40))
        ends.append(End(source, index))
    return weights, ends


@given(mixes())
def test_every_item_of_every_source_comes_once_and_in_order(mix: tuple[list[int], list[End]]) -> None:
    weights, ends = mix
    mixing = Mixing(weights, ends)
    counts = [0] * len(weights)
    for index in range(300):
        assert mixing.items(index) == counts
        source, position = mixing.place(index)
        assert position == counts[source]
        counts[source] += 1
    for end in ends:
        assert mixing.items(300)[end.source] == mixing.items(end.index)[end.source], "an ended source gives nothing"


@given(mixes(), st.integers(0, 10**12))
def test_shares_follow_the_weights_in_every_window_of_a_cycle(mix: tuple[list[int], list[End]], far: int) -> None:
    weights, ends = mix
    mixing = Mixing(weights, ends)
    last = ends[-1].index if ends else 0
    cycle = sum(weights[source] for source in mixing.alive)
    for start in (last, last + 1, last + far):
        counts = Counter(mixing.place(index).source for index in range(start, start + cycle))
        assert counts == {source: weights[source] for source in mixing.alive}


@given(mixes())
def test_an_end_changes_nothing_before_it_and_gives_its_places_away_in_cycle_order(
    mix: tuple[list[int], list[End]],
) -> None:
    weights, ends = mix
    before, mixing = Mixing(weights), Mixing(weights)
    for end in ends:
        mixing.end(end.source, end.index)
        assert [mixing.place(i) for i in range(end.index)] == [before.place(i) for i in range(end.index)]
        kept = [source for i in range(200) if (source := before.place(end.index + i).source) != end.source]
        assert [mixing.place(end.index + i).source for i in range(len(kept))] == kept
        before = Mixing(weights, mixing.ends)
    assert mixing.ends == tuple(ends)


@given(mixes(), st.integers(0, 200))
def test_the_index_of_a_place_is_found_again(mix: tuple[list[int], list[End]], more: int) -> None:
    weights, ends = mix
    mixing = Mixing(weights, ends)
    index = (ends[-1].index if ends else 0) + more
    assert mixing.index_of(*mixing.place(index)) == index


def test_places_are_spread_and_not_in_blocks() -> None:
    def sources(weights: list[int]) -> list[int]:
        return [Mixing(weights).place(index).source for index in range(sum(weights))]

    assert sources([1, 1, 1]) == [0, 1, 2]
    assert sources([5, 1]) == [0, 0, 0, 1, 0, 0]
    assert sources([4, 4]) == [0, 1] * 4
    assert sources([6, 3, 2]) == [0, 1, 0, 2, 0, 1, 0, 0, 2, 1, 0]
    assert Mixing([1]).place(10**15) == Place(0, 10**15)


@given(st.lists(st.integers(1, 50), min_size=2, max_size=6), st.integers(2, 9))
def test_a_common_factor_of_the_weights_changes_nothing(weights: list[int], factor: int) -> None:
    more = Mixing([weight * factor for weight in weights])
    assert [more.place(i) for i in range(400)] == [Mixing(weights).place(i) for i in range(400)]


@given(st.lists(st.integers(1, 50), min_size=2, max_size=6))
def test_no_source_runs_ahead_of_its_share(weights: list[int]) -> None:
    """In any beginning of the cycle a source has its share, but for half a place of each of the others."""
    mixing, total = Mixing(weights), sum(weights)
    for index in range(total):
        for source, items in enumerate(mixing.items(index)):
            assert abs(items - index * weights[source] / total) <= 1 + len(weights) / 2


@pytest.mark.parametrize(
    ("ends", "source", "index"), [([], 2, 5), ([End(0, 5)], 0, 6), ([End(0, 5)], 1, 4), ([End(0, 5), End(1, 5)], 2, 9)]
)
def test_ends_that_cannot_be(ends: list[End], source: int, index: int) -> None:
    weights = [1, 1, 1] if ends else [1, 1]
    with pytest.raises(ValueError, match=f"source {source} of .* cannot end at index {index}"):
        Mixing(weights, ends).end(source, index)

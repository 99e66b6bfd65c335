"""The diversity plan: distinct words in a prompt, even use over the run, any index at any time."""

from __future__ import annotations

import time
from collections import Counter
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncgen import seeds
from asyncgen.errors import DataError
from asyncgen.prompts.words import WordPlan, choose_distinct


def vocabulary(size: int) -> tuple[str, ...]:
    return tuple(f"w{k}" for k in range(size))


def by_the_rule(words: tuple[str, ...], per_prompt: int, seed: int, prompts: int) -> list[tuple[str, ...]]:
    """The rule as the design states it, word by word: take the next word that the prompt does not hold yet; those
    passed over come next.
    """
    waiting: list[str] = []
    result = []
    number = 0
    for _ in range(prompts):
        prompt: list[str] = []
        passed: list[str] = []
        while len(prompt) < per_prompt:
            if not waiting:
                drawn = seeds.draw_many(seed, "shuffle", number, count=len(words))
                order = sorted(range(len(words)), key=drawn.__getitem__)
                waiting = [words[k] for k in order]
                number += 1
            word = waiting.pop(0)
            (passed if word in prompt else prompt).append(word)
        waiting = passed + waiting
        result.append(tuple(prompt))
    return result


sizes = st.integers(1, 30).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n)))
run_seeds = st.integers(0, 2**63 - 1)


@given(sizes, run_seeds)
def test_the_plan_is_the_rule(size: tuple[int, int], seed: int) -> None:
    per_prompt, total = size
    words = vocabulary(total)
    plan = WordPlan(words, per_prompt, seed=seed)
    assert [plan.pick(index) for index in range(60)] == by_the_rule(words, per_prompt, seed, 60)


@given(sizes, run_seeds)
def test_words_of_a_prompt_differ_and_use_counts_differ_by_at_most_one_always(size: tuple[int, int], seed: int) -> None:
    per_prompt, total = size
    plan = WordPlan(vocabulary(total), per_prompt, seed=seed)
    uses = Counter(dict.fromkeys(vocabulary(total), 0))
    for index in range(60):
        picked = plan.pick(index)
        assert len(set(picked)) == len(picked) == per_prompt
        uses.update(picked)
        assert max(uses.values()) - min(uses.values()) <= 1


@given(sizes, run_seeds, st.lists(st.integers(0, 200), max_size=20))
def test_any_order_of_asking_gives_the_same(size: tuple[int, int], seed: int, asked: list[int]) -> None:
    per_prompt, total = size
    in_order = WordPlan(vocabulary(total), per_prompt, seed=seed)
    expected = [in_order.pick(index) for index in range(201)]
    plan = WordPlan(vocabulary(total), per_prompt, seed=seed)
    assert [plan.pick(index) for index in asked] == [expected[index] for index in asked]


@pytest.mark.parametrize(("per_prompt", "total"), [(3, 3), (3, 4), (3, 5), (7, 11), (3, 1667)])
def test_every_word_is_used_once_before_any_is_used_twice(per_prompt: int, total: int) -> None:
    plan = WordPlan(vocabulary(total), per_prompt, seed=5)
    stream = list(chain.from_iterable(plan.pick(index) for index in range(total)))
    for start in range(0, len(stream), total):
        assert sorted(stream[start : start + total]) == sorted(vocabulary(total))


def test_seeds_and_shuffles_differ() -> None:
    words = vocabulary(100)
    first, other = WordPlan(words, 100, seed=1), WordPlan(words, 100, seed=2)
    assert first.pick(0) != other.pick(0)
    assert first.pick(0) != first.pick(1)


def test_the_first_pick_of_a_seed_is_fixed_for_ever() -> None:
    """A change here changes every data set that is resumed or made again."""
    plan = WordPlan(("sun", "moon", "star", "cloud", "rain"), 3, seed=0)
    assert [plan.pick(index) for index in (0, 1, 1000)] == [
        ("moon", "cloud", "sun"),
        ("star", "rain", "cloud"),
        ("sun", "cloud", "star"),
    ]


def test_a_far_index_is_fast() -> None:
    plan = WordPlan(vocabulary(1667), 3, seed=0)
    start = time.perf_counter()
    plan.pick(1_000_000)
    plan.pick(10**12)
    assert time.perf_counter() - start < 1


def test_without_diversity_words_still_differ() -> None:
    plan = WordPlan(vocabulary(5), 3, seed=0, diverse=False)
    picks = [plan.pick(index) for index in range(2000)]
    assert all(len(set(picked)) == 3 for picked in picks)
    uses = Counter(chain.from_iterable(picks))
    assert all(1000 < uses[word] < 1400 for word in vocabulary(5))
    assert picks[7] == WordPlan(vocabulary(5), 3, seed=0, diverse=False).pick(7)


@given(run_seeds, st.integers(0, 10**9), st.integers(0, 20))
def test_chosen_numbers_are_distinct(seed: int, place: int, count: int) -> None:
    chosen = choose_distinct(seed, "test", place, 20, count)
    assert len(set(chosen)) == len(chosen) == count
    assert set(chosen) <= set(range(20))


def test_too_few_words() -> None:
    with pytest.raises(DataError, match=r"FILE has 2 words, the template 3 word placeholders"):
        WordPlan(("sun", "moon"), 3, seed=0, where="FILE")


def test_no_words_wanted() -> None:
    assert WordPlan((), 0, seed=0).pick(5) == ()

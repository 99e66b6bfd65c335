"""K-shot examples: real turns, and the same ones for a block of indices."""

from __future__ import annotations

import pytest

from asyncgen.errors import DataError
from asyncgen.prompts.files import Shot
from asyncgen.prompts.kshot import ShotPlan

SHOTS = tuple(Shot(f"q{k}", f"a{k}") for k in range(6))


def test_the_first_ones() -> None:
    plan = ShotPlan(SHOTS, 2, seed=0, system_prompt="be kind")
    examples = plan.pick(0)
    assert examples.answers == ("a0", "a1")
    assert examples.messages == (
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "q0"},
        {"role": "assistant", "content": "a0"},
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "a1"},
    )
    assert plan.pick(10**6) is examples


def test_no_examples() -> None:
    examples = ShotPlan(SHOTS, 0, seed=0, rotate=3).pick(5)
    assert (examples.messages, examples.answers) == ((), ())


def test_rotation_shares_a_choice_within_a_block() -> None:
    plan = ShotPlan(SHOTS, 3, seed=1, rotate=10)
    blocks = [[plan.pick(index).answers for index in range(b * 10, b * 10 + 10)] for b in range(40)]
    assert all(len(set(block)) == 1 for block in blocks)
    assert all(len(set(block[0])) == 3 for block in blocks)
    assert len({block[0] for block in blocks}) > 20
    assert {answer for block in blocks for answer in block[0]} == {shot.answer for shot in SHOTS}
    assert plan.pick(0) is plan.pick(9)


def test_rotation_is_a_function_of_seed_and_index() -> None:
    plan = ShotPlan(SHOTS, 3, seed=1, rotate=4)
    expected = [plan.pick(index).answers for index in range(100)]
    again = ShotPlan(SHOTS, 3, seed=1, rotate=4)
    assert [again.pick(index).answers for index in reversed(range(100))] == expected[::-1]
    other = ShotPlan(SHOTS, 3, seed=2, rotate=4)
    assert [other.pick(index).answers for index in range(100)] != expected


def test_more_examples_than_there_are() -> None:
    with pytest.raises(DataError, match=r"FILE holds 6 examples, and k_shot_count asks for 7"):
        ShotPlan(SHOTS, 7, seed=0, where="FILE")

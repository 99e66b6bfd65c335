"""What a check's answer means, and when too many of its calls have failed."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncgen.validators.answers import Answer, CheckFailed, Failures, read_answer


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (None, Answer()),
        (True, Answer()),
        (False, Answer(("refused",))),
        ("too sad", Answer(("too sad",))),
        (" \n", Answer()),
        ([], Answer()),
        (["too sad", "", "too wet "], Answer(("too sad", "too wet"))),
        (("a",), Answer(("a",))),
        (0, Answer(score=0.0)),
        (1, Answer(score=1.0)),
        (0.25, Answer(score=0.25)),
        (Fraction(1, 4), Answer(score=0.25)),
    ],
)
def test_what_answers_mean(value: object, answer: Answer) -> None:
    assert read_answer(value) == answer


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1.5, "returned 1.5; a score is a number from 0 to 1"),
        (-1, "returned -1; a score"),
        (float("nan"), "returned nan; a score"),
        ({}, "returned dict; allowed is None, True, False, a text"),
        (b"text", "returned bytes; allowed"),
        (["a", 3], "returned a list with int in it; allowed"),
        (1j, "returned complex; allowed"),
        (object, "returned type; allowed"),
    ],
)
def test_everything_else_is_a_failed_check(value: object, message: str) -> None:
    with pytest.raises(CheckFailed, match=f"^{message}"):
        read_answer(value)


@given(st.lists(st.booleans(), max_size=300))
def test_more_than_half_of_the_last_hundred_is_too_many(calls: list[bool]) -> None:
    failures = Failures()
    for n, failed in enumerate(calls, 1):
        latest = calls[max(0, n - 100) : n]
        assert failures.add(failed=failed) == (n >= 20 and sum(latest) * 2 > len(latest))
        assert (failures.failed, failures.calls) == (sum(latest), len(latest))

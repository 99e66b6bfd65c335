"""Verdicts in any order become records in index order: each once, counts right, repeats found in order."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncgen.config import Config, Generation
from asyncgen.ordering import HOPELESS_AFTER, Ordering, next_attempt
from asyncgen.records import Completion, FinishReason, Prompt, Rejection, Story, Verdict
from asyncgen.seeds import sampling_seed


def verdict(index: int, text: str, *, accepted: bool = True, attempt: int = 1, retryable: bool = True) -> Verdict:
    prompt = Prompt(index, (), attempt=attempt, seed=sampling_seed(0, index, attempt), shots=("a", "b"))
    completion = Completion(prompt, text, 40, 0.5, "stop", retryable=retryable)
    return Verdict(completion, () if accepted else ("too short: 3 words, at least 30",), 0.9, 30)


def ordering(config: Config, start: int = 0) -> Ordering:
    seen: set[str] = set()

    def is_new(text: str) -> bool:
        new = text not in seen
        seen.add(text)
        return new

    return Ordering(config, is_new, start=start)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans()), max_size=80), st.integers(0, 2**32))
def test_records_come_in_index_order_whatever_the_order_of_verdicts(plan: list[tuple[str, bool]], seed: int) -> None:
    config = Config(max_attempts=2, max_rejection_rate=1.0)
    order = ordering(config)
    rng = random.Random(seed)
    arriving = [verdict(index, text, accepted=accepted, attempt=2) for index, (text, accepted) in enumerate(plan)]
    rng.shuffle(arriving)
    records: list[Story | Rejection] = []
    while arriving:
        group, arriving = arriving[: (n := rng.randint(1, 9))], arriving[n:]
        decisions = order.add(group)
        assert not decisions.retries, "no attempt is left"
        records += decisions.records
    assert [record.index for record in records] == list(range(len(plan)))
    first_of = {text: index for index, (text, accepted) in reversed(list(enumerate(plan))) if accepted}
    accepted = 0
    for index, (record, (text, good)) in enumerate(zip(records, plan, strict=True)):
        expected = good and first_of[text] == index
        accepted += expected
        assert (
            isinstance(record, Story) and not isinstance(record, Rejection)
            if expected
            else isinstance(record, Rejection)
        )
        assert record.metadata["accepted"] == accepted
        assert record.metadata["rejected"] == index + 1 - accepted
    assert len(order) == 0


def test_a_repeat_is_tried_again_and_holds_up_those_behind_it() -> None:
    order = ordering(Config(max_attempts=2))
    decisions = order.add([verdict(0, "same"), verdict(1, "same"), verdict(2, "other")])
    assert [record.index for record in decisions.records] == [0]
    (retry,) = decisions.retries
    assert (retry.index, retry.attempt, retry.seed) == (1, 2, sampling_seed(0, 1, 2))
    assert retry.history == (("repeat: equal to an earlier story of this run",),)
    decisions = order.add([Verdict(Completion(retry, "new", 9, 0.1, "stop"), (), 1.0, 30)])
    assert [record.index for record in decisions.records] == [1, 2]


def test_a_rejection_keeps_the_reasons_of_every_attempt() -> None:
    config = Config(max_attempts=3)
    first = verdict(0, "x", accepted=False)
    retry = next_attempt(first, config)
    assert retry is not None
    second = Verdict(Completion(retry, "y", 0, 0.0, "error", error="z: no"), ("z: no",), 0.0, 0)
    third = next_attempt(second, config)
    assert third is not None
    last = Verdict(Completion(third, "w", 3, 0.1, "length"), ("unfinished: limit",), 0.2, 1)
    assert next_attempt(last, config) is None
    (record,) = ordering(config).add([last]).records
    assert isinstance(record, Rejection)
    assert record.reasons == (("too short: 3 words, at least 30",), ("z: no",), ("unfinished: limit",))
    assert record.metadata["attempt"] == 3
    assert record.metadata["k_shot_count"] == 2


def test_nothing_is_tried_again_where_it_could_not_differ() -> None:
    assert next_attempt(verdict(0, "x", accepted=False, retryable=False), Config()) is None
    assert next_attempt(verdict(0, "x", accepted=False), Config(generation=Generation(temperature=0))) is None


@settings(deadline=None)
@given(st.integers(0, 60))
def test_a_hopeless_run_stops_at_the_same_index_however_verdicts_are_grouped(step: int) -> None:
    config = Config(max_attempts=1, max_rejection_rate=0.5)
    order = ordering(config)
    verdicts = [verdict(i, str(i), accepted=i < 150) for i in range(400)]
    written = 0
    for at in range(0, 400, step + 1):
        decisions = order.add(verdicts[at : at + step + 1])
        written += len(decisions.records)
        if decisions.hopeless:
            break
    # Of the last 200, more than half rejected: 150 accepted, and 101 rejected among indices 51..250.
    assert written == 150 + HOPELESS_AFTER // 2 + 1
    assert "101 of the last 200" in order.summary()


def failed(index: int, reason: FinishReason = "error") -> Verdict:
    completion = replace(verdict(index, "").completion, finish_reason=reason, error="it broke", retryable=False)
    return Verdict(completion, ("it broke",), 0.0, 0)


@settings(deadline=None)
@given(st.integers(0, 60))
def test_errors_end_a_run_that_reasons_would_not_end(step: int) -> None:
    order = ordering(Config(max_rejection_rate=1.0))
    verdicts = [failed(i) if i >= 150 else verdict(i, str(i)) for i in range(400)]
    written = 0
    for at in range(0, 400, step + 1):
        decisions = order.add(verdicts[at : at + step + 1])
        written += len(decisions.records)
        if decisions.failing:
            break
    assert written == 150 + HOPELESS_AFTER // 2 + 1
    assert order.failures() == "101 of the last 200 prompts ended with an error instead of a text"


def test_the_last_of_two_hundred_may_be_an_accepted_one() -> None:
    """101 failed and 99 accepted, in turns: what comes after them might never tip the scales."""
    verdicts = [failed(i) if i % 2 == 0 or i == 1 else verdict(i, str(i)) for i in range(400)]
    order = ordering(Config(max_rejection_rate=1.0))
    decisions = order.add(verdicts)
    assert (len(decisions.records), decisions.failing) == (HOPELESS_AFTER, True)


def test_a_run_that_has_what_it_wants_is_neither_hopeless_nor_broken() -> None:
    config = Config(num_stories=10, max_rejection_rate=0.5)
    order = ordering(config)
    decisions = order.add([verdict(i, str(i)) if i >= 190 else failed(i) for i in range(200)])
    assert (order.accepted, decisions.hopeless, decisions.failing) == (10, False, False)


@pytest.mark.parametrize("reason", ["refused", "stop"])
def test_other_rejections_are_no_errors(reason: FinishReason) -> None:
    order = ordering(Config(max_rejection_rate=1.0))
    decisions = order.add([failed(i, reason) for i in range(400)])
    assert (len(decisions.records), decisions.failing) == (400, False)


@pytest.mark.parametrize(
    ("count", "failing", "broken"), [(199, 100, True), (20, 11, True), (20, 10, False), (19, 19, False)]
)
def test_a_short_run_is_judged_at_its_end(count: int, failing: int, broken: bool) -> None:
    order = ordering(Config(max_rejection_rate=1.0))
    decisions = order.add([failed(i) if i < failing else verdict(i, str(i)) for i in range(count)])
    assert (len(decisions.records), decisions.failing, order.broken) == (count, False, broken)

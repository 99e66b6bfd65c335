"""The whole flow on ``echo``: it ends, it is right, it makes nothing over, wherever it is stopped."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio import wait_all_tasks_blocked
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncgen.config import Generation, Validation
from asyncgen.errors import BackendFailed, SourcesEnded, TooManyRejections
from asyncgen.pipeline import Flow
from asyncgen.records import Completion, Prompt, Rejection, Verdict
from tests.flows import Record, config_for, decide, flow_for, texts

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_thread_of_ours_is_left")]


@settings(max_examples=60, deadline=None)
@given(
    goal=st.integers(1, 80),
    window=st.integers(1, 40),
    rows=st.integers(1, 12),
    attempts=st.integers(1, 3),
    bad_share=st.sampled_from([0.0, 0.3, 0.7]),
    distinct=st.sampled_from([None, 200]),
    seed=st.integers(0, 2**40),
)
async def test_exactly_the_stories_wanted_in_order_and_nothing_over(
    goal: int, window: int, rows: int, attempts: int, bad_share: float, distinct: int | None, seed: int
) -> None:
    config = config_for(
        num_stories=goal,
        window=window,
        generation=Generation(batch_size=rows),
        max_attempts=attempts,
        bad_share=bad_share,
        distinct=distinct,
        seed=seed,
    )
    with anyio.fail_after(20):
        records = await decide(config)
    assert [record.index for record in records] == list(range(len(records)))
    accepted = [record for record in records if not isinstance(record, Rejection)]
    assert len(accepted) == goal
    assert records[-1] is accepted[-1], "the last index is an accepted one"
    assert len({record.content for record in accepted}) == goal
    for record in records:
        if isinstance(record, Rejection):
            assert len(record.reasons) == attempts
    # Window, rows and bounds are speed: the same records come out of any of them.
    other = config.model_copy(update={"window": 256, "generation": Generation(batch_size=3)})
    assert texts(await decide(other)) == texts(records)


@settings(max_examples=40, deadline=None)
@given(
    prompts=st.integers(0, 60),
    goal=st.none() | st.integers(1, 60),
    rows=st.integers(1, 9),
    bad_share=st.sampled_from([0.0, 0.5]),
)
async def test_a_source_that_ends(prompts: int, goal: int | None, rows: int, bad_share: float) -> None:
    config = config_for(
        num_stories=goal, generation=Generation(batch_size=rows), bad_share=bad_share, window=20, max_attempts=2
    )
    ended = False
    records: list[Record] = []

    async def sink(group: Sequence[Record]) -> None:
        records.extend(group)

    with anyio.fail_after(20):
        async with flow_for(config, prompts=prompts) as flow:
            try:
                await flow.run(sink)
            except SourcesEnded:
                ended = True
    accepted = sum(not isinstance(record, Rejection) for record in records)
    assert ended == (goal is not None and accepted < goal)
    if goal is None or ended:
        assert len(records) == prompts
    else:
        assert accepted == goal
        assert len(records) <= prompts


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(0, 59), st.sampled_from([0.0, 0.5]))
async def test_starting_in_the_middle_gives_the_same_rest(goal: int, cut: int, bad_share: float) -> None:
    config = config_for(num_stories=goal, bad_share=bad_share, generation=Generation(batch_size=5))
    whole = await decide(config)
    before = whole[: min(cut, len(whole) - 1)]
    accepted = sum(not isinstance(record, Rejection) for record in before)
    rest = await decide(config, start=len(before), accepted=accepted)
    assert texts([*before, *rest]) == texts(whole)
    assert [r.metadata for r in rest] == [r.metadata for r in whole[len(before) :]]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 120), st.booleans())
async def test_stopping_anywhere_leaves_a_prefix(steps: int, cancel: bool) -> None:
    config = config_for(num_stories=60, bad_share=0.3, generation=Generation(batch_size=4), window=16)
    whole = texts(await decide(config))
    records: list[Record] = []

    async def sink(group: Sequence[Record]) -> None:
        await anyio.lowlevel.checkpoint()
        records.extend(group)

    begun = -1
    with anyio.fail_after(20):
        async with flow_for(config) as flow, anyio.create_task_group() as group:
            take = flow.pool.take

            async def watched_take(*arguments: Any, **options: Any) -> tuple[Prompt, ...]:
                nonlocal begun
                batch = await take(*arguments, **options)
                begun = max([begun, *(prompt.index for prompt in batch)])
                return batch

            setattr(flow.pool, "take", watched_take)  # noqa: B010  # looks on, changes nothing
            group.start_soon(flow.run, sink)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            if cancel:
                group.cancel_scope.cancel()
            else:
                assert not flow.snapshot().stopping
                flow.stop()
                asked, decided = flow.snapshot(), flow.window.decided
    assert texts(records) == whole[: len(records)]
    if not cancel:
        assert len(records) > begun, "all that was begun is finished and committed"
        assert len(records) == begun + 1 or len(records) == len(whole)
        assert asked.stopping
        assert 0 < asked.drain_seconds <= flow.config.drain_timeout
        assert asked.finishing == len(records) - decided, "counted in prompts, whatever becomes of them"


async def test_a_hopeless_run_stops_and_says_why() -> None:
    config = config_for(num_stories=1000, bad_share=1.0).model_copy(update={"max_rejection_rate": 0.9})
    with pytest.raises(TooManyRejections, match=r"200 of the last 200 .* too short"):
        await decide(config)


SLOW = r"(?:[\s\S]|[\s\S]{2})+\d{9}$"
"""A pattern that gives up on no text before its time is over."""


class Judging:
    """Looks on while texts are judged."""

    def __init__(self, flow: Flow) -> None:
        self.begun = self.ended = 0
        self.threads: set[threading.Thread] = set()
        self._judge = flow.judge
        flow.judge = self

    def __call__(self, completion: Completion) -> Verdict:
        self.threads.add(threading.current_thread())
        self.begun += 1
        verdict = self._judge(completion)
        self.ended += 1
        return verdict


async def nowhere(_: Sequence[Record]) -> None:
    """A sink."""


@pytest.mark.parametrize("patterns", [(), ("never",)])
async def test_texts_are_judged_on_the_loop_unless_there_are_patterns(patterns: tuple[str, ...]) -> None:
    config = config_for(num_stories=40, validation=Validation(forbid_patterns=patterns))
    async with flow_for(config) as flow:
        judging = Judging(flow)
        await flow.run(nowhere)
    assert judging.ended >= 40
    assert (threading.current_thread() in judging.threads) == (not patterns)


async def test_a_slow_pattern_holds_up_neither_the_loop_nor_a_cancellation() -> None:
    config = config_for(
        num_stories=None,
        generation=Generation(batch_size=8),
        validation=Validation(forbid_patterns=(SLOW, SLOW + "a", SLOW + "b")),
    )
    turns = 0
    async with flow_for(config, prompts=8) as flow, anyio.create_task_group() as group:
        judging = Judging(flow)
        group.start_soon(flow.run, nowhere)
        while not judging.begun:
            await anyio.lowlevel.checkpoint()
        while turns < 100:
            turns += 1
            await anyio.lowlevel.checkpoint()
        assert judging.ended == 0, "the loop goes on while the first text is searched"
        group.cancel_scope.cancel()
    assert judging.ended == 0, "not even the first text's patterns are all tried"
    assert flow.snapshot().attempts == 0


class Broken:
    """A sink, source or judge that fails at its n-th use."""

    def __init__(self, uses: int) -> None:
        self.uses = uses

    def use(self) -> None:
        self.uses -= 1
        if self.uses < 0:
            raise OSError("broken on purpose")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 12), st.sampled_from(["sink", "source", "judge", "prepare"]))
async def test_one_failure_leaves_as_itself_and_nothing_hangs(uses: int, place: str) -> None:
    broken = Broken(uses)
    config = config_for(num_stories=300, generation=Generation(batch_size=4), window=16)

    async def sink(_: Sequence[Record]) -> None:
        await anyio.lowlevel.checkpoint()
        if place == "sink":
            broken.use()

    with anyio.fail_after(20):
        async with flow_for(config) as flow:
            if place == "source":
                take = flow.source.take

                async def broken_take(start: int, count: int) -> tuple[Prompt, ...]:
                    broken.use()
                    return await take(start, count)

                flow.source.take = broken_take  # type: ignore[method-assign]
            elif place in ("judge", "prepare"):
                target, name = (flow, "judge") if place == "judge" else (flow.backend, "prepare")
                whole = getattr(target, name)

                def broken_call(*arguments: object) -> object:
                    broken.use()
                    return whole(*arguments)

                setattr(target, name, broken_call)
            with pytest.raises(OSError, match="broken on purpose"):
                await flow.run(sink)


async def test_a_backend_that_ends_too_early_is_an_error() -> None:
    async with flow_for(config_for(num_stories=5)) as flow:

        async def run(*_: object) -> None:
            return

        setattr(flow.backend, "run", run)  # noqa: B010  # a stand-in that takes anything

        async def sink(_: Sequence[Record]) -> None:
            raise AssertionError("nothing can come")

        with anyio.fail_after(5), pytest.raises(BackendFailed, match="still to come"):
            await flow.run(sink)


async def test_a_slow_sink_holds_everything_up_within_the_window() -> None:
    config = config_for(num_stories=None, window=20, generation=Generation(batch_size=4))
    gate = anyio.Event()

    async def sink(_: Sequence[Record]) -> None:
        await gate.wait()

    async with flow_for(config, prompts=500) as flow, anyio.create_task_group() as group:
        group.start_soon(flow.run, sink)
        while True:
            before = flow.metrics.attempts
            await anyio.sleep(0.05)
            await wait_all_tasks_blocked()
            if flow.metrics.attempts == before > 0:
                break
        depths = flow.snapshot().depths
        assert depths["undecided"] == depths["window"] == 20
        assert sum(depths[name] for name in ("prompts", "completions", "verdicts", "in order")) <= 20
        gate.set()
    assert flow.window.decided == 500


async def test_repeats_are_counted_whether_they_are_tried_again_or_not() -> None:
    config = config_for(num_stories=None, distinct=1, max_attempts=1, template="tell me a story\n")
    async with flow_for(config, prompts=20) as flow:

        async def sink(_: Sequence[Record]) -> None:
            return

        await flow.run(sink)
        snapshot = flow.snapshot()
    assert snapshot.reasons["repeat"] == 19
    assert (snapshot.accepted, snapshot.accepted_first, snapshot.first_attempts) == (1, 1, 20)


async def test_jsonl_prompts_flow_like_others(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f'{{"prompt": "tell {n}", "selected_words": ["moon{n}"]}}\n' for n in range(7)))
    config = config_for(
        num_stories=None, sources=[{"kind": "jsonl", "path": path}], validation=Validation(require_words=True)
    )
    records = await decide(config)
    assert [record.metadata["selected_words"] for record in records] == [{"word1": f"moon{n}"} for n in range(7)]

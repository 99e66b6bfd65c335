"""The whole flow on ``echo``: it ends, it is right, it makes nothing over, wherever it is stopped."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncgen.backends import open_backend
from asyncgen.config import Config, EchoBackend, Generation, Validation
from asyncgen.errors import BackendFailed, SourcesEnded, TooManyRejections
from asyncgen.pipeline import Flow, open_pipeline
from asyncgen.prompts import PromptSource, open_source
from asyncgen.records import Prompt, Rejection, Story

pytestmark = pytest.mark.anyio

Record = Story | Rejection


@pytest.fixture(autouse=True)
def no_thread_of_ours_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    # Worker threads that anyio keeps for the loop's next use end with the loop.
    left = [t.name for t in set(threading.enumerate()) - before if not t.name.startswith("AnyIO worker")]
    assert not left


def config_for(**changes: object) -> Config:
    echo = {
        name: changes.pop(name)
        for name in ("bad_share", "distinct", "context_length", "seconds_per_batch")
        if name in changes
    }
    settings: dict[str, object] = {
        "backend": EchoBackend(kind="echo", **echo),
        "max_rejection_rate": 1.0,
        "use_k_shot": False,
        **changes,
    }
    return Config.model_validate(settings)


class Finite:
    """A source that ends after ``count`` prompts and lets others run before each answer."""

    def __init__(self, source: PromptSource, count: int) -> None:
        self.count: int | None = count
        self._source = source

    async def take(self, start: int, count: int) -> tuple[Prompt, ...]:
        await anyio.lowlevel.checkpoint()
        return await self._source.take(start, max(0, min(count, (self.count or 0) - start)))


async def decide(config: Config, *, prompts: int | None = None, start: int = 0, accepted: int = 0) -> list[Record]:
    """Runs a flow to its end and returns what it decided."""
    records: list[Record] = []

    async def sink(group: Sequence[Record]) -> None:
        await anyio.lowlevel.checkpoint()
        records.extend(group)

    async with flow_for(config, prompts=prompts, start=start, accepted=accepted) as flow:
        await flow.run(sink)
    return records


@asynccontextmanager
async def flow_for(
    config: Config, *, prompts: int | None = None, start: int = 0, accepted: int = 0
) -> AsyncIterator[Flow]:
    async with open_source(config) as source, open_backend(config) as backend:
        end = Finite(source, prompts) if prompts is not None else source
        yield Flow(config, end, backend, start=start, accepted=accepted, rejected=start - accepted)


def texts(records: Sequence[Record]) -> list[tuple[int, str, bool]]:
    return [(record.index, record.content, isinstance(record, Rejection)) for record in records]


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
                flow.stop()
    assert texts(records) == whole[: len(records)]
    if not cancel:
        assert len(records) > begun, "all that was begun is finished and committed"
        assert len(records) == begun + 1 or len(records) == len(whole)


async def test_every_prompt_too_long_is_rejected_with_the_numbers_and_without_the_model() -> None:
    config = config_for(num_stories=None, context_length=600, generation=Generation(max_new_tokens=599))
    async with flow_for(config, prompts=20) as flow:
        records: list[Record] = []

        async def sink(group: Sequence[Record]) -> None:
            records.extend(group)

        await flow.run(sink)
        assert flow.backend.snapshot().batches == 0
    assert len(records) == 20
    for record in records:
        assert isinstance(record, Rejection)
        (reasons,) = record.reasons
        assert "+ 599 new tokens > context of 600 tokens" in reasons[0]


async def test_a_hopeless_run_stops_and_says_why() -> None:
    config = config_for(num_stories=1000, bad_share=1.0).model_copy(update={"max_rejection_rate": 0.9})
    with pytest.raises(TooManyRejections, match=r"200 of the last 200 .* too short"):
        await decide(config)


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


async def test_open_pipeline_yields_stories_in_order_and_ends() -> None:
    config = config_for(num_stories=40, bad_share=0.3)
    async with open_pipeline(config) as stories:
        got = [story async for story in stories]
    assert len(got) == 40
    indices = [story.index for story in got]
    assert indices == sorted(indices)
    kept = [story.content for story in got[:6]]
    async with open_pipeline(config, start=indices[5] + 1, kept=kept) as stories:
        rest = [story async for story in stories]
    assert [story.content for story in rest] == [story.content for story in got[6:]]
    assert [story.metadata for story in rest] == [story.metadata for story in got[6:]]


async def test_a_resumed_pipeline_repeats_nothing_that_was_kept() -> None:
    config = config_for(num_stories=25, distinct=30, template="tell me a story\n")
    async with open_pipeline(config) as stories:
        got = [story async for story in stories]
    async with open_pipeline(config, start=got[9].index + 1, kept=[story.content for story in got[:10]]) as stories:
        rest = [story async for story in stories]
    assert [story.content for story in rest] == [story.content for story in got[10:]]


async def test_the_last_story_is_read_in_peace_before_an_error_leaves() -> None:
    """A reader that is busy with a story (writing it somewhere, say) is not cancelled in the middle of it."""
    config = config_for(num_stories=10)
    done: list[int] = []
    async with open_source(config) as source:
        ended = Finite(source, 4)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SourcesEnded):
        patch.setattr("asyncgen.pipeline.open_source", lambda _: _as_context(ended))
        async with open_pipeline(config) as stories:
            async for story in stories:
                await anyio.sleep(0.02)
                done.append(story.index)
    assert done == [0, 1, 2, 3]


@asynccontextmanager
async def _as_context(value: Finite) -> AsyncIterator[Finite]:
    yield value


async def test_the_callers_own_exception_group_leaves_as_it_was_raised() -> None:
    with pytest.raises(ExceptionGroup, match="mine") as caught:
        async with open_pipeline(config_for(num_stories=3)) as stories:
            async for _ in stories:
                raise ExceptionGroup("mine", [ValueError("x")])
    assert caught.value.message == "mine"


async def test_repeats_are_counted_whether_they_are_tried_again_or_not() -> None:
    config = config_for(num_stories=None, distinct=1, max_attempts=1, template="tell me a story\n")
    async with flow_for(config, prompts=20) as flow:

        async def sink(_: Sequence[Record]) -> None:
            return

        await flow.run(sink)
        snapshot = flow.snapshot()
    assert snapshot.reasons["repeat"] == 19
    assert (snapshot.accepted, snapshot.accepted_first, snapshot.first_attempts) == (1, 1, 20)


async def test_open_pipeline_left_early_or_by_an_error() -> None:
    config = config_for(num_stories=None)
    async with open_pipeline(config) as stories:
        async for _ in stories:
            break
    with pytest.raises(KeyError, match="mine"):
        async with open_pipeline(config) as stories:
            async for _ in stories:
                raise KeyError("mine")


async def test_open_pipeline_raises_what_stopped_it() -> None:
    config = config_for(num_stories=10, bad_share=1.0).model_copy(update={"max_rejection_rate": 0.5})
    with pytest.raises(TooManyRejections):
        async with open_pipeline(config) as stories:
            async for _ in stories:
                pass


async def test_two_pipelines_at_once_do_not_know_of_each_other() -> None:
    got: dict[int, list[str]] = {1: [], 2: []}

    async def read(seed: int) -> None:
        async with open_pipeline(config_for(num_stories=30, seed=seed)) as stories:
            got[seed] = [story.content async for story in stories]

    async with anyio.create_task_group() as group:
        group.start_soon(read, 1)
        group.start_soon(read, 2)
    assert len(got[1]) == len(got[2]) == 30
    assert not set(got[1]) & set(got[2])


async def test_jsonl_prompts_flow_like_others(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f'{{"prompt": "tell {n}", "selected_words": ["moon{n}"]}}\n' for n in range(7)))
    config = config_for(
        num_stories=None, sources=[{"kind": "jsonl", "path": path}], validation=Validation(require_words=True)
    )
    records = await decide(config)
    assert [record.metadata["selected_words"] for record in records] == [{"word1": f"moon{n}"} for n in range(7)]

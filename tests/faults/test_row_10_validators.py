"""Row 10: validators that hang or raise, always or now and then. That record is rejected, with its reason; the others
are kept. What fails in more than half of its calls, or in more than half of the prompts, stops the run instead of
burning a night, resumable.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

import asyncgen
from asyncgen.errors import SourcesEnded, TooManyFailures, TooManyRejections
from asyncgen.records import Completion, Rejection, Story, Verdict
from asyncgen.validators import Judge
from tests.faults.conftest import Trials
from tests.flows import Record, config_for, decide, flow_for
from tests.programs import asyncgen as program
from tests.programs import records, start
from tests.validators.making import asking, checks, join_checks, refused

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_thread_of_ours_is_left")]


@pytest.mark.parametrize("word", ["async def", "def"])
async def test_one_that_hangs_costs_its_own_text_only(tmp_path: Path, word: str) -> None:
    wait = "await anyio.sleep_forever()" if word == "async def" else "go.wait()"
    path, module = checks(
        tmp_path, f"go = threading.Event()\n{word} check(c):\n    if c.prompt.index == 7:\n        {wait}"
    )
    with anyio.fail_after(60):
        found = await decide(asking(path, each={"timeout": 1, "name": "my check"}), prompts=40)
    assert refused(found) == {7: "my check: took longer than 1 s"}
    module.go.set()
    join_checks()


async def test_one_call_in_a_hundred_that_raises_costs_its_own_text_only(tmp_path: Path, trials: Trials) -> None:
    count = trials(300, 5000)
    path, _ = checks(
        tmp_path,
        """
async def check(completion):
    if completion.prompt.index % 100 == 7 and completion.prompt.attempt == 1:
        raise ValueError("no \\n idea")
""",
    )
    found = await decide(asking(path), prompts=count)
    assert len(found) == count, "all others are kept"
    assert refused(found) == dict.fromkeys(range(7, count, 100), "check: raised ValueError: no idea (checks.py:5)")
    again = await decide(asking(path, max_attempts=2), prompts=count)
    assert not refused(again), "it is tried again like any other"


@pytest.mark.parametrize("word", ["async def", "def"])
async def test_one_that_always_raises_stops_the_run_and_keeps_what_was_decided(tmp_path: Path, word: str) -> None:
    path, _ = checks(tmp_path, f"{word} check(c):\n    if c.prompt.index >= 100:\n        raise OSError('gone')")
    config = asking(path, num_stories=5000).model_copy(update={"output_path": tmp_path / "s.jsonl"})
    with (
        anyio.fail_after(60),
        pytest.raises(TooManyRejections, match=r"'check' failed in \d+ of its last \d+") as caught,
    ):
        await asyncgen.run(config)
    assert "the last one raised OSError: gone" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.report.outcome == "too many rejections"
    kept = [record["metadata"]["index"] for record in records(tmp_path / "s.jsonl")]
    assert kept == list(range(len(kept))), "what was decided, without a gap"
    assert 0 < len(kept) <= 100


@pytest.mark.parametrize("word", ["async def", "def"])
async def test_one_that_always_hangs_stops_the_run(tmp_path: Path, word: str) -> None:
    wait = "await anyio.sleep_forever()" if word == "async def" else "go.wait()"
    path, module = checks(
        tmp_path, f"go = threading.Event()\n{word} check(c):\n    if c.prompt.index >= 50:\n        {wait}"
    )
    found: list[Record] = []

    async def sink(group: Sequence[Record]) -> None:
        found.extend(group)

    with anyio.fail_after(60), pytest.raises(TooManyRejections, match=r"'check' (failed in|has) .* took longer than"):
        async with flow_for(asking(path, each={"timeout": 0.1}, num_stories=5000)) as flow:
            await flow.run(sink)
    module.go.set()
    join_checks()
    assert [record.index for record in found] == list(range(len(found)))
    assert not [index for index in refused(found) if index < 50], "all others are kept"


async def test_a_call_left_behind_ends_no_run_however_few_may_be_under_way(tmp_path: Path) -> None:
    path, module = checks(
        tmp_path,
        """
hangs, go = threading.Event(), threading.Event()

def check(completion):
    if hangs.is_set():  # another call goes on, so this one ends it
        go.set()
    elif completion.prompt.index == 7:
        hangs.set()
        go.wait()
""",
    )
    with anyio.fail_after(60):
        found = await decide(asking(path, each={"timeout": 1, "concurrency": 1}), prompts=40)
    assert refused(found) == {7: "check: took longer than 1 s"}
    assert module.go.is_set()
    join_checks()


async def test_a_call_that_swallows_its_timeout_counts_when_it_is_given_up(tmp_path: Path) -> None:
    """That is progress: the watchdog need not be as patient as the timeout and what it is given to end."""
    path, module = checks(
        tmp_path,
        """
first, go = [], anyio.Event()

async def check(completion):
    first.append(completion)
    if len(first) == 1:
        try:
            await anyio.sleep_forever()
        except BaseException:
            await go.wait()
""",
    )
    with anyio.fail_after(60):
        config = asking(path, each={"timeout": 0.2, "concurrency": 1})
        async with flow_for(config, prompts=5) as flow, anyio.create_task_group() as group:
            group.start_soon(flow.run, nowhere)
            while flow.snapshot().validator_calls.get("check", 0) < 1:
                await anyio.lowlevel.checkpoint()
            assert flow.snapshot().attempts == 0, "it is still waited for"
            module.go.set()
    assert flow.snapshot().validator_calls["check"] == 5


async def nowhere(_: Sequence[Record]) -> None:
    """A sink."""


async def test_texts_wait_for_calls_left_behind_when_there_are_too_many(tmp_path: Path) -> None:
    path, module = checks(
        tmp_path,
        """
first, go = set(), threading.Event()

def check(completion):
    if len(first) < 4:
        first.add(completion.prompt.index)
        go.wait()
""",
    )
    found: list[Record] = []

    async def sink(group: Sequence[Record]) -> None:
        found.extend(group)

    with anyio.fail_after(60):
        config = asking(path, each={"timeout": 3, "concurrency": 4})
        async with flow_for(config, prompts=40) as flow, anyio.create_task_group() as group:
            group.start_soon(flow.run, sink)
            while flow.snapshot().reasons.get("check", 0) < 4:
                await anyio.lowlevel.checkpoint()
            await anyio.sleep(0.2)  # nobody can be asked, and the run waits
            module.go.set()
    assert len(found) == 40
    assert refused(found) == dict.fromkeys(sorted(module.first), "check: took longer than 3 s")
    join_checks()


@pytest.mark.parametrize(("concurrency", "calls"), [(1, "4"), (6, r"(6|7|8|9|10|11)")])
async def test_plain_calls_that_never_end_are_not_piled_up(tmp_path: Path, concurrency: int, calls: str) -> None:
    path, module = checks(tmp_path, "go = threading.Event()\ndef check(c): go.wait()")
    config = asking(path, each={"timeout": 0.05, "concurrency": concurrency}, num_stories=5000)
    with (
        anyio.fail_after(60),
        pytest.raises(TooManyRejections, match=rf"'check' has {calls} calls that took longer"),
    ):
        await decide(config)
    module.go.set()
    join_checks()


@pytest.mark.parametrize("word", ["async def", "def"])
async def test_cancelling_leaves_nothing_that_waits(tmp_path: Path, word: str) -> None:
    wait = "await anyio.sleep_forever()" if word == "async def" else "go.wait()"
    path, module = checks(tmp_path, f"now, go = [], threading.Event()\n{word} check(c):\n    now.append(c)\n    {wait}")

    async def sink(_: Sequence[Record]) -> None:
        raise AssertionError("nothing can be decided")

    with anyio.fail_after(20):
        async with flow_for(asking(path)) as flow, anyio.create_task_group() as group:
            group.start_soon(flow.run, sink)
            while len(module.now) < 16:
                await anyio.lowlevel.checkpoint()
            assert flow.snapshot().depths["judging"] == 16
            group.cancel_scope.cancel()
        assert flow.snapshot().depths["judging"] == 0
    module.go.set()
    join_checks()


def test_a_call_that_never_ends_does_not_keep_the_process_from_ending(tmp_path: Path) -> None:
    checks(tmp_path, "def check(c):\n    if c.prompt.index == 3 and c.prompt.attempt == 1: time.sleep(3600)")
    (tmp_path / "c.yaml").write_text(
        "backend: {kind: echo}\nvalidation: {functions: [{function: checks.py:check, timeout: 1}]}\n"
    )
    done = program("run", "c.yaml", "--num-stories", "20", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "stories.run.json").read_text())
    assert manifest["facts"]["last session"]["refused attempts"] == {"check": 1}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return {}", "returned dict; allowed is"),
        ("raise KeyError", "raised KeyError"),
        ("raise SystemExit(3)", "raised SystemExit"),
        ("raise KeyboardInterrupt", "raised KeyboardInterrupt"),
        ("raise GeneratorExit", "raised GeneratorExit"),
        ("raise BaseExceptionGroup('two', [SystemExit(1), KeyError()])", "raised BaseExceptionGroup: two"),
        ("return Odd('too sad')", "too sad"),
        ("return [Odd('too sad')]", "too sad"),
        ("raise Mute", "raised Mute"),
        ("raise Mute(Odd('sad'))", "raised Mute"),
        ("import asyncio; raise asyncio.CancelledError", "raised CancelledError"),
        ("return 7", "returned 7; a score"),
        ("return False", "refused"),
        ("return ['too sad', 'too wet']", "too sad"),
    ],
)
@pytest.mark.parametrize("word", ["async def", "def"])
async def test_whatever_it_does_is_a_reason(tmp_path: Path, word: str, body: str, said: str) -> None:
    path, _ = checks(
        tmp_path,
        f"class Mute(BaseException):\n    def __str__(self): raise SystemExit\n"
        f"class Odd(str):\n    def strip(self): raise SystemExit\n    __len__ = __format__ = __str__ = strip\n"
        f"{word} check(c):\n"
        f"    if c.prompt.index == 2:\n        {body}",
    )
    with anyio.fail_after(20):
        found = await decide(asking(path), prompts=20)
    assert list(refused(found)) == [2]
    assert refused(found)[2].startswith(f"check: {said}")


def poisoned(judge: Callable[[Completion], Verdict], completion: Completion) -> Verdict:
    """As if the model had given numbers that are not finite."""
    error = {"finish_reason": "error", "error": "logits not finite: NaN", "retryable": False}
    return judge(replace(completion, text="", **error))  # type: ignore[arg-type]


@pytest.mark.parametrize(("tenths", "stops"), [(6, True), (5, False)])
async def test_a_run_that_fails_with_errors_stops_long_before_it_is_hopeless(tenths: int, stops: bool) -> None:
    config = config_for(num_stories=300)
    records: list[Record] = []

    async def sink(group: Sequence[Record]) -> None:
        records.extend(group)

    async with flow_for(config) as flow:
        judge = flow.judge

        def now_and_then(completion: Completion) -> Verdict:
            return poisoned(judge, completion) if completion.prompt.index % 10 < tenths else judge(completion)

        flow.judge = now_and_then
        if stops:
            with pytest.raises(TooManyFailures, match=r"1\d\d of the last 200 .* logits not finite \(\d+\)"):
                await flow.run(sink)
        else:
            await flow.run(sink)
    assert [record.index for record in records] == list(range(len(records)))
    assert stops == (len(records) < 300)
    assert {isinstance(record, Rejection) for record in records if record.index % 10 < tenths} == {True}
    assert all(isinstance(record, Story) for record in records if record.index % 10 >= tenths)


@pytest.mark.parametrize(
    ("prompts", "failing", "stops"),
    [(199, 199, True), (40, 21, True), (40, 20, False), (20, 20, True), (19, 19, False)],
)
@pytest.mark.parametrize("goal", [None, 19, 500])
async def test_a_run_without_more_prompts_is_not_complete_if_most_failed(
    prompts: int, failing: int, stops: bool, goal: int | None
) -> None:
    async with flow_for(config_for(num_stories=goal), prompts=prompts) as flow:
        judge = flow.judge
        good = range(prompts - failing)

        def mostly(completion: Completion) -> Verdict:
            return judge(completion) if completion.prompt.index in good else poisoned(judge, completion)

        flow.judge = mostly
        found: list[Record] = []

        async def sink(group: Sequence[Record]) -> None:
            found.extend(group)

        if goal is not None and goal <= len(good):
            await flow.run(sink)
            assert len(found) == goal, "it has what it wants"
        elif stops:
            with pytest.raises(TooManyFailures, match=f"{failing} of the last {prompts} prompts ended with an error"):
                await flow.run(sink)
        elif goal is None:
            await flow.run(sink)
        else:
            with pytest.raises(SourcesEnded):
                await flow.run(sink)


async def test_such_a_run_is_not_complete_when_it_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "tell"}\n' * 30)
    source = {"kind": "jsonl", "path": tmp_path / "p.jsonl"}
    config = config_for(
        num_stories=None, sources=[source], output_path=tmp_path / "s.jsonl", validation={"enabled": False}
    )
    judge = Judge.__call__
    with monkeypatch.context() as patch:
        patch.setattr(Judge, "__call__", lambda self, completion: poisoned(partial(judge, self), completion))
        with pytest.raises(TooManyFailures, match=r"30 of the last 30 .* logits not finite") as caught:
            await asyncgen.run(config)
    assert caught.value.report.outcome == "too many failures"
    for changed in (config, config.model_copy(update={"num_stories": 5})):
        with pytest.raises(TooManyFailures, match=r"30 of the last 30 .* logits not finite") as caught:
            await asyncgen.run(changed)
        assert "the prompts are used up" in str(caught.value)
    with (tmp_path / "p.jsonl").open("a") as file:
        file.write('{"prompt": "tell"}\n' * 3)
    for _ in range(2):
        report = await asyncgen.run(config)
        assert (report.complete, report.snapshot.accepted, report.snapshot.rejected) == (True, 3, 30)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("await asyncio.gather(asyncio.create_task(ends(SystemExit(0))))", "SystemExit 0"),
        ("await asyncio.gather(asyncio.create_task(ends(KeyboardInterrupt())))", "KeyboardInterrupt"),
        ("asyncio.get_running_loop().call_soon(sys.exit, 3)", "SystemExit 3"),
    ],
)
def test_what_ends_the_event_loop_is_an_error_and_no_end_of_the_run(tmp_path: Path, body: str, said: str) -> None:
    """asyncio lets these out of tasks and callbacks that are not ours."""
    (tmp_path / "f.py").write_text(
        "import asyncio, sys\n"
        "async def ends(error):\n"
        "    raise error\n"
        "async def check(text, calls=[]):\n"
        "    calls.append(text)\n"
        f"    if len(calls) == 30:\n        {body}\n"
    )
    settings = ("backend={kind: echo, seconds_per_batch: 0.02}", "validation.functions=[{function: 'f.py:check'}]")
    flags = ("--num-stories", "200", *(part for setting in settings for part in ("--set", setting)))
    done = program("run", *flags, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert f"code of yours ended the event loop with {said}" in done.stderr
    assert "Traceback" not in done.stderr
    assert "of 200 stories" in done.stderr


def test_what_closes_standard_streams_gets_no_words_into_the_files(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("import os\nfor number in range(3):\n    os.close(number)\ndef check(text): ...\n")
    flags = ("--num-stories", "200", "--set", "backend.kind=echo", "--output-path", "s.jsonl")
    done = program("run", *flags, "--set", "validation.functions=[{function: 'f.py:check'}]", cwd=tmp_path)
    assert done.returncode == 0
    assert len(records(tmp_path / "s.jsonl")) == 200
    assert program("verify", "s.jsonl", cwd=tmp_path).returncode == 0


def test_time_in_which_the_process_stood_still_is_no_time_of_a_functions(tmp_path: Path, trials: Trials) -> None:
    """A container that is paused, a laptop asleep: longer than the timeouts of a check and of a source."""
    (tmp_path / "slow.py").write_text(
        """
import asyncio, pathlib

async def prompts(start):
    for number in range(start, 4):
        pathlib.Path("asked").touch()
        await asyncio.sleep(0.5)
        yield f"tell {number}"

async def check(completion):
    pathlib.Path("begun").touch()
    await asyncio.sleep(0.5)
"""
    )
    (tmp_path / "c.yaml").write_text(
        "backend: {kind: echo}\nmax_attempts: 1\nnum_stories: 4\n"
        "sources: [{kind: python, function: slow.py:prompts, timeout: 2}]\n"
        "validation: {functions: [{function: slow.py:check, timeout: 2}]}\n"
    )
    for _ in range(trials(1, 3)):
        begun = (tmp_path / "asked", tmp_path / "begun")
        for path in (*begun, *tmp_path.glob("stories.*")):
            path.unlink(missing_ok=True)
        run = start("run", "c.yaml", cwd=tmp_path)
        for path in begun:
            while not path.exists() and run.poll() is None:
                time.sleep(0.01)
            run.send_signal(signal.SIGSTOP)
            time.sleep(3)
            run.send_signal(signal.SIGCONT)
        _, said = run.communicate(timeout=60)
        assert run.returncode == 0, said
        manifest = json.loads((tmp_path / "stories.run.json").read_text())
        assert manifest["facts"]["last session"]["refused attempts"] == {}, "no text paid for it"


@pytest.mark.parametrize("failing", [20, 1_000_000])
async def test_without_threads_nothing_is_said_about_a_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    path, _ = checks(tmp_path, "def check(c): pass")
    begin, left = threading.Thread.start, [None] * failing

    def start_or_fail(thread: threading.Thread) -> None:
        if thread.name.startswith("asyncgen validator") and left:
            left.pop()
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_fail)
    found: list[Record] = []

    async def sink(group: Sequence[Record]) -> None:
        found.extend(group)

    with anyio.fail_after(60):
        async with flow_for(asking(path, each={"timeout": 0.5}), prompts=40) as flow:
            if failing > 40:
                with pytest.raises(TooManyRejections, match=r"'check' was not called for .* can't start new thread"):
                    await flow.run(sink)
            else:
                await flow.run(sink)
    assert not refused(found)
    assert len(found) == (0 if failing > 40 else 40)

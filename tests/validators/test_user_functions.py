"""Checks of the user's own, in real files, through the whole flow: they overlap, fail, hang, and harm nobody else."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from blockbuster import blockbuster_ctx

from asyncgen.config import Config
from asyncgen.errors import ConfigError
from asyncgen.records import Rejection
from asyncgen.validators import open_validators, validator_files
from tests.flows import Record, config_for, decide, flow_for, texts
from tests.programs import asyncgen as program
from tests.programs import records
from tests.validators.making import asking, checks, refused

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_thread_of_ours_is_left")]


async def test_async_calls_overlap_up_to_the_stated_number(tmp_path: Path) -> None:
    path, module = checks(
        tmp_path,
        """
now = most = 0
full = anyio.Event()

async def check(completion):
    global now, most
    now += 1
    most = max(most, now)
    if now == 5:
        full.set()
    await full.wait()  # for ever, if fewer than five can be here
    await anyio.lowlevel.checkpoint()
    now -= 1
""",
    )
    with anyio.fail_after(20):
        found = await decide(asking(path, each={"concurrency": 5}), prompts=60)
    assert len(found) == 60
    assert not refused(found)
    assert (module.most, module.now) == (5, 0)


async def test_plain_calls_overlap_in_threads_and_do_not_block_the_loop(tmp_path: Path) -> None:
    path, module = checks(
        tmp_path,
        """
barrier = threading.Barrier(4)
threads = set()

def check(completion):
    threads.add(threading.current_thread())
    barrier.wait(20)
""",
    )
    found: list[Record] = []

    async def sink(group: Sequence[Record]) -> None:
        found.extend(group)

    async with flow_for(asking(path, each={"concurrency": 4}), prompts=40) as flow:
        with anyio.fail_after(20), blockbuster_ctx("asyncgen"):
            await flow.run(sink)
    assert len(found) == 40
    assert not refused(found)
    assert threading.main_thread() not in module.threads


async def test_the_loop_runs_on_while_a_plain_call_blocks(tmp_path: Path) -> None:
    path, module = checks(
        tmp_path, "entered, go = threading.Event(), threading.Event()\ndef check(c): entered.set(); go.wait()"
    )

    async def open_the_gate() -> None:
        while not module.entered.is_set():
            await anyio.lowlevel.checkpoint()
        module.go.set()

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(open_the_gate)
            assert len(await decide(asking(path), prompts=5)) == 5


async def test_a_slow_text_holds_up_no_other(tmp_path: Path) -> None:
    """The first one waits until all others have been asked: a barrier per batch would wait for ever."""
    path, _ = checks(
        tmp_path,
        """
asked, all_others = 0, anyio.Event()

async def check(completion):
    global asked
    asked += 1
    if asked == 100:
        all_others.set()
    if completion.prompt.index == 0:
        await all_others.wait()
""",
    )
    with anyio.fail_after(20):
        found = await decide(asking(path, each={"concurrency": 2}), prompts=100)
    assert [record.index for record in found] == list(range(100))


@pytest.mark.parametrize("word", ["async def", "def"])
async def test_what_a_check_does_to_its_completion_is_in_no_record(tmp_path: Path, word: str) -> None:
    path, _ = checks(
        tmp_path,
        f"{word} check(c):\n    c.prompt.selected_words.clear()\n    c.prompt.messages[0]['content'] = 'changed'",
    )
    for story in await decide(asking(path), prompts=20):
        assert story.metadata["selected_words"]
        assert "changed" not in str(story)


async def test_objects_and_functions_that_hand_out_awaitables_are_checks_too(tmp_path: Path) -> None:
    path, _ = checks(
        tmp_path,
        """
class Check:
    async def __call__(self, completion, *, odd):
        if completion.prompt.index % 2 == odd:
            return "is odd"

check = Check()
later = lambda completion, **more: check(completion, **more)
""",
    )
    for name in ("check", "later"):
        each = {"function": f"{path}:{name}", "parameters": {"odd": 1}}
        found = await decide(asking(path, each=each), prompts=10)
        assert refused(found) == dict.fromkeys(range(1, 10, 2), f"{name}: is odd")


async def test_they_are_asked_in_order_and_only_about_what_nothing_else_speaks_against(tmp_path: Path) -> None:
    path, module = checks(
        tmp_path,
        """
asked = {"first": set(), "second": set()}

def check(completion, name, least):
    asked[name].add(completion.prompt.index)
    return completion.prompt.index >= least
""",
    )
    functions = [
        {"function": f"{path}:check", "name": name, "parameters": {"name": name, "least": least}}
        for name, least in (("first", 10), ("second", 20))
    ]
    config = asking(path, bad_share=0.5, validation={"functions": functions})
    async with flow_for(config, prompts=40) as flow:
        found: list[Record] = []

        async def sink(group: Sequence[Record]) -> None:
            found.extend(group)

        await flow.run(sink)
        snapshot = flow.snapshot()
    good = {index for index in range(40) if index not in {n for n, why in refused(found).items() if why[:3] == "too"}}
    assert 5 < len(good) < 35
    assert module.asked == {"first": good, "second": {n for n in good if n >= 10}}
    assert {n for n, why in refused(found).items() if why == "second: refused"} == {n for n in good if 10 <= n < 20}
    assert snapshot.validator_calls == {
        "built-in": 40,
        "first": len(module.asked["first"]),
        "second": len(module.asked["second"]),
    }
    assert set(snapshot.validator_seconds) == set(snapshot.validator_calls)
    assert snapshot.reasons["second"] == len([n for n in good if 10 <= n < 20])


async def test_a_score_counts_by_its_weight(tmp_path: Path) -> None:
    path, _ = checks(tmp_path, "async def check(c): return c.prompt.index / 20")
    plain = await decide(config_for(num_stories=None, max_attempts=1), prompts=20)
    found = await decide(asking(path, each={"weight": 3}), prompts=20)
    for before, after in zip(plain, found, strict=True):
        expected = (before.metadata["quality"] + 3 * after.index / 20) / 4  # type: ignore[operator]
        assert after.metadata["quality"] == pytest.approx(expected, abs=1.1e-4)
        assert isinstance(after, Rejection) == (expected < 0.5)
    assert refused(found)[0].startswith("low quality: 0.2")
    assert texts(await decide(asking(path), prompts=20)) == texts(plain), "without a weight it changes nothing"


def test_killed_and_resumed_with_checks_on_equals_the_whole_run(tmp_path: Path) -> None:
    from tests.faults.test_row_01_kills import kill_and_resume

    (tmp_path / "checks.py").write_text("""
import zlib, anyio

async def spread(completion, every):
    await anyio.sleep(zlib.crc32(completion.text.encode()) % 7 / 1000)
    return zlib.crc32(completion.text.encode()) % every > 0

def score(completion):
    return zlib.crc32(completion.text.encode()) % 10 / 9
""")
    (tmp_path / "c.yaml").write_text("""
backend: {kind: echo, bad_share: 0.2, seconds_per_batch: 0.02}
num_stories: 500
max_attempts: 2
window: 64
validation:
  min_quality: 0.6
  functions:
    - {function: checks.py:spread, parameters: {every: 3}}
    - {function: checks.py:score, weight: 0.8}
""")
    whole = program("run", "c.yaml", "--output-path", "whole.jsonl", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    kills = kill_and_resume(("c.yaml", "--output-path", "killed.jsonl"), tmp_path, 6, 1.5, seed=4)
    assert kills >= 3
    for name in ("{}.jsonl", "{}.rejected.jsonl"):
        assert records(tmp_path / name.format("killed")) == records(tmp_path / name.format("whole"))
    reasons = {
        reason for record in records(tmp_path / "whole.rejected.jsonl") for each in record["reasons"] for reason in each
    }
    assert {"spread: refused"} < reasons
    (tmp_path / "checks.py").write_text((tmp_path / "checks.py").read_text() + "\n# mended\n")
    done = program("run", "c.yaml", "--output-path", "whole.jsonl", "--num-stories", "600", cwd=tmp_path)
    assert done.returncode == 2
    assert ": validation.functions[0].function: content changed" in done.stderr


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ([{"function": "FILE:chek"}], r"functions\[0\]\.function: there is no 'chek' in .*did you mean 'check'"),
        (
            [{"function": "FILE:check", "parameters": {"levl": 1}}],
            r"functions\[0\]\.parameters: .*did you mean 'level'",
        ),
        ([{"function": "FILE:check"}, {"function": "FILE:check"}], r"functions\[1\]: another one is called 'check'"),
        ([{"function": "FILE:needs"}], r"functions\[0\]\.parameters: needs\(c, n\) .*missing a required argument: 'n'"),
        ([{"function": "FILE:none"}], r"functions\[0\]\.parameters: none\(\) .*too many positional arguments"),
        ([{"function": "FILE:check", "name": "too short"}], r"functions\[0\]: a built-in check is called 'too short'"),
        ([{"function": "FILE:check", "name": "built-in"}], r"functions\[0\]: a built-in check is called 'built-in'"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_runs(
    tmp_path: Path, functions: list[dict[str, Any]], message: str
) -> None:
    path, _ = checks(tmp_path, "def check(c, level=1): ...\ndef needs(c, n): ...\ndef none(): ...")
    named = [each | {"function": each["function"].replace("FILE", str(path))} for each in functions]
    config = Config.model_validate({"validation": {"functions": named}})
    with pytest.raises(ConfigError, match=rf"^validation\.{message}"):
        open_validators(config)
    off = Config.model_validate({"validation": {"functions": named, "enabled": False}})
    assert open_validators(off).functions is None


def test_inputs_are_the_code_and_the_name_but_no_path(tmp_path: Path) -> None:
    path, _ = checks(tmp_path, "def check(c): ...")
    functions = [{"function": f"{path}:check"}, {"function": "tests.programs:start"}]
    config = Config.model_validate({"validation": {"functions": functions}})
    from tests import programs

    assert validator_files(config) == {
        "validation.functions[0]": path,
        "validation.functions[0].name": "check",
        "validation.functions[1]": Path(programs.__file__),
        "validation.functions[1].name": "tests.programs:start",
    }

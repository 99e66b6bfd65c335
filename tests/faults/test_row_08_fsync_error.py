"""Row 8: an fsync that fails is final: 1 call, no second one, for the kernel may have dropped the pages and would
report success. The run stops, what was safe stays, and what was not is made again.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from pathlib import Path

import anyio
import pytest

from asyncgen import session
from asyncgen.errors import OutputFailed
from asyncgen.output import open_output
from asyncgen.output import writer as writing
from tests.faults.conftest import Trials
from tests.faults.disk import FailAt, shown
from tests.flows import config_for
from tests.output.making import INPUTS, config_at, lines_of, on_disk, records, take, write_until
from tests.programs import records as read

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("commit_by", ["the clock", "hand", "close"])
async def test_whoever_commits_it_is_never_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit_by: str
) -> None:
    config = config_at(tmp_path)
    await write_until(config, 10)
    calls = []

    def fail(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(writing, "GROUP_SECONDS", 0 if commit_by == "the clock" else 1e9)
        with pytest.raises(OutputFailed, match="Input/output error"):
            async with open_output(config, INPUTS) as output:
                patch.setattr(os, "fsync", fail)
                await output.write(take(records(10), 20))
                if commit_by == "hand":
                    await output.commit()
    assert len(calls) == 1
    assert on_disk(config) == lines_of(take(records(), 10))
    await write_until(config, 40)
    assert on_disk(config) == lines_of(take(records(), 40))


async def test_whichever_of_them_fails_is_the_last_one(memory_path: Path, trials: Trials) -> None:
    """Of opening, committing and replacing the manifest."""
    made = 0
    while True:
        made += 1
        config = config_at(memory_path / str(made))
        fail = FailAt("fsync", made, errno.EIO)
        with shown(memory_path, fail):
            try:
                await write_until(config, 30, group=10)
            except OutputFailed:
                assert fail.counts["fsync"] == made
            else:
                break
    assert trials(made, made) > 5


async def test_what_a_killed_run_left_unsynced_is_given_up_if_it_cannot_be_synced_now(tmp_path: Path) -> None:
    """Else the next start would find it in the kernel's memory, sync it with success, and claim what may be gone."""
    config = config_at(tmp_path)
    await write_until(config, 10)
    safe = on_disk(config)
    stories, rejected = lines_of(take(records(), 25))
    (tmp_path / "stories.jsonl").write_bytes(stories)
    (tmp_path / "stories.rejected.jsonl").write_bytes(rejected)
    manifest = (tmp_path / "stories.run.json").read_bytes()
    for at in (1, 2):
        fail = FailAt("fsync", at, errno.EIO)
        with shown(tmp_path, fail), pytest.raises(OutputFailed, match="Input/output error"):
            await write_until(config, 40)
        assert fail.counts["fsync"] == at
        assert on_disk(config) == safe
        assert (tmp_path / "stories.run.json").read_bytes() == manifest
    await write_until(config, 40)
    assert on_disk(config) == lines_of(take(records(), 40))


async def test_what_can_be_neither_synced_nor_taken_back_is_never_claimed(tmp_path: Path) -> None:
    """The task that waits for the fsync is torn away, so nobody hears that it failed; then nothing can be cut."""
    config = config_at(tmp_path)
    await write_until(config, 10)
    manifest = tmp_path / "stories.run.json"
    opened, begun, torn = threading.Event(), asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def fail(operation: str, path: Path, _: int) -> None:
        if torn.is_set() and operation == "truncate":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        if operation == "fsync" and opened.is_set() and not torn.is_set():
            loop.call_soon_threadsafe(begun.set)
            torn.wait(60)
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with shown(tmp_path, fail), pytest.raises(OutputFailed, match="Input/output error"):
        async with open_output(config, INPUTS) as output:
            said = manifest.read_bytes()
            opened.set()
            await output.write(take(records(10), 20))
            task = loop.create_task(output.commit())
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            torn.set()
    assert manifest.read_bytes() == said
    await write_until(config, 40)
    assert on_disk(config) == lines_of(take(records(), 40))


@pytest.mark.parametrize("failing", [4, 6, 8])
async def test_a_slow_disk_that_fails_is_one_error_and_resumable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """The quiet commit may be in the middle of its fsync while a write waits its turn: one error leaves, not two."""
    config = config_for(num_stories=5000, window=32, seconds_per_batch=0.01, output_path=tmp_path / "s.jsonl")
    real, calls = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= failing:
            time.sleep(0.1)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with anyio.fail_after(60), pytest.raises(OutputFailed, match="Input/output error"):
            await session.run(config)
        assert calls == failing, "a failed fsync is never tried again"
    kept = len(read(tmp_path / "s.jsonl"))
    report = await session.run(config.model_copy(update={"num_stories": kept + 100}))
    assert report.complete
    assert [record["metadata"]["index"] for record in read(tmp_path / "s.jsonl")] == list(range(kept + 100))

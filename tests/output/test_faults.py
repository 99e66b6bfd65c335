"""Disks that fill up and fail: by real limits where the system has them, by a shim for all other moments."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import aiofiles
import anyio
import pytest

from asyncgen.errors import OutputFailed
from asyncgen.output import manifest as manifests
from asyncgen.output import open_output, peek
from asyncgen.output import writer as writing
from asyncgen.output.pair import Pair
from tests.output.making import INPUTS, config_at, lines_of, on_disk, records, take, write_until
from tests.output.test_kills import child

pytestmark = pytest.mark.anyio

NAMESPACE = ("unshare", "-Urm")


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
    return tried.returncode == 0


class Failing:
    """A file whose writes, counted over both files of an output, fail from the ``at``-th on: it is half done."""

    def __init__(self, file: Any, counter: list[int], at: int, number: int) -> None:
        self._file, self._counter, self._at, self._number = file, counter, at, number

    def write(self, data: memoryview) -> int:
        self._counter[0] += 1
        if self._counter[0] == self._at and len(data) > 1:
            return int(self._file.write(data[: len(data) // 2]))
        if self._counter[0] > self._at:
            raise OSError(self._number, os.strerror(self._number))
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def fail_at(monkeypatch: pytest.MonkeyPatch, at: int, number: int = errno.ENOSPC) -> None:
    real, counter = aiofiles.open, [0]

    async def failing_open(*args: Any, **kwargs: Any) -> Any:
        file = await real(*args, **kwargs)
        file._file = Failing(file._file, counter, at, number)
        return file

    monkeypatch.setattr(aiofiles, "open", failing_open)


@pytest.mark.parametrize("at", [*range(1, 40), 60, 90])
async def test_a_write_that_fails_leaves_the_last_commit_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    config = config_at(tmp_path)
    plan = records()
    committed = 0
    with monkeypatch.context() as patch:
        fail_at(patch, at)
        with pytest.raises(OutputFailed, match="No space left on device") as failure:
            async with open_output(config, INPUTS) as output:
                for turn in range(100):
                    await output.write(take(plan, 3))
                    if turn % 4 == 3:
                        await output.commit()
                        committed = output.start
        assert "start the same run again" in str(failure.value)
    assert on_disk(config) == lines_of(take(records(), committed))
    await write_until(config, 400, group=50)
    assert on_disk(config) == lines_of(take(records(), 400))


async def test_after_a_failure_nothing_is_written_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(monkeypatch, 1, errno.EIO)
    async with open_output(config_at(tmp_path), INPUTS) as output:
        before = (tmp_path / "stories.run.json").read_bytes()
        for _ in range(3):
            with pytest.raises(OutputFailed, match="Input/output error"):
                await output.write(take(records(), 3))
            assert output.start == 0
    assert on_disk(config_at(tmp_path)) == (b"", b"")
    assert (tmp_path / "stories.run.json").read_bytes() == before


@pytest.mark.parametrize("commit_by", ["the clock", "hand", "close"])
async def test_a_failed_fsync_is_never_tried_again(
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


async def test_a_manifest_that_cannot_be_written_stops_the_run_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_at(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with pytest.raises(OutputFailed, match="quota"):
        async with open_output(config, INPUTS) as output:
            await output.write(take(records(), 20))
            monkeypatch.setattr(manifests, "replace", fail)
    monkeypatch.undo()
    assert on_disk(config) == lines_of(take(records(), 20))
    assert (await write_until(config, 20)).resumed


async def test_what_cannot_be_cut_now_is_cut_by_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_at(tmp_path)

    async def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        fail_at(patch, 4)
        patch.setattr(Pair, "cut", fail)
        with pytest.raises(OutputFailed, match="No space"):
            await write_until(config, 50)
    assert not all(data.endswith(b"\n") for data in on_disk(config))
    await write_until(config, 50)
    assert on_disk(config) == lines_of(take(records(), 50))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputFailed, match="Permission denied"):
        anyio.run(write_until, config_at(tmp_path), 3)
    assert peek(config_at(tmp_path), INPUTS) is None


@pytest.mark.parametrize("size", [5_000, 20_011, 70_003])
def test_a_limit_of_the_file_size(tmp_path: Path, size: int) -> None:
    with child("limited", tmp_path, size) as process:
        said = json.loads(process.communicate()[0])
    assert "File too large" in said["why"]
    assert said["equal"]


@pytest.mark.skipif(not can_mount(), reason="needs a user namespace that may mount")
@pytest.mark.parametrize("pages", [4, 9, 30])
def test_a_full_disk(tmp_path: Path, pages: int) -> None:
    with child("full", tmp_path, pages * 4096, before=NAMESPACE) as process:
        said = json.loads(process.communicate()[0])
    assert "No space left on device" in said["why"]
    assert said["equal"]

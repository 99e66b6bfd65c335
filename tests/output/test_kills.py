"""Real processes, really killed; and the power cuts that a test cannot make, replayed from what was synced when."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import aiofiles
import anyio
import pytest

from asyncgen.output import peek, verify
from asyncgen.output import writer as writing
from tests.output.child import child
from tests.output.making import INPUTS, config_at, lines_of, on_disk, records, take, write_until
from tests.trials import Trials

pytestmark = pytest.mark.anyio


async def test_killed_at_random_it_goes_on_to_the_same_files(tmp_path: Path, trials: Trials) -> None:
    config = config_at(tmp_path)
    plan = lines_of(take(records(), 20_000))
    moments = random.Random(26)
    for _ in range(trials(8, 20)):
        with child("write", tmp_path, 20_000) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            await anyio.sleep(moments.uniform(0, 0.12))
            process.kill()
        for data, whole in zip(on_disk(config), plan, strict=True):
            assert whole.startswith(data)
    reached = peek(config, INPUTS)
    assert reached is not None
    assert reached.state == "running"
    end = reached.accepted + reached.rejected + 100
    assert 100 < end < 20_000
    await write_until(config, end)
    assert on_disk(config) == lines_of(take(records(), end))
    assert verify(config).problems == []


async def test_killed_before_and_after_every_call_it_goes_on_to_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kill leaves is what the files hold at that moment; so every moment is looked at, half writes too."""
    config = config_at(tmp_path / "run")
    moments = _Moments(tmp_path / "run")
    with monkeypatch.context() as patch:
        moments.record(patch)
        patch.setattr(writing, "GROUP_SECONDS", 0)
        patch.setattr(writing, "MANIFEST_SECONDS", 0)
        await write_until(config, 40, group=2)
        with (tmp_path / "run" / "stories.rejected.jsonl").open("ab") as file:
            file.write(b'{"story_id": "story_torn')
        await write_until(config, 60, group=5)
    assert len(moments.seen) > 100
    plan = lines_of(take(records(), 70))
    for number, files in enumerate(moments.seen):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        await write_until(config_at(folder), 70, group=20)
        assert on_disk(config_at(folder)) == plan


class _Moments:
    """What the folder holds around every call that changes or keeps it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[dict[str, bytes]] = []

    def look(self) -> None:
        files = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        if files not in self.seen[-1:]:
            self.seen.append(files)

    def record(self, patch: pytest.MonkeyPatch) -> None:
        real_open = aiofiles.open

        async def looking_open(*args: Any, **kwargs: Any) -> Any:
            file = await real_open(*args, **kwargs)
            file._file = _Looking(file._file, self.look)
            return file

        patch.setattr(aiofiles, "open", looking_open)
        for name in ("fsync", "replace", "unlink"):
            patch.setattr(os, name, self._around(getattr(os, name)))

    def _around(self, function: Any) -> Any:
        def call(*args: Any) -> Any:
            self.look()
            try:
                return function(*args)
            finally:
                self.look()

        return call


class _Looking:
    """A file that is looked at in the middle of each write."""

    def __init__(self, file: Any, look: Any) -> None:
        self._file, self._look = file, look

    def write(self, data: memoryview) -> int:
        self._look()
        half = self._file.write(data[: len(data) // 2])
        self._look()
        return int(half + self._file.write(data[half:]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

"""Real processes, really killed; and the power cuts that a test cannot make, replayed from what was synced when."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import aiofiles
import anyio
import pytest

from asyncgen.output import Places, peek, verify
from asyncgen.output import manifest as manifests
from asyncgen.output import writer as writing
from asyncgen.output.manifest import Manifest
from tests.output.child import child
from tests.output.making import INPUTS, config_at, lines_of, on_disk, records, take, write_until

pytestmark = pytest.mark.anyio


async def test_killed_at_random_it_goes_on_to_the_same_files(tmp_path: Path) -> None:
    config = config_at(tmp_path)
    plan = lines_of(take(records(), 20_000))
    moments = random.Random(26)
    for _ in range(20):
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


def test_of_two_that_race_one_wins_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    for _ in range(4):
        racers = [child("race", tmp_path) for _ in range(2)]
        for process in racers:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        said = []
        for process in racers:
            assert process.stdout is not None
            said.append(process.stdout.readline())
        for process in racers:
            process.kill()
            process.communicate()
        assert sorted(said) == ["in use\n", "won\n"]


@pytest.mark.parametrize("seed", range(3))
async def test_a_power_cut_loses_at_most_what_was_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Of what was appended since the last fsync any part may be there: all, some, zeros, or nothing."""
    config = config_at(tmp_path / "run")
    places = Places.of(config.output_path)
    draw = random.Random(seed)
    disk = _Disk(places)
    disk.record(monkeypatch)
    monkeypatch.setattr(writing, "GROUP_SECONDS", 1e9)
    monkeypatch.setattr(writing, "MANIFEST_SECONDS", 0)
    states = []
    plan = records()
    async with writing.open_output(config, INPUTS) as output:
        for _ in range(60):
            await output.write(take(plan, draw.randint(1, 6)))
            states.append((disk.state(), output.start))
            if draw.random() < 0.3:
                await output.commit()
                states.append((disk.state(), output.start))
    monkeypatch.undo()

    after = config_at(tmp_path / "after")
    whole = lines_of(take(records(), 400))
    for (durable, written, manifest), start in states:
        shutil.rmtree(tmp_path / "after", ignore_errors=True)
        (tmp_path / "after").mkdir()
        paths = Places.of(after.output_path)
        for path, data, safe in zip((paths.stories, paths.rejected), written, durable, strict=True):
            path.write_bytes(_what_is_left(draw, data, safe))
        paths.manifest.write_bytes(manifest)
        committed = Manifest.model_validate_json(manifest).mark.index
        progress = peek(after, INPUTS)
        found = 0 if progress is None else progress.accepted + progress.rejected
        assert committed <= found <= start
        if draw.random() < 0.2:
            await write_until(after, 400, group=100)
            assert on_disk(after) == whole


async def test_what_a_killed_run_left_in_memory_is_synced_before_it_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_at(tmp_path)
    await write_until(config, 0)
    places = Places.of(config.output_path)
    for path, data in zip((places.stories, places.rejected), lines_of(take(records(), 20)), strict=True):
        path.write_bytes(data)
    disk = _Disk(places)
    disk.record(monkeypatch)
    async with writing.open_output(config, INPUTS) as output:
        assert output.start == Manifest.model_validate_json(disk.manifest).mark.index == 20


class _Disk:
    """What of the two files is on the disk for good: sizes at their last fsync."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.safe = {places.stories: 0, places.rejected: 0}
        self.manifest = b""

    def record(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fsync, replace = os.fsync, manifests.replace

        def noting_fsync(descriptor: int) -> None:
            fsync(descriptor)
            for path in self.safe:
                if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                    self.safe[path] = path.stat().st_size

        def noting_replace(path: Path, manifest: Manifest) -> None:
            assert self.safe[self.places.stories] >= manifest.synced.stories
            assert self.safe[self.places.rejected] >= manifest.synced.rejected
            replace(path, manifest)
            self.manifest = path.read_bytes()

        monkeypatch.setattr(os, "fsync", noting_fsync)
        monkeypatch.setattr(manifests, "replace", noting_replace)

    def state(self) -> tuple[tuple[int, int], tuple[bytes, bytes], bytes]:
        stories, rejected = self.places.stories, self.places.rejected
        return (self.safe[stories], self.safe[rejected]), (stories.read_bytes(), rejected.read_bytes()), self.manifest


def _what_is_left(draw: random.Random, data: bytes, safe: int) -> bytes:
    left = bytearray(data[: draw.choice((safe, len(data), draw.randint(safe, len(data))))])
    if draw.random() < 0.4 and len(left) > safe:
        start = draw.randint(safe, len(left))
        end = draw.choice((len(left), draw.randint(start, len(left))))
        left[start:end] = bytes(end - start)
    return bytes(left)

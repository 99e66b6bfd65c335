"""Row 4: the power is cut at any moment. What was not synced is there, or in part, or as zeros, or not at all; names
that were not synced are the old ones or the new ones. Replayed from what a run wrote and synced: at most one commit
group is lost, and 0 outputs are invalid.
"""

from __future__ import annotations

import io
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from asyncgen.output import Places, open_output
from asyncgen.output import manifest as manifests
from asyncgen.output import writer as writing
from tests.faults.conftest import FULL, Trials
from tests.faults.disk import shown
from tests.output.making import INPUTS, config_at, lines_of, longest, on_disk, put, records, take, write_until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

MADE = take(records(), 200)
NAMES = ("stories.jsonl", "stories.rejected.jsonl")
GOES_ON = 60

Names = dict[str, int]
"""Name -> which file that is."""


@dataclass(slots=True)
class _File:
    number: int
    """Its inode, which another file may get when it is gone."""
    data: bytes = b""
    synced: bytes = b""


@dataclass(frozen=True, slots=True)
class Moment:
    """What a power cut at this moment has to choose from."""

    names: tuple[Names, ...]
    """Those at the last sync of the folder, and after each change since then."""
    files: dict[int, tuple[bytes, bytes]]
    """Of each file: what it holds, and what it held at its last sync."""


@dataclass(slots=True)
class Journal:
    """Looks at a folder before each operation in it."""

    folder: Path
    moments: list[Moment] = field(default_factory=list)
    _files: dict[int, _File] = field(default_factory=dict)
    _names: list[Names] = field(default_factory=lambda: [{}])

    def look(self, operation: str, path: Path, _: int) -> None:
        """The hook."""
        if not self.folder.is_dir():
            return
        names = {each.name: self._file_of(each) for each in self.folder.iterdir()}
        if names != self._names[-1]:
            self._names.append(names)
        self.moments.append(Moment(tuple(self._names), {k: (f.data, f.synced) for k, f in self._files.items()}))
        # It is about to be done, and shows in the next moment.
        if operation == "fsync" and path == self.folder:
            self._names = [names]
        elif operation == "fsync":
            file = self._files[names[path.name]]
            file.synced = file.data

    def keep_all(self) -> None:
        """What is in the folder now has been there for long."""
        self.look("fsync", self.folder, 0)
        for file in self._files.values():
            file.synced = file.data
        self.moments.clear()

    def _file_of(self, path: Path) -> int:
        number = path.stat().st_ino
        known = (key for key in self._names[-1].values() if self._files[key].number == number)
        key = next(known, len(self._files))
        self._files.setdefault(key, _File(number)).data = _read(path)
        return key


def _read(path: Path) -> bytes:
    """Unseen by the hook."""
    with io.FileIO(path) as file:
        return file.readall()


def cut_power(draw: random.Random, moment: Moment, folder: Path) -> None:
    """Writes what is left."""
    for name, key in draw.choice(moment.names).items():
        (folder / name).write_bytes(what_is_left(draw, *moment.files[key]))


def what_is_left(draw: random.Random, data: bytes, synced: bytes) -> bytes:
    if not data.startswith(synced):  # it was cut, or is another's file: the one or the other
        return draw.choice((data, synced, synced[: draw.randint(min(len(data), len(synced)), len(synced))]))
    safe = len(synced)
    left = bytearray(data[: draw.choice((safe, len(data), draw.randint(safe, len(data))))])
    if draw.random() < 0.4 and len(left) > safe:
        start = draw.randint(safe, len(left))
        end = draw.choice((len(left), draw.randint(start, len(left))))
        left[start:end] = bytes(end - start)
    return bytes(left)


async def a_life(folder: Path, draw: random.Random, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that commits now and then, is killed, and another that recovers and goes on."""
    config = config_at(folder)
    with shown(folder, journal.look), monkeypatch.context() as patch:
        patch.setattr(writing, "GROUP_SECONDS", 1e9)
        patch.setattr(writing, "MANIFEST_SECONDS", 0 if draw.random() < 0.5 else 1e9)
        async with open_output(config, INPUTS) as output:
            while output.start < 30:
                await output.write(take(records(output.start), draw.randint(1, 5)))
                if draw.random() < 0.4:
                    await output.commit()
                    moment = journal_now(journal, folder)
                    assert [moment.files[moment.names[-1][name]][1] for name in NAMES] == list(on_disk(config))
            begun = output.start
        for name, data in zip(NAMES, lines_of(MADE[begun:40]), strict=True):  # as a kill leaves it: not synced
            with io.FileIO(folder / name, "ab") as file:
                file.write(data[: len(data) - draw.choice((0, draw.randint(0, 300)))])
        await write_until(config, 45)


def journal_now(journal: Journal, folder: Path) -> Moment:
    journal.look("look", folder, 0)
    return journal.moments[-1]


async def test_at_most_one_group_is_lost_and_the_rest_is_valid(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch, trials: Trials
) -> None:
    draw = random.Random(4)
    wanted, cuts = trials(80, 1200), 0
    for life in range(wanted // 20):
        folder = memory_path / f"life {life}"
        journal = Journal(folder)
        await a_life(folder, draw, journal, monkeypatch)
        assert len(journal.moments) > 60
        for moment in draw.sample(journal.moments, 20):
            cuts += 1
            after = config_at(memory_path / f"after {cuts}")
            after.output_path.parent.mkdir()
            cut_power(draw, moment, after.output_path.parent)
            await goes_on(after.output_path.parent, moment)
    assert cuts == wanted


async def goes_on(folder: Path, moment: Moment) -> None:
    """Opens what is left, which holds at least what was synced, and makes the rest again."""
    config = config_at(folder)
    synced = [next((moment.files[n[name]][1] for n in moment.names if name in n), b"") for name in NAMES]
    written = [moment.files[moment.names[-1][name]][0] if name in moment.names[-1] else b"" for name in NAMES]
    async with open_output(config, INPUTS) as output:
        assert longest(MADE, *map(len, synced)) <= output.start
        assert output.start <= longest(MADE, *(max(map(len, each)) for each in zip(synced, written, strict=True)))
        await output.write(take(records(output.start), GOES_ON - output.start))
    assert on_disk(config) == lines_of(MADE[:GOES_ON])


async def test_while_rejections_make_way_they_are_kept(memory_path: Path, trials: Trials) -> None:
    draw = random.Random(44)
    rejects = list(records(rejects=[True] * 9))
    old = memory_path / "old"
    async with open_output(config_at(old, max_attempts=7), INPUTS) as output:
        await output.write(rejects)
    journal = Journal(old)
    journal.keep_all()
    with shown(old, journal.look):
        await write_until(config_at(old), 12)
    every = [moment for moment in journal.moments for _ in range(20 if os.environ.get(FULL) else 2)]
    assert trials(len(every), len(every)) > 30
    for number, moment in enumerate(every):
        folder = memory_path / str(number)
        folder.mkdir()
        cut_power(draw, moment, folder)
        await write_until(config_at(folder), 20)
        assert on_disk(config_at(folder)) == lines_of(MADE[:20])
        kept = [path.read_bytes() for path in folder.glob("stories.rejected.*.jsonl")]
        assert lines_of(rejects)[1] in kept


async def test_what_a_killed_run_left_in_memory_is_synced_before_it_is_claimed(memory_path: Path) -> None:
    config = config_at(memory_path)
    await write_until(config, 0)
    put(Places.of(config.output_path), *lines_of(MADE[:20]))
    journal = Journal(memory_path)
    with shown(memory_path, journal.look):
        async with open_output(config, INPUTS) as output:
            assert output.start == 20
            claimed = manifests.read(memory_path / "stories.run.json")
            assert claimed is not None
            assert claimed.mark.index == 20
    moment = journal.moments[-1]
    assert tuple(moment.files[moment.names[-1][name]][1] for name in NAMES) == lines_of(MADE[:20])

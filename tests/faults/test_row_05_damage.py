"""Row 5: bytes are flipped so that JSON or order breaks, lines are lost, doubled, swapped or cut. Before ``synced`` a
run refuses what it reads, with the line, and changes nothing, and ``verify`` finds all of it; behind it the rest of the
file is cut off, told, and made again (but for whole JSON that is no record at its place, which no crash leaves: it is
refused there too). 100 % either way.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from asyncgen import session
from asyncgen.config import Config, EchoBackend
from asyncgen.errors import OutputDamaged
from asyncgen.output import Places, open_output, verify
from asyncgen.output import manifest as manifests
from asyncgen.output.lines import Foreign, Garbled, read_line
from asyncgen.output.recovery import examine
from asyncgen.records import Rejection, Story
from tests.faults.conftest import Trials
from tests.output.making import INPUTS, config_at, lines_of, mark_after, on_disk, put, records, take, write_until
from tests.programs import asyncgen
from tests.programs import records as read

pytestmark = pytest.mark.anyio

MADE = take(records(), 30)
FILES = lines_of(MADE)
NAMES = ("stories.jsonl", "stories.rejected.jsonl")

Lines = list[bytes]


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def flip(data: bytes, at: int, bits: int) -> bytes:
    return data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :]


def is_broken(line: bytes, old: bytes, which: int) -> bool:
    """Whether it can be told at all that a line is not what it was: what changes inside a text cannot."""
    kind = (Story, Rejection)[which]
    try:
        return read_line(line, kind, seed=0)[1] != read_line(old, kind, seed=0)[1] or not line.endswith(b"\n")
    except (Garbled, Foreign):
        return True


def flips(draw: random.Random, count: int, begin: tuple[int, int] = (0, 0)) -> list[tuple[int, int, int]]:
    """Places in the two files, from these bytes on, each with the bits to flip, where that breaks JSON, keys, ids,
    counts or lines.
    """
    found: list[tuple[int, int, int]] = []
    while len(found) < count:
        which, bits = draw.randrange(2), 1 << draw.randrange(8)
        at = draw.randrange(begin[which], len(FILES[which]))
        line = FILES[which].rfind(b"\n", 0, at) + 1
        old = FILES[which][line : FILES[which].index(b"\n", at) + 1]
        if is_broken(flip(old, at - line, bits), old, which):
            found.append((which, at, bits))
    return found


def line_at(which: int, at: int) -> int:
    return FILES[which].count(b"\n", 0, at) + 1


async def test_flipped_anywhere_before_synced_verify_names_the_line(memory_path: Path, trials: Trials) -> None:
    await write_until(config_at(memory_path), len(MADE))
    for which, at, bits in flips(random.Random(5), trials(60, 600)):
        path = memory_path / NAMES[which]
        path.write_bytes(flip(FILES[which], at, bits))
        report = verify(config_at(memory_path))
        assert any(f"{path}:{line_at(which, at)}: " in problem for problem in report.problems), (which, at, bits)
        path.write_bytes(FILES[which])
    assert verify(config_at(memory_path)).ok


async def test_flipped_where_a_run_reads_it_is_refused_with_the_line(memory_path: Path, trials: Trials) -> None:
    """All stories, to know repeats by, and the last rejection."""
    config = config_at(memory_path)
    await write_until(config, len(MADE))
    last_rejection = FILES[1].rstrip(b"\n").rfind(b"\n") + 1
    for which, at, bits in flips(random.Random(6), trials(60, 600), (0, last_rejection)):
        line = line_at(which, at)
        path = memory_path / NAMES[which]
        path.write_bytes(flip(FILES[which], at, bits))
        before = files_in(memory_path)
        with pytest.raises(OutputDamaged, match=rf"{path.name}: line {line}: "):
            async with open_output(config, INPUTS, read=list):
                pass
        assert files_in(memory_path) == before
        path.write_bytes(FILES[which])


def test_every_flipped_byte_of_the_last_synced_line_is_refused_or_harmless(memory_path: Path) -> None:
    """Refused if JSON, keys, ids or counts break; what changes inside a text cannot be told."""
    places = Places.of(memory_path / "stories.jsonl")
    made = list(records(rejects=[False, True] * 3 + [False]))
    mark = mark_after(made, 7)
    stories, rejected = lines_of(made)
    last = stories.splitlines(keepends=True)[-1]
    refused = 0
    for at in range(len(stories) - len(last), len(stories)):
        put(places, flip(stories, at, 0x80), rejected)
        try:
            kept = examine(places, mark, seed=0)
        except OutputDamaged as error:
            assert "stories.jsonl: line 4" in str(error)  # noqa: PT017  # refusal is not certain, its text is
            refused += 1
        else:
            assert kept.mark == mark
        assert places.stories.stat().st_size == len(stories)
    assert refused > 0.95 * len(last)


async def test_flipped_behind_synced_it_is_cut_back_told_and_made_again(memory_path: Path, trials: Trials) -> None:
    """What was cut and is no record is kept: it might have been somebody's."""
    synced = 12
    await write_until(config_at(memory_path / "begun"), synced)
    manifest = manifests.read(memory_path / "begun" / "stories.run.json")
    assert manifest is not None
    safe = (manifest.synced.stories, manifest.synced.rejected)
    for number, (which, at, bits) in enumerate(flips(random.Random(7), trials(60, 600), safe)):
        folder = memory_path / str(number)
        config = config_at(folder)
        await write_until(config, 0)
        manifests.replace(folder / "stories.run.json", manifest.model_copy(update={"state": "running"}))
        damaged = [*FILES]
        damaged[which] = flip(FILES[which], at, bits)
        put(Places.of(config.output_path), *damaged)
        begin = FILES[which].rfind(b"\n", 0, at) + 1
        try:
            async with open_output(config, INPUTS) as output:
                assert synced <= output.start < len(MADE)
                await output.write(take(records(output.start), 40 - output.start))
        except OutputDamaged as error:
            # Whole JSON that is no record of this run, or at another place: no crash leaves that.
            assert f"{NAMES[which]}: line {line_at(which, at)}: " in error.message  # noqa: PT017  # see above
            assert on_disk(config) == tuple(damaged)
            continue
        assert on_disk(config) == lines_of(take(records(), 40))
        assert any(NAMES[which] in text for text in output.cuts)
        kept = [data for name, data in files_in(folder).items() if ".cut." in name]
        assert any(data.endswith(damaged[which][begin:]) for data in kept) or b"\n" not in damaged[which][begin:]


DAMAGES: dict[str, Callable[[Lines, int], tuple[Lines, int]]] = {
    "not JSON": lambda lines, n: ([*lines[:n], lines[n][:50] + b"\n", *lines[n + 1 :]], n),
    "another key": lambda lines, n: ([*lines[:n], lines[n].replace(b"word_count", b"words"), *lines[n + 1 :]], n),
    "removed": lambda lines, n: ([*lines[:n], *lines[n + 1 :]], n),
    "twice": lambda lines, n: ([*lines[: n + 1], *lines[n:]], n + 1),
    "swapped": lambda lines, n: ([*lines[:n], lines[n + 1], lines[n], *lines[n + 2 :]], n),
    "glued to the next": lambda lines, n: ([*lines[:n], lines[n].rstrip(b"\n"), *lines[n + 1 :]], n),
    "another line between": lambda lines, n: ([*lines[:n], b"a remark\n", *lines[n:]], n),
    "cut off there": lambda lines, n: ([*lines[:n], lines[n][:70]], n),
    "all that follows lost": lambda lines, n: (lines[:n], n),
    "lost": lambda _lines, _n: ([], 0),
}


def echo_at(folder: Path, stories: int) -> Config:
    values = {"output_path": folder / "stories.jsonl", "backend": EchoBackend(kind="echo"), "num_stories": stories}
    return Config.model_validate(values)


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_run_names_the_line_that_is_damaged_and_touches_nothing(tmp_path: Path, damage: str) -> None:
    """The manifest least of all: it is what says that there is damage."""
    await session.run(echo_at(tmp_path, 30))
    path = tmp_path / "stories.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    for number in (0, 11, 27):
        lines, wrong = DAMAGES[damage](whole, number)
        path.write_bytes(b"".join(lines))
        before = files_in(tmp_path)
        where = f"{path}:{wrong + 1}: " if wrong < len(lines) else f"{path}: the manifest says 30 lines"
        assert any(problem.startswith(where) for problem in verify(path).problems)
        with pytest.raises(OutputDamaged, match=rf"stories\.jsonl: line {wrong + 1}: ") as refusal:
            await session.run(echo_at(tmp_path, 60))
        assert "asyncgen repair" in str(refusal.value)
        assert files_in(tmp_path) == before


async def test_a_text_that_somebody_made_longer_is_said_to_be_that(tmp_path: Path) -> None:
    await session.run(echo_at(tmp_path, 30))
    path = tmp_path / "stories.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"content": "', b'"content": "Well. ', 1))
    with pytest.raises(OutputDamaged, match=r"line 30: .* each line up to there is whole, so one of them was changed"):
        await session.run(echo_at(tmp_path, 60))


async def test_a_line_that_somebody_appended_is_told_and_kept(tmp_path: Path) -> None:
    await session.run(echo_at(tmp_path, 30))
    path = tmp_path / "stories.jsonl"
    for number in (1, 2):
        with path.open("ab") as file:
            file.write(b"a remark, and no end")
        told: list[str] = []
        report = await session.run(echo_at(tmp_path, 30 + number), notice=told.append)
        aside = tmp_path / f"stories.jsonl.cut.{number}"
        (text,) = (text for text in told if "cut 20 bytes" in text)
        assert text == (
            f"{path}: cut 20 bytes behind line {29 + number}, which is not what a killed run leaves; "
            f"they are kept in {aside}"
        )
        assert text in report.notices
        assert aside.read_bytes() == b"a remark, and no end"
    notes = manifests.read(tmp_path / "stories.run.json").notes  # type: ignore[union-attr]  # it is there
    assert ["cut 20 bytes" in note for note in notes] == [True, True]
    assert verify(path).ok


async def test_zeros_that_a_power_cut_left_before_whole_lines_are_kept_and_blamed_on_nobody(tmp_path: Path) -> None:
    """Of two pages only the second one had reached the disk."""
    await session.run(echo_at(tmp_path, 30))
    path = tmp_path / "stories.jsonl"
    safe = path.read_bytes()
    await session.run(echo_at(tmp_path, 40))
    first, *rest = path.read_bytes()[len(safe) :].splitlines(keepends=True)
    await session.run(echo_at(tmp_path / "again", 30))
    path = tmp_path / "again" / "stories.jsonl"
    left = b"\0" * len(first) + b"".join(rest)
    with path.open("ab") as file:
        file.write(left)
    told: list[str] = []
    await session.run(echo_at(tmp_path / "again", 40), notice=told.append)
    (text,) = (text for text in told if " cut " in text)
    aside = path.with_name("stories.jsonl.cut.1")
    assert text.endswith(f"which is not what a killed run leaves; they are kept in {aside}")
    assert aside.read_bytes() == left
    assert verify(path).ok


async def test_what_a_kill_leaves_is_told_and_not_kept(tmp_path: Path) -> None:
    await session.run(echo_at(tmp_path, 30))
    with (tmp_path / "stories.jsonl").open("ab") as file:
        file.write(b'{"story_id": "story_torn')
    told: list[str] = []
    await session.run(echo_at(tmp_path, 31), notice=told.append)
    (text,) = told
    assert text.endswith("cut 24 bytes behind line 30, which a run left when it was interrupted; they are made again")
    assert not any(".cut." in name for name in files_in(tmp_path))


def test_the_command_line_refuses_with_exit_2_and_the_line(tmp_path: Path) -> None:
    def run(stories: int) -> subprocess.CompletedProcess[str]:
        flags = ("--set", "backend.kind=echo", "--output-path", "s.jsonl", "--num-stories", str(stories))
        return asyncgen("run", *flags, cwd=tmp_path)

    assert run(30).returncode == 0
    path = tmp_path / "s.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:10], lines[11], lines[10], *lines[12:]]))
    before = files_in(tmp_path)
    done = run(40)
    assert done.returncode == 2, done.stderr
    assert f"asyncgen: error: {path}: line 11: it says that it is story 12, index 11\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert files_in(tmp_path) == before
    path.write_bytes(b"".join([*lines, b"a remark\n"]))
    done = run(40)
    assert done.returncode == 0, done.stderr
    assert f"{path}: cut 9 bytes behind line 30, which is not what a killed run leaves; they are kept in" in done.stderr
    assert [record["metadata"]["index"] for record in read(path)] == list(range(40))


async def test_a_stop_while_stories_are_read_changes_nothing(tmp_path: Path) -> None:
    config = config_at(tmp_path)
    await write_until(config, 30)
    before = files_in(tmp_path)
    begun = anyio.Event()

    def read_slowly(texts: object) -> None:
        assert texts
        anyio.from_thread.run_sync(begun.set)
        while True:
            anyio.from_thread.check_cancelled()

    async def opening() -> None:
        async with open_output(config, INPUTS, read=read_slowly):
            raise AssertionError

    async with anyio.create_task_group() as group:
        group.start_soon(opening)
        await begun.wait()
        group.cancel_scope.cancel()
    assert files_in(tmp_path) == before
    assert (await write_until(config, 40)).resumed

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from anyio import from_thread, to_thread

from asyncgen.output import open_output, verify
from asyncgen.output.lines import encode
from asyncgen.output.lock import Lock
from asyncgen.output.places import Places
from asyncgen.output.verify import MOST_PROBLEMS
from tests.output.making import INPUTS, config_at, record, records, take, write_until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    await write_until(config_at(tmp_path), 30)
    return tmp_path


def change(path: Path, how: Callable[[list[bytes]], list[bytes]]) -> None:
    path.write_bytes(b"".join(how(path.read_bytes().splitlines(keepends=True))))


async def test_a_whole_output_is_fine(folder: Path) -> None:
    for output in (config_at(folder), folder / "stories.jsonl"):
        report = verify(output)
        assert report.ok
        assert report.accepted + report.rejected == 30


@pytest.mark.parametrize("off", [{"enabled": False}, {"reject_repeats": False}])
async def test_repeats_that_the_run_allowed_are_no_damage(tmp_path: Path, off: dict[str, bool]) -> None:
    config = config_at(tmp_path, validation=off)
    async with open_output(config) as output:
        equal = [replace(each, content="The same.") for each in take(records(rejects=[False] * 5), 5)]
        await output.write(equal)
    report = verify(config)
    assert report.ok, report.problems
    assert report.accepted == 5


async def test_an_absent_output_has_no_manifest(tmp_path: Path) -> None:
    (problem,) = verify(tmp_path / "stories.jsonl").problems
    assert problem.startswith(f"{tmp_path / 'stories.run.json'}: it is missing")


@pytest.mark.parametrize(
    ("how", "what"),
    [
        (lambda lines: [*lines[:4], lines[4][:50] + b"\n", *lines[5:]], "stories.jsonl:5: not JSON"),
        (lambda lines: [*lines[:4], b'{"a": 1}\n', *lines[5:]], "stories.jsonl:5: not the keys"),
        (lambda lines: [*lines[:4], *lines[5:]], "stories.jsonl:5: index"),
        (lambda lines: [*lines[:4], lines[5], lines[4], *lines[6:]], "stories.jsonl:5: index"),
        (lambda lines: [*lines[:4], lines[4], *lines[4:]], "stories.jsonl:6: index"),
        (lambda lines: [*lines[:-1], lines[-1][:-1]], "torn"),
        (lambda lines: lines[:-1], "that is not so"),
        (lambda lines: [*lines[:4], lines[4].replace(b': "story_', b': "story_0'), *lines[5:]], ":5: story_"),
        (lambda lines: [*lines, lines[-1][:40]], "but the run stopped at"),
    ],
)
async def test_damage_is_named(folder: Path, how: Callable[[list[bytes]], list[bytes]], what: str) -> None:
    change(folder / "stories.jsonl", how)
    assert any(what in problem for problem in verify(folder / "stories.jsonl").problems)


async def test_a_rejection_among_the_stories_is_named(folder: Path) -> None:
    change(folder / "stories.jsonl", lambda lines: [encode(record(0, 0, 1, rejects_it=True)), *lines])
    assert any(":1: a rejection in this file" in problem for problem in verify(folder / "stories.jsonl").problems)


async def test_beside_a_run_what_it_made_safe_is_verified(tmp_path: Path) -> None:
    config = config_at(tmp_path)
    async with open_output(config, INPUTS) as output:
        await output.settle({})
        for index in range(0, 40, 5):
            await output.write(take(records(index), 5))
            if index == 20:
                await output.settle({})
            with (tmp_path / "stories.jsonl").open("ab") as file:
                file.write(b"half of a li")  # what a reader may see of a write
            report = verify(config)
            assert report.ok, report.problems
            assert report.accepted + report.rejected == (25 if index >= 20 else 0)
            assert "The run is going on" in report.text()
            os.truncate(tmp_path / "stories.jsonl", (tmp_path / "stories.jsonl").stat().st_size - 12)
    report = verify(config)
    assert (report.ok, report.accepted + report.rejected, report.in_use) == (True, 40, False)


@pytest.mark.parametrize("ends", [False, True])
async def test_what_a_run_that_begins_meanwhile_does_is_no_damage(folder: Path, ends: bool) -> None:
    stories = folder / "stories.jsonl"
    async with AsyncExitStack() as stack:

        async def run() -> None:
            output = await stack.enter_async_context(open_output(config_at(folder), INPUTS))
            await output.write(take(records(30), 200))
            if ends:
                await stack.aclose()
            else:
                with stories.open("ab") as file:
                    file.write(b"half of a li")

        def key(text: str) -> str:
            if not begun:
                begun.append(text)
                from_thread.run(run)
            return text

        begun: list[str] = []
        report = await to_thread.run_sync(lambda: verify(stories, key=key))
        assert begun
        assert report.ok, report.problems
        assert report.in_use
        assert report.accepted + report.rejected == (230 if ends else 30)


async def test_nothing_beyond_what_was_safe_is_judged_while_a_run_begins(folder: Path) -> None:
    """It holds the lock, and the manifest is still that of the run before."""
    with (folder / "stories.jsonl").open("ab") as file:
        file.write(b"half of a li")
    assert not verify(folder / "stories.jsonl").ok
    lock = Lock(Places.of(folder / "stories.jsonl"))
    lock.take()
    report = verify(folder / "stories.jsonl")
    lock.release()
    assert (report.ok, report.in_use) == (True, True)


async def test_real_damage_is_named_beside_a_run_too(folder: Path) -> None:
    change(folder / "stories.jsonl", lambda lines: [*lines[:4], b"x" * (len(lines[4]) - 1) + b"\n", *lines[5:]])
    async with open_output(config_at(folder), INPUTS) as output:
        await output.write(take(records(30), 20))
        assert any("stories.jsonl:5: not JSON" in problem for problem in verify(folder / "stories.jsonl").problems)


@pytest.mark.parametrize("manifest", [None, "{", "kept"])
async def test_only_what_a_run_would_cut_is_said_to_be_cut(folder: Path, manifest: str | None) -> None:
    with (folder / "stories.jsonl").open("ab") as file:
        file.write(b'{"story_id": "story_torn')
    if manifest is None:
        (folder / "stories.run.json").unlink()
    elif manifest == "{":
        (folder / "stories.run.json").write_text(manifest)
    (torn,) = (problem for problem in verify(folder / "stories.jsonl").problems if "torn: it has no end" in problem)
    assert ("the next run cuts it off" in torn) == (manifest == "kept")


async def test_repeats_are_named(folder: Path) -> None:
    report = verify(folder / "stories.jsonl", key=lambda text: text.rstrip("0123456789 "))
    assert any(problem.endswith("repeats an earlier story") for problem in report.problems)


async def test_a_broken_manifest_is_a_problem(folder: Path) -> None:
    (folder / "stories.run.json").write_text("{")
    assert "not a manifest" in verify(folder / "stories.jsonl").problems[0]


async def test_problems_beyond_the_first_hundred_are_counted(folder: Path) -> None:
    (folder / "stories.jsonl").write_bytes(b"{}\n" * 500)
    report = verify(folder / "stories.jsonl")
    assert len(report.problems) == MOST_PROBLEMS
    assert report.unnamed > 300

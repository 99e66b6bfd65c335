from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from blockbuster import blockbuster_ctx

from asyncgen.errors import ConfigError, OutputDamaged, OutputFailed, OutputInUse, ResumeRefused
from asyncgen.output import manifest as manifests
from asyncgen.output import open_output, peek
from asyncgen.output.pair import Pair
from asyncgen.records import Rejection, Story
from tests.output.making import INPUTS, config_at, lines_of, on_disk, records, take, write_until

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("asyncgen-output")]


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


async def test_each_index_once_in_order_over_any_number_of_runs(tmp_path: Path) -> None:
    config = config_at(tmp_path)
    for end in (1, 1, 2, 30, 31, 60):
        output = await write_until(config, end)
        assert output.start == output.accepted + output.rejected == end
    assert on_disk(config) == lines_of(take(records(), 60))


async def test_what_is_written_can_be_read_at_once(tmp_path: Path) -> None:
    config = config_at(tmp_path)
    async with open_output(config, INPUTS) as output:
        for count, each in enumerate(take(records(), 9), 1):
            await output.write([each])
            assert on_disk(config) == lines_of(take(records(), count))


async def test_resumed_complete_and_notes(tmp_path: Path) -> None:
    async with open_output(config_at(tmp_path, num_stories=4), INPUTS) as output:
        assert (output.start, output.resumed, output.complete, output.notes) == (0, False, False, ())
        await output.write(take(records(), 9))
        assert output.complete
    for goal, complete in ((4, True), (3, True), (50, False), (None, False)):
        async with open_output(config_at(tmp_path, num_stories=goal), INPUTS) as output:
            assert (output.start, output.resumed, output.complete) == (9, True, complete)


async def test_what_may_change_is_noted(tmp_path: Path) -> None:
    await write_until(config_at(tmp_path), 5)
    changed = config_at(tmp_path, generation={"batch_size": 3}, window=99)
    async with open_output(changed, INPUTS, versions={"python": "9.9"}) as output:
        assert output.notes[0] == "generation.batch_size: was 8, now 3"
        assert output.notes[1].startswith("python: was 3.")
        assert len(output.notes) == 2
    found = manifests.read(tmp_path / "stories.run.json")
    assert found is not None
    assert "index 5: generation.batch_size: was 8, now 3" in found.notes[0]


async def test_what_changes_records_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    config = config_at(tmp_path)
    await write_until(config, 5)
    with (tmp_path / "stories.jsonl").open("ab") as file:
        file.write(b'{"story_id": "story_torn')
    before = files_in(tmp_path)
    changed = config_at(tmp_path, generation={"temperature": 0.7}, seed=3)
    for inputs in (INPUTS, {"vocabulary": "other"}):
        with pytest.raises(ResumeRefused) as refusal:
            async with open_output(changed, inputs):
                pass
        with pytest.raises(ResumeRefused) as peeked:
            peek(changed, inputs)
        assert str(peeked.value) == str(refusal.value)
        assert "\n  generation.temperature: was 0.8, now 0.7" in str(refusal.value)
        assert "\n  seed: was 0, now 3" in str(refusal.value)
    assert "vocabulary_path: content changed" in str(refusal.value)
    assert files_in(tmp_path) == before


async def test_peek_says_how_far_it_is_and_changes_nothing(tmp_path: Path) -> None:
    absent = config_at(tmp_path / "absent")
    assert peek(absent, INPUTS) is None
    assert not (tmp_path / "absent").exists()
    output = await write_until(config_at(tmp_path), 20)
    (tmp_path / "stories.lock").unlink()
    with (tmp_path / "stories.jsonl").open("ab") as file:
        file.write(b'{"story_id": "story_torn')
    before = files_in(tmp_path)
    for goal, complete in ((output.accepted, True), (output.accepted + 1, False), (1, True), (None, False)):
        progress = peek(config_at(tmp_path, num_stories=goal), INPUTS)
        assert progress is not None
        assert (progress.accepted, progress.rejected) == (output.accepted, output.rejected)
        assert (progress.complete, progress.state) == (complete, "stopped")
    assert files_in(tmp_path) == before


async def test_a_finished_run_opens_without_reading_it(tmp_path: Path) -> None:
    """Only last lines are read: what is wrong before them is for ``verify`` to find."""
    config = config_at(tmp_path)
    await write_until(config, 30)
    stories, rejected = on_disk(config)
    (tmp_path / "stories.jsonl").write_bytes(b"\0" * 300 + stories[300:])
    (tmp_path / "stories.rejected.jsonl").write_bytes(b"\0" * 300 + rejected[300:])
    assert (await write_until(config, 31)).start == 31


async def test_damage_is_refused_and_not_touched(tmp_path: Path) -> None:
    config = config_at(tmp_path)
    output = await write_until(config, 30)
    path = tmp_path / "stories.jsonl"
    path.write_bytes(path.read_bytes()[:-20] + b"\0" * 20)
    before = files_in(tmp_path)
    with pytest.raises(OutputDamaged, match=rf"stories\.jsonl: line {output.accepted}: "):
        await write_until(config, 31)
    assert files_in(tmp_path) == before


@pytest.mark.parametrize(
    "wrong",
    [
        take(records(1), 1),
        take(records(), 2)[::-1],
        [take(records(), 1)[0]] * 2,
        [replace(take(records(), 1)[0], prompt_id="prompt_000007")],
        [*take(records(), 5), replace(take(records(5), 1)[0], generation_time=float("nan"))],
        [*take(records(), 100), *take(records(), 1)],
    ],
)
async def test_records_out_of_place_are_refused_before_anything_is_written(
    tmp_path: Path, wrong: list[Story | Rejection]
) -> None:
    config = config_at(tmp_path)
    async with open_output(config, INPUTS) as output:
        with pytest.raises(ValueError, match=r"index|due|JSON"):
            await output.write(wrong)
        assert on_disk(config) == (b"", b"")
        await output.write(take(records(), 100))
    assert on_disk(config) == lines_of(take(records(), 100))


async def test_nothing_to_write_is_no_error(tmp_path: Path) -> None:
    async with open_output(config_at(tmp_path), INPUTS) as output:
        await output.write([])
        await output.commit()
    with pytest.raises(RuntimeError, match="closed"):
        await output.write(take(records(), 1))


async def test_two_outputs_of_one_place_in_one_process(tmp_path: Path) -> None:
    config = config_at(tmp_path)
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "stories.jsonl")
    linked = config.model_copy(update={"output_path": tmp_path / "link.jsonl"})
    async with open_output(config, INPUTS) as output:
        for other in (config, linked):
            with pytest.raises(OutputInUse, match=r"stories\.jsonl is being written"):
                async with open_output(other, INPUTS):
                    pass
        await output.write(take(records(), 3))
    assert (await write_until(linked, 5)).start == 5


async def test_folders_are_made_and_what_is_no_file_is_refused(tmp_path: Path) -> None:
    config = config_at(tmp_path / "a" / "b")
    await write_until(config, 3)
    assert on_disk(config) == lines_of(take(records(), 3))
    for path in (tmp_path, Path("/dev/full")):
        with pytest.raises(ConfigError, match="not a regular file"):
            await write_until(config_at(tmp_path, output_path=path), 3)
    below_a_file = config_at(tmp_path / "a" / "b" / "stories.jsonl")
    with pytest.raises(OutputFailed, match="cannot be written"):
        await write_until(below_a_file, 3)


async def test_the_loop_is_never_blocked(tmp_path: Path) -> None:
    with blockbuster_ctx():
        await write_until(config_at(tmp_path), 500, group=100)
        await write_until(config_at(tmp_path), 510)


async def test_groups_are_committed_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 1000.0
    syncs: list[float] = []

    async def count(pair: object) -> None:
        assert pair
        syncs.append(clock)

    monkeypatch.setattr(time, "monotonic", lambda: clock)
    monkeypatch.setattr(Pair, "sync", count)
    manifests_at: list[float] = []
    real = manifests.replace

    def replace_and_note(path: Path, manifest: manifests.Manifest) -> None:
        manifests_at.append(clock)
        real(path, manifest)

    monkeypatch.setattr(manifests, "replace", replace_and_note)
    plan = records()
    async with open_output(config_at(tmp_path), INPUTS) as output:
        for _ in range(101):
            await output.write(take(plan, 1))
            clock += 0.25
    assert syncs == [1000.0 + 0.5 * n for n in range(1, 51)] + [clock]
    assert manifests_at == [1000.0, 1010.0, 1020.0, clock]


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("delay", [0.0, 0.001, 0.002, 0.005, 0.01])
async def test_cancelled_anywhere_the_files_are_whole(tmp_path: Path, native: bool, delay: float) -> None:
    config = config_at(tmp_path)

    async def write_on() -> None:
        await write_until(config, 100_000, group=7)

    if native:
        task = asyncio.get_running_loop().create_task(write_on())
        await asyncio.sleep(delay)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        with anyio.move_on_after(delay):
            await write_on()
    plan = lines_of(take(records(), 2000))
    for data, whole in zip(on_disk(config), plan, strict=True):
        assert whole.startswith(data)
        assert not data or data.endswith(b"\n")
    progress = peek(config, INPUTS)
    if progress is not None:
        assert progress.state == "stopped"
    await write_until(config, 2000, group=500)
    assert on_disk(config) == plan


async def test_a_write_under_way_is_finished_under_cancellation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_at(tmp_path)
    real = Pair._append
    begun = anyio.Event()

    async def slowly(pair: Pair, file: object, data: bytes) -> None:
        begun.set()
        for start in range(0, len(data), 50):
            await asyncio.sleep(0)
            await real(pair, file, data[start : start + 50])  # type: ignore[arg-type]

    monkeypatch.setattr(Pair, "_append", slowly)
    async with open_output(config, INPUTS) as output:
        async with anyio.create_task_group() as group:
            group.start_soon(output.write, take(records(), 20))
            await begun.wait()
            group.cancel_scope.cancel()
        assert output.start == 20
    assert on_disk(config) == lines_of(take(records(), 20))


async def test_a_write_torn_away_by_asyncio_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_at(tmp_path)
    real = Pair._append
    begun = anyio.Event()

    async def stuck(pair: Pair, file: object, data: bytes) -> None:
        await real(pair, file, data[:50])  # type: ignore[arg-type]
        begun.set()
        await asyncio.sleep(60)

    plan = records()
    async with open_output(config, INPUTS) as output:
        await output.write(take(plan, 5))
        await output.commit()
        monkeypatch.setattr(Pair, "_append", stuck)
        task = asyncio.get_running_loop().create_task(output.write(take(plan, 5)))
        await begun.wait()
        with anyio.move_on_after(0.05) as waiting:
            await output.write(take(records(5), 5))
        assert waiting.cancelled_caught, "one write waits for the other"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(RuntimeError, match="torn away"):
            await output.write(take(records(5), 5))
    assert on_disk(config) == lines_of(take(records(), 5))
    monkeypatch.undo()
    await write_until(config, 30)
    assert on_disk(config) == lines_of(take(records(), 30))


async def test_a_commit_torn_away_by_asyncio_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_at(tmp_path)
    begun = anyio.Event()

    async def stuck(_: Pair) -> None:
        begun.set()
        await asyncio.sleep(60)

    plan = records()
    async with open_output(config, INPUTS) as output:
        await output.write(take(plan, 5))
        await output.commit()
        reasons = output.reasons
        await output.write(take(plan, 15))
        assert output.reasons != reasons
        with monkeypatch.context() as patch:
            patch.setattr(Pair, "sync", stuck)
            task = asyncio.get_running_loop().create_task(output.commit())
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert (output.start, output.reasons) == (5, reasons)
    found = manifests.read(tmp_path / "stories.run.json")
    assert found is not None
    assert (found.mark.index, found.totals.reasons) == (5, reasons)
    assert on_disk(config) == lines_of(take(records(), 5))


async def test_only_what_was_written_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.fsync, []

    def count(descriptor: int) -> None:
        calls.append(descriptor)
        real(descriptor)

    async with open_output(config_at(tmp_path), INPUTS) as output:
        monkeypatch.setattr(os, "fsync", count)
        await output.write(take(records(), 1))
        for _ in range(3):
            await output.commit()
        assert len(calls) == 1

"""Row 6, operation by operation: the N-th write, fsync, truncate, rename or open fails, for N = 1, 2, 3, ... until the
run completes without failing. 0 invalid files: it stops with OutputFailed (exit 74) or completes, and the same run then
goes on to the files of one that never failed.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
from anyio import to_thread

from asyncgen import session
from asyncgen.config import Config, EchoBackend
from asyncgen.errors import ConfigError, OutputFailed
from asyncgen.output import verify
from asyncgen.output import writer as writing
from tests.faults.conftest import FULL, Trials
from tests.faults.disk import OPERATIONS, FailAt, shown
from tests.output.making import INPUTS, config_at, lines_of, on_disk, records, take, write_until
from tests.programs import environment
from tests.programs import records as read

NUMBERS = {
    "write": errno.ENOSPC,
    "fsync": errno.EIO,
    "truncate": errno.EIO,
    "rename": errno.EDQUOT,
    "open": errno.EMFILE,
}
MODES: dict[str, dict[str, bool]] = {
    "once": {},
    "from then on": {"lasting": True},
    "from then on, and nothing can be cut": {"lasting": True, "cuts": True},
    "after half a write": {"lasting": True, "short": True},
    "after half a write, and nothing can be cut": {"lasting": True, "short": True, "cuts": True},
    "half a write alone": {"short": True},
}
END = 20
STRANGE = b"a line that somebody wrote\n"
"""Set aside before it is cut."""


def anew_at(folder: Path) -> Config:
    return config_at(folder, max_attempts=7)


async def begin(folder: Path, state: str) -> Config:
    """What the run that fails finds; the configuration to go on with."""
    config = config_at(folder / "out")
    if state == "begun":
        await write_until(config, 8)
        with (folder / "out" / "stories.jsonl").open("ab") as file:
            file.write(b'{"story_id": "story_torn')
        with (folder / "out" / "stories.rejected.jsonl").open("ab") as file:
            file.write(STRANGE)
    if state == "anew":
        async with writing.open_output(anew_at(folder / "out"), INPUTS) as output:
            await output.write(list(records(rejects=[True] * 5)))
    return config


def files_of(config: Config) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in config.output_path.parent.glob("*")}


def kept_of(state: str) -> list[bytes]:
    """What must be in files of its own in the end."""
    return {"new": [], "begun": [STRANGE], "anew": [lines_of(records(rejects=[True] * 5))[1]]}[state]


async def fail_and_go_on(folder: Path, state: str, fail: FailAt, *, may_cut: bool) -> bool:
    """One trial; whether the operation was reached."""
    config = await begin(folder, state)
    before = on_disk(config)
    whole = lines_of(take(records(), END))
    failed = False
    with shown(folder, fail):
        try:
            await write_until(config, END, group=4)
        except OutputFailed as error:
            assert fail.reached
            assert "cannot be written" in error.message  # noqa: PT017  # it need not fail
            failed = True
    assert failed or on_disk(config) == whole
    left = on_disk(config)
    for data, old, all_of_it in zip(left, before, whole, strict=True):
        assert data in (old, b"") or all_of_it.startswith(data), "neither what was there nor a beginning of what is due"
    if may_cut and left != before:
        assert left == lines_of(take(records(), sum(data.count(b"\n") for data in left))), "a file is ahead, or torn"
    assert ".new" not in " ".join(files_of(config)), "half a manifest"
    await write_until(config, END, group=20)
    assert on_disk(config) == whole
    assert verify(config).ok
    for data in kept_of(state):
        assert data in files_of(config).values()
    return fail.reached


@pytest.mark.anyio
@pytest.mark.parametrize("state", ["new", "begun", "anew"])
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_whichever_operation_fails_nothing_is_lost(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch, trials: Trials, operation: str, state: str
) -> None:
    monkeypatch.setattr(writing, "GROUP_SECONDS", 0)
    monkeypatch.setattr(writing, "MANIFEST_SECONDS", 0)
    step = 1 if os.environ.get(FULL) else 10
    done = 0
    modes = {mode: how for mode, how in MODES.items() if operation == "write" or not how.get("short")}
    for mode, how in modes.items():
        for at in count(1, step):
            done += 1
            fail = FailAt(operation, at, NUMBERS[operation], **how)
            may_cut = not (operation == "truncate" or how.get("cuts"))
            if not await fail_and_go_on(memory_path / f"{mode} {at}", state, fail, may_cut=may_cut):
                break
    trials(done, done)
    assert done > len(modes) or (operation == "truncate" and state != "begun")


@pytest.mark.anyio
@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES])
@pytest.mark.parametrize("operation", ["open", "truncate", "write", "rename"])
async def test_what_a_killed_run_left_is_kept_whatever_fails_when_the_next_one_begins(
    memory_path: Path, trials: Trials, operation: str, number: int
) -> None:
    """Only a failed fsync says that it may be gone already."""
    torn = b'{"story_id": "story_torn'
    for at in count(1):
        config = config_at(memory_path / str(at))
        await write_until(config, 8)
        whole = lines_of(take(records(), 100))
        for name, data in zip(("stories.jsonl", "stories.rejected.jsonl"), whole, strict=True):
            (config.output_path.parent / name).write_bytes(data + torn)
        fail = FailAt(operation, at, number)
        with shown(memory_path, fail):
            try:
                await write_until(config, 100)
            except (OutputFailed, ConfigError):
                assert fail.reached
        assert tuple(data.removesuffix(torn) for data in on_disk(config)) == whole
        if not fail.reached:
            break
    assert trials(at, at) > 1


ECHO = {"backend": EchoBackend(kind="echo", bad_share=0.4, distinct=4000), "max_attempts": 2}


def echo_at(folder: Path, stories: int) -> Config:
    return Config.model_validate(ECHO | {"num_stories": stories, "output_path": folder / "s.jsonl"})


async def both(folder: Path, stories: int) -> list[list[dict[str, object]]]:
    """The records when the run in ``folder`` has come to its end."""
    assert (await session.run(echo_at(folder, stories))).complete
    assert verify(folder / "s.jsonl").ok
    return [read(folder / name) for name in ("s.jsonl", "s.rejected.jsonl")]


def failing(folder: Path, operation: str, at: int) -> subprocess.CompletedProcess[str]:
    echo = "backend={kind: echo, bad_share: 0.4, distinct: 4000}"
    arguments = ("--set", echo, "--set", "max_attempts=2", "--num-stories", "60", "--output-path", "s.jsonl")
    return subprocess.run(
        [sys.executable, "-m", "tests.faults.failing", "run", *arguments],
        cwd=folder,
        env=environment(ASYNCGEN_FAIL=f"{operation}:{at}:{NUMBERS[operation]}"),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
async def begun(tmp_path: Path) -> Path:
    """Some records, and something to cut in both files."""
    folder = tmp_path / "begun"
    for data in await both(folder, 20):
        assert data
    for name in ("s.jsonl", "s.rejected.jsonl"):
        with (folder / name).open("ab") as file:
            file.write(b'{"story_id": "story_torn')
    return folder


@pytest.mark.anyio
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_the_command_line_says_so_and_the_run_goes_on(
    tmp_path: Path, begun: Path, trials: Trials, operation: str
) -> None:
    whole = await both(tmp_path / "whole", 60)
    places = {"truncate": (1, 2), "rename": (1, 2, 3)}.get(operation, (2, 5, 9))
    for at in places[: trials(1, len(places))]:
        folder = tmp_path / str(at)
        shutil.copytree(begun, folder)
        done = await to_thread.run_sync(failing, folder, operation, at)
        assert done.returncode == 74, done.stderr
        why = os.strerror(NUMBERS[operation])
        assert f"asyncgen: error: {folder / 's.jsonl'} cannot be written: {why}\n" in done.stderr
        assert "mend the cause and start the same run again" in done.stderr
        assert "Traceback" not in done.stderr
        assert await both(folder, 60) == whole

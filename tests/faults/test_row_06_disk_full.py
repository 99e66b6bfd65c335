"""Row 6: the disk is full, or takes nothing any more. The run stops with OutputFailed (exit 74), the files stay valid,
and the same run goes on: 0 invalid files over the failing writes 1 to 200, a small file system that is really full, and
a folder that vanishes, moves or becomes read-only.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from asyncgen.errors import ConfigError, OutputDamaged, OutputFailed
from asyncgen.output import manifest as manifests
from asyncgen.output import open_output, peek, verify
from tests.faults.conftest import FULL, Trials
from tests.faults.disk import FailAt, shown
from tests.output.child import child
from tests.output.making import INPUTS, config_at, lines_of, on_disk, records, take, write_until
from tests.programs import ECHO, asyncgen, shell
from tests.programs import records as read

pytestmark = pytest.mark.anyio

NAMESPACE = ("unshare", "-Urm")


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
    return tried.returncode == 0


needs_mounts = pytest.mark.skipif(
    not can_mount(), reason="needs a user namespace that may mount; the failing operations are tried all the same"
)


async def test_a_write_that_fails_leaves_the_last_commit_and_the_run_goes_on(memory_path: Path, trials: Trials) -> None:
    """The N-th write is half done, like the last one before a disk is full, and those that follow fail."""
    chosen = range(1, 201, 1 if os.environ.get(FULL) else 9)
    assert trials(len(chosen), len(chosen)) > 20
    for at in chosen:
        config = config_at(memory_path / str(at))
        plan = records()
        committed = 0
        with (
            shown(memory_path, FailAt("write", at, errno.ENOSPC, lasting=True, short=True)),
            pytest.raises(OutputFailed, match="No space left on device") as failure,
        ):
            async with open_output(config, INPUTS) as output:
                for turn in range(150):
                    await output.write(take(plan, 3))
                    if turn % 4 == 3:
                        await output.commit()
                        committed = output.start
        assert "start the same run again" in str(failure.value)
        assert on_disk(config) == lines_of(take(records(), committed))
        await write_until(config, 500, group=50)
        assert on_disk(config) == lines_of(take(records(), 500))


async def test_a_short_write_is_no_failure(memory_path: Path) -> None:
    for at in (2, 3, 9):
        config = config_at(memory_path / str(at))
        short = FailAt("write", at, errno.ENOSPC, short=True)
        with shown(memory_path, short):
            await write_until(config, 40)
        assert short.reached
        assert on_disk(config) == lines_of(take(records(), 40))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EDQUOT])
async def test_after_a_failure_nothing_is_written_any_more(memory_path: Path, number: int) -> None:
    fail = FailAt("write", 2, number)  # the first is the manifest's
    with shown(memory_path, fail):
        async with open_output(config_at(memory_path), INPUTS) as output:
            before = (memory_path / "stories.run.json").read_bytes()
            for _ in range(3):
                with pytest.raises(OutputFailed, match=os.strerror(number)):
                    await output.write(take(records(), 3))
                assert output.start == 0
    assert fail.counts["write"] == 2
    assert on_disk(config_at(memory_path)) == (b"", b"")
    assert (memory_path / "stories.run.json").read_bytes() == before


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


def moved(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def replaced(folder: Path) -> None:
    """As ``sed -i`` does it."""
    path = folder / "stories.jsonl"
    (folder / "new").write_bytes(path.read_bytes())
    (folder / "new").rename(path)


def one_removed(folder: Path) -> None:
    (folder / "stories.rejected.jsonl").unlink()


CHANGES: dict[str, Callable[[Path], object]] = {
    "removed": shutil.rmtree,
    "moved": moved,
    "one file replaced": replaced,
    "one file removed": one_removed,
}


@pytest.mark.parametrize("change", CHANGES)
async def test_what_is_not_at_its_place_any_more_stops_the_run_within_a_group(tmp_path: Path, change: str) -> None:
    """Nobody's permission is needed for that, nor does a write fail: a file without a name takes them all."""
    folder = tmp_path / "run"
    config = config_at(folder)
    async with open_output(config, INPUTS) as output:
        await output.write(take(records(), 20))
        await output.settle({})
        safe = output.start
        CHANGES[change](folder)
        await output.write(take(records(20), 20))
        with pytest.raises(OutputFailed, match="was moved, removed or replaced while the run was writing it"):
            await output.commit()
        assert output.start == safe
    if change == "moved":
        folder.with_name("elsewhere").rename(folder)
    if change == "one file removed":
        with pytest.raises(OutputDamaged, match=r"stories\.rejected\.jsonl: line 1: missing"):
            await write_until(config, 60)
        return
    await write_until(config, 60)
    assert on_disk(config) == lines_of(take(records(), 60))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere; read-only mounts stop it, see below")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="Permission denied"):
        anyio.run(write_until, config_at(tmp_path), 3)
    assert peek(config_at(tmp_path), INPUTS) is None


@needs_mounts
def test_a_folder_that_becomes_read_only(tmp_path: Path) -> None:
    with child("read_only", tmp_path, before=NAMESPACE) as process:
        said = json.loads(process.communicate()[0])
    for why in (said["why"], said["again"]):
        assert "Read-only file system" in why
        assert "what was committed is safe" in why
    assert said["equal"]


@needs_mounts
@pytest.mark.parametrize("pages", [4, 9, 30])
def test_a_full_disk(tmp_path: Path, pages: int) -> None:
    with child("full", tmp_path, pages * 4096, before=NAMESPACE) as process:
        said = json.loads(process.communicate()[0])
    assert "No space left on device" in said["why"]
    assert said["equal"]


SMALL_DISK = """
set -e
mount -t tmpfs -o size=64k tmpfs out
code=0; {run} --num-stories 400 --set backend.seconds_per_batch=0.2 || code=$?
cp out/s.jsonl out/s.rejected.jsonl out/s.run.json full/
mount -o remount,size=8m out
{run} --num-stories 400
cp out/s.jsonl done.jsonl
exit $code
"""


@needs_mounts
def test_the_command_line_on_a_full_disk(tmp_path: Path) -> None:
    for name in ("out", "full"):
        (tmp_path / name).mkdir()
    run = f"{sys.executable} -m asyncgen run {' '.join(ECHO)} --output-path out/s.jsonl"
    done = shell(SMALL_DISK.format(run=run), cwd=tmp_path, before=NAMESPACE)
    assert done.returncode == 74, done.stderr
    assert f"{tmp_path / 'out' / 's.jsonl'} cannot be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    full = read(tmp_path / "full" / "s.jsonl")
    assert 0 < len(full) < 400
    assert (tmp_path / "full" / "s.jsonl").read_bytes().endswith(b"\n")
    assert read(tmp_path / "done.jsonl")[: len(full)] == full
    assert [record["metadata"]["index"] for record in read(tmp_path / "done.jsonl")] == list(range(400))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_device_is_no_place_for_an_output(tmp_path: Path) -> None:
    """Not even through a link, and nothing is begun: a device cannot be cut, nor read again."""
    (tmp_path / "s.jsonl").symlink_to("/dev/full")
    done = asyncgen("run", *ECHO, "--output-path", "s.jsonl", cwd=tmp_path)
    assert (done.returncode, "/dev/full is not a regular file" in done.stderr) == (2, True), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["s.jsonl"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_manifest_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "s.run.json.new").symlink_to("/dev/full")
    assert asyncgen("run", *ECHO, "--num-stories", "3", "--output-path", "s.jsonl", cwd=tmp_path).returncode == 0
    assert verify(tmp_path / "s.jsonl").ok

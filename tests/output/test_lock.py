"""Whoever only looks whether a run is writing is told the truth, whatever it may not do itself, and hinders no run."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from anyio import to_thread

from asyncgen.errors import OutputInUse
from asyncgen.output import open_output
from asyncgen.output.lock import Lock, is_written, while_not_written
from asyncgen.output.places import Places
from tests.output.child import child
from tests.output.making import INPUTS, config_at, records, take

NOBODY = 65534


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A folder that anybody may look into; pytest's own are not."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.anyio
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
async def test_another_user_sees_that_a_run_is_going_on(public_path: Path) -> None:
    async with open_output(config_at(public_path), INPUTS) as output:
        await output.write(take(records(), 20))
        await output.settle({})
        await output.write(take(records(20), 20))
        with child("as_another", public_path, NOBODY) as reader:
            said, _ = await to_thread.run_sync(reader.communicate)
    assert json.loads(said) == {"in_use": True, "problems": [], "repair": "OutputInUse"}


def test_a_lock_that_cannot_be_looked_at_is_no_free_one(tmp_path: Path) -> None:
    places = Places.of(tmp_path / "s.jsonl")
    places.lock.symlink_to(places.lock)
    with pytest.raises(OSError, match="symbolic links"):
        is_written(places)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSYS])
def test_where_flock_is_odd_or_absent_the_file_is_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    places = Places.of(tmp_path / "s.jsonl")
    places.lock.touch()
    assert not is_written(places)
    monkeypatch.setattr(fcntl, "flock", flock)
    assert is_written(places)
    places.lock.unlink()
    assert not is_written(places)


def test_a_run_waits_for_a_look_at_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places.of(tmp_path / "s.jsonl")
    places.lock.touch()
    real = fcntl.flock
    with ExitStack() as looking:
        looking.enter_context(while_not_written(places))

        def flock(descriptor: int, operation: int) -> None:
            try:
                real(descriptor, operation)
            except BlockingIOError:
                looking.close()  # just after the run was refused
                raise

        monkeypatch.setattr(fcntl, "flock", flock)
        lock = Lock(places)
        lock.take()
    assert is_written(places)
    lock.release()
    assert not is_written(places)


def test_two_may_look_at_once_and_hold_off_a_run(tmp_path: Path) -> None:
    places = Places.of(tmp_path / "s.jsonl")
    places.lock.touch()
    with while_not_written(places), while_not_written(places), pytest.raises(OutputInUse):
        Lock(places).take()
    assert sorted(tmp_path.iterdir()) == [places.lock]

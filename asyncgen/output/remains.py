"""What lies in an output's files beyond what a run can go on from: it is cut off, and told.

A run that was killed leaves whole records, ahead of one that was lost, and one that is torn. They are made again.
Whatever else is there was written by somebody, or left by a power cut or a failing disk, and might be the only copy of
something: it is set aside in a file of its own first. Nothing is dropped in silence.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from asyncgen.output.lines import Foreign, Garbled, read_line
from asyncgen.output.places import Places, free_name, size_of, sync_folder
from asyncgen.output.recovery import Mark, begins_as_ours
from asyncgen.records import Rejection, Story

__all__ = ["set_aside"]

_BLOCK = 1 << 20


def set_aside(places: Places, mark: Mark, seed: int) -> tuple[str, ...]:
    """A sentence for each file with something behind ``mark``, which is going to be cut; what no killed run leaves is
    copied to another file first. Raises OSError.
    """
    return (
        *_of_file(places.stories, mark.stories, mark.accepted, Story, seed),
        *_of_file(places.rejected, mark.rejected, mark.rejections, Rejection, seed),
    )


def _of_file(path: Path, start: int, count: int, kind: type[Story | Rejection], seed: int) -> Iterator[str]:
    size = size_of(path) - start
    if size <= 0:
        return
    cut = f"{path}: cut {size} bytes behind {'line ' + str(count) if count else 'its beginning'}"
    if _is_of_a_killed_run(path, start, kind, seed):
        yield f"{cut}, which a run left when it was interrupted; they are made again"
        return
    aside = free_name(path, "cut")
    _copy(path, start, aside)
    yield f"{cut}, which is not what a killed run leaves; they are kept in {aside}"


def _is_of_a_killed_run(path: Path, start: int, kind: type[Story | Rejection], seed: int) -> bool:
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return begins_as_ours(line)
            try:
                read_line(line, kind, seed)
            except (Garbled, Foreign):
                return False
    return True


def _copy(path: Path, start: int, aside: Path) -> None:
    """The end of a file in a new one, for good, or not at all."""
    with aside.open("xb") as new:
        try:
            with path.open("rb") as file:
                file.seek(start)
                while block := file.read(_BLOCK):
                    new.write(block)
            new.flush()
            os.fsync(new.fileno())
        except OSError:
            aside.unlink(missing_ok=True)
            raise
    sync_folder(aside.parent)

"""What of an output's two files can be kept after any crash.

Every index of the plan is written once, in index order, to one of two files. So at any moment each file is a prefix of
its finished self, but the pair need not be one: a kill between the two appends of a group is enough. Each line
carries its index and both counts up to and including itself (``lines.Place``), and this decides everything:

    The longest consistent pair is found by merging. Let ``n`` be the number of records taken so far. Index ``n`` is in
    exactly one of the finished files, hence it is the next line of that file or of none. Take it if its place is
    ``(n, accepted, rejected)`` as counted; stop if neither file has it. Whatever lies beyond in either file was
    written ahead of a record that is lost, or is torn: it is cut, and made again.

Invariant after each step: the lines taken are indices ``0 .. n-1``, each once, and each ends its file's prefix.

The merge begins at ``Mark``, the place up to which the manifest says both files are on the disk for good. Of what is
before it only the last line of each file is read (backwards), so opening a finished run costs the same at any
size; what is after it is at most what was written since the manifest was last replaced.

A crash leaves lines that are whole, or not JSON. It never leaves a whole JSON line that is no record of this run, or
that repeats an index: such a file was changed by somebody, and is refused and never cut. Damage before the mark is
refused likewise.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import NoReturn

from asyncgen.errors import OutputDamaged
from asyncgen.output.lines import Foreign, Garbled, Place, kinds_of, read_line
from asyncgen.output.places import Places, read_before, size_of
from asyncgen.output.points import points
from asyncgen.records import Rejection, Story

__all__ = ["Kept", "Mark", "begins_as_ours", "cut", "damaged", "examine", "own_count"]

_HEAD = b'{"story_id": "story_'
_HINT = (
    "put the file back as the run left it, or save what is sound (asyncgen repair) and make the rest with another "
    "output_path and seed; asyncgen verify names every line that is wrong; no record has been changed"
)


@dataclass(frozen=True, slots=True)
class Mark:
    """A place at which the two files agree: sizes in bytes, and records in each."""

    stories: int = 0
    rejected: int = 0
    accepted: int = 0
    rejections: int = 0

    @property
    def index(self) -> int:
        """Records in both files: the next index."""
        return self.accepted + self.rejections


@dataclass(frozen=True, slots=True)
class Kept:
    """What ``examine`` found: the files are good up to ``mark``."""

    mark: Mark
    reasons: Counter[str] = field(default_factory=Counter)
    """Kinds of reasons in the rejections after the synced mark."""


def examine(places: Places, synced: Mark, seed: int) -> Kept:
    """Finds the longest consistent pair that begins with ``synced``; changes nothing.

    Raises OutputDamaged, naming file and line, for damage before ``synced`` and for lines that no crash leaves.
    """
    _check_synced(places.stories, synced.stories, synced.accepted, Story, seed)
    _check_synced(places.rejected, synced.rejected, synced.rejections, Rejection, seed)
    stories = _Tail(places.stories, synced.stories, synced.accepted, Story, seed)
    rejected = _Tail(places.rejected, synced.rejected, synced.rejections, Rejection, seed)
    accepted, rejections, reasons = synced.accepted, synced.rejections, Counter[str]()
    while True:
        if stories.at == Place(accepted + rejections, accepted + 1, rejections):
            accepted += 1
            stories.take()
        elif rejected.at == Place(accepted + rejections, accepted, rejections + 1):
            rejections += 1
            reasons.update(rejected.kinds)
            rejected.take()
        else:
            break
    for tail in (stories, rejected):
        tail.check_ahead(accepted + rejections)
    return Kept(Mark(stories.end, rejected.end, accepted, rejections), reasons)


def cut(places: Places, mark: Mark, synced: Mark) -> None:
    """Cuts both files back to ``mark`` and makes what is left last. Raises OSError.

    What a killed run wrote after its last fsync is in the files, but only in memory: nothing may claim it before this.
    If an fsync fails, it is given up: the kernel may have dropped it, and another fsync would not say so. Then both
    files go back to ``synced``. Whatever else fails leaves every record up to ``mark`` where it is.
    """
    ends = (
        ("stories", places.stories, mark.stories, synced.stories),
        ("rejected", places.rejected, mark.rejected, synced.rejected),
    )
    with ExitStack() as stack:
        # Both are open before either is changed: what is wrong with one of them costs nothing of the other.
        files = [
            (name, stack.enter_context(path.open("r+b", buffering=0)), end, safe)
            for name, path, end, safe in ends
            if path.exists()
        ]
        for name, file, end, _ in files:
            _shorten(file, end)
            try:
                os.fsync(file.fileno())
            except OSError:
                for _, each, _, safe in files:
                    with suppress(OSError):
                        _shorten(each, safe)
                raise
            points.at(f"{name} cut")


def _shorten(file: FileIO, size: int) -> None:
    if os.fstat(file.fileno()).st_size > size:
        file.truncate(size)


def begins_as_ours(data: bytes) -> bool:
    """Whether a line of ours may be what is left of it: after a power cut, any part of it may be zeros."""
    return all(found in (due, 0) for found, due in zip(data, _HEAD, strict=False))


def own_count(record: Story | Rejection, place: Place) -> int:
    """Which line of its file the record is, from 1."""
    return place.accepted if isinstance(record, Story) else place.rejected


def damaged(path: Path, line: int, what: str) -> NoReturn:
    """Raises OutputDamaged."""
    raise OutputDamaged(f"{path}: line {line}: {what}", hint=_HINT)


class _Tail:
    """The lines of one file from a byte on, one at a time: ``at`` is the next one's place, None after the last."""

    def __init__(self, path: Path, start: int, count: int, kind: type[Story | Rejection], seed: int) -> None:
        self._path, self._kind, self._seed = path, kind, seed
        self._lines = _read_from(path, start)
        self._next = b""
        self.end = start
        self.count = count
        self.at: Place | None = None
        self.kinds: list[str] = []
        if start == 0:
            self._check_head()
        self._advance()

    def take(self) -> None:
        """Keeps the next line."""
        self.end += len(self._next)
        self.count += 1
        self._advance()

    def check_ahead(self, index: int) -> None:
        """What is not kept must be ahead of the lost index ``index``."""
        if self.at is not None and self.at.index <= index:
            damaged(self._path, self.count + 1, f"index {self.at.index} where index {index} is due")

    def _advance(self) -> None:
        self.at = None
        self._next = next(self._lines, b"")
        if not self._next.endswith(b"\n"):
            return
        try:
            record, self.at = read_line(self._next, self._kind, self._seed)
        except Garbled:
            return
        except Foreign as error:
            damaged(self._path, self.count + 1, str(error))
        self.kinds = kinds_of(record) if isinstance(record, Rejection) else []

    def _check_head(self) -> None:
        """A file begins as ours do before any of it may be called torn."""
        if size_of(self._path) == 0:
            return
        with self._path.open("rb") as file:
            head = file.read(len(_HEAD))
        if not begins_as_ours(head):
            damaged(self._path, 1, "not written by asyncgen")


def _check_synced(path: Path, size: int, count: int, kind: type[Story | Rejection], seed: int) -> None:
    """The file reaches ``size``, and its last line before it is a whole record, the ``count``-th of this file.

    If not, all of it is read: the first line that is wrong is named.
    """
    found = size_of(path)
    if found < size:
        if not path.exists():
            damaged(path, 1, f"missing: the file is not there, and {size} bytes were written for good")
        first, why = _first_wrong(path, size, kind, seed)
        damaged(path, first, why or f"missing: {_shorter(found, size)}")
    if size == 0 and count == 0:
        return
    if size <= 0 or count <= 0:
        damaged(path, 1, f"the manifest says that {count} records are in {size} bytes")
    line = read_before(path, size)
    try:
        if not line.endswith(b"\n"):
            raise Garbled  # noqa: TRY301  # what is wrong is said below
        own = own_count(*read_line(line, kind, seed))
    except (Garbled, Foreign):
        own = 0
    if own == count:
        return
    first, why = _first_wrong(path, size, kind, seed)
    if not why:  # a text that somebody made longer or shorter moves the end
        first = count
        why = f"it does not end at byte {size}, as it did; each line up to there is whole, so one of them was changed"
    damaged(path, first, why)


def _first_wrong(path: Path, end: int, kind: type[Story | Rejection], seed: int) -> tuple[int, str]:
    """The first line that is wrong, of those that begin before byte ``end``, and why; if none is, the line after them
    and nothing.
    """
    number, index, at = 0, -1, 0
    for number, line in enumerate(_read_from(path, 0), 1):
        if at >= end:
            return number, ""
        at += len(line)
        try:
            if not line.endswith(b"\n"):
                raise Garbled("torn: " + (_shorter(at, end) if at < end else "it has no end"))  # noqa: TRY301
            record, place = read_line(line, kind, seed)
        except (Garbled, Foreign) as error:
            return number, str(error)
        if own_count(record, place) != number or place.index <= index:
            return number, f"it says that it is {kind.__name__.lower()} {own_count(record, place)}, index {place.index}"
        index = place.index
    return number + 1, ""


def _read_from(path: Path, start: int) -> Iterator[bytes]:
    if size_of(path) > start:
        with path.open("rb") as file:
            file.seek(start)
            yield from file


def _shorter(found: int, size: int) -> str:
    return f"the file has {found} bytes, and {size} were written for good"

"""``repair``: saves what is sound of a damaged output into new files. The old ones are read and never touched.

A record is sound if it is whole, its ids and counts belong together (and to the run's seed, if the manifest can be
read) and its text is there, with as many words as it says. Where an end of line was lost, the records on either side of
it are told apart. Of two records with the same index the first is kept. What is saved is in index order, each record as
it was.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from asyncgen.errors import ConfigError, InputError, ResumeRefused
from asyncgen.output import manifest as manifests
from asyncgen.output.lines import Foreign, Garbled, check_content, read_line
from asyncgen.output.lock import while_not_written
from asyncgen.output.places import Places, make_folder, size_of, sync_folder
from asyncgen.records import Rejection, Story

__all__ = ["MOST_LOSSES", "Salvage", "repair"]

MOST_LOSSES = 100
"""Losses that a report names; the rest is counted."""
_BEGINNING = re.compile(r'\{"story_id": "story_')
"""Where records begin: inside a text the quotes would be escaped."""
_MOST_GAPS = 20
_decoder = json.JSONDecoder()


@dataclass(slots=True)
class Salvage:
    """What was saved."""

    stories: Path
    """The new file; rejections are in another one beside it."""
    rejected: Path
    kept: int = 0
    """Stories in the new file."""
    rejections: int = 0
    losses: list[str] = field(default_factory=list)
    """The first ``MOST_LOSSES`` lines that were not kept, each with file, line and reason."""
    unnamed: int = 0
    """Losses beyond those."""
    missing: list[range] = field(default_factory=list)
    """Indices that are in neither file: below the highest there, and among those that the manifest says were safe."""

    def text(self) -> str:
        """The report in words, a loss on each line."""
        lines = [f"saved: {self.kept} stories in {self.stories}, {self.rejections} rejections in {self.rejected}"]
        count = len(self.losses) + self.unnamed
        if count:
            lines += [f"not kept: {count} line{'s' * (count > 1)}:", *self.losses]
        if self.unnamed:
            lines.append(f"... and {self.unnamed} more")
        if self.missing:
            first = ", ".join(_said(gap) for gap in self.missing[:_MOST_GAPS])
            more = ", ..." if len(self.missing) > _MOST_GAPS else ""
            lost = sum(gap.stop - gap.start for gap in self.missing)
            lines.append(f"missing: {lost} {'indices' if lost > 1 else 'index'}: {first}{more}")
        return "\n".join([*lines, "what was saved is data to use; a run cannot go on with it"])

    def lose(self, loss: str) -> None:
        """Adds one."""
        if len(self.losses) < MOST_LOSSES:
            self.losses.append(loss)
        else:
            self.unnamed += 1


_Found = dict[int, tuple[int, int]]
"""Index -> where its record begins in the old file, and its length without the end of line, in bytes."""
Words = Callable[[str], int]


def repair(output: Path, target: Path | None = None, *, words: Words | None = None) -> Salvage:
    """Saves what is sound of the output at ``output`` into ``target`` (None: beside it, ``NAME.repaired.jsonl``).
    ``words`` counts those of a text, to be compared with ``word_count`` (None: it is not compared).

    Raises InputError if there is nothing to save, or a file is already where one is to be made; OutputInUse while a run
    writes the output; OSError if a file cannot be read or made. No new file is left then.
    """
    old = Places.of(output)
    new = _target(old, target)
    with while_not_written(old):
        return _save(old, new, words)


def _target(old: Places, target: Path | None) -> Places:
    """Where what is saved goes; nothing is there, and nothing of the old output would be."""
    if target is None:
        target = old.stories.with_name(old.stories.name.removesuffix(".jsonl") + ".repaired.jsonl")
    try:
        new = Places.of(target)
    except ConfigError as error:
        raise InputError(error.message.replace("output_path", "--to", 1), hint=error.hint) from error
    shared = {old.stories, old.rejected, old.manifest, old.lock} & {new.stories, new.rejected, new.manifest, new.lock}
    if shared:
        raise InputError(
            f"--to: {target} would share {min(shared)} with the damaged output", hint="name another file with --to"
        )
    for path in (new.stories, new.rejected, new.manifest):
        if os.path.lexists(path):
            raise InputError(f"{path} is there already", hint="name another file with --to; nothing is overwritten")
    return new


def _save(old: Places, new: Places, words: Words | None) -> Salvage:
    salvage = Salvage(new.stories, new.rejected)
    seed, at_least = _told(old, salvage)
    taken: set[int] = set()
    stories = _look(old.stories, Story, seed, words, taken, salvage)
    rejected = _look(old.rejected, Rejection, seed, words, taken, salvage)
    salvage.kept, salvage.rejections = len(stories), len(rejected)
    salvage.missing = _gaps(taken, at_least)
    if not taken:
        raise InputError(f"{old.stories}: there is no sound record", hint="; ".join(salvage.losses[:1]) or None)
    with ExitStack() as undo:
        _copy(old.stories, stories, new.stories, undo)
        _copy(old.rejected, rejected, new.rejected, undo)
        undo.pop_all()
    return salvage


def _told(places: Places, salvage: Salvage) -> tuple[int | None, int]:
    """What the manifest tells: the run's seed, and how many indices were safe on disk."""
    try:
        manifest = manifests.read(places.manifest)
    except ResumeRefused as error:
        salvage.lose(error.message)
        manifest = None
    return (None, 0) if manifest is None else (manifest.seed, manifest.mark.index)


def _look(
    path: Path, kind: type[Story | Rejection], seed: int | None, words: Words | None, taken: set[int], salvage: Salvage
) -> _Found:
    """The sound records of one file; their indices are added to ``taken``."""
    found: _Found = {}
    for number, start, data in _pieces(path):
        try:
            record, place = read_line(data, kind, seed)
            check_content(record, words)
            if (index := place.index) in taken:
                raise Foreign(f"index {index} once more")  # noqa: TRY301  # one message for all
        except (Garbled, Foreign) as error:
            salvage.lose(f"{path}:{number}: {error}")
            continue
        taken.add(index)
        found[index] = (start, len(data))
    return found


def _pieces(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Line number, place in the file and bytes of what is a record each, or none."""
    if size_of(path) == 0:
        return
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            at = start
            for piece in _split(line.rstrip(b"\r\n")):
                if piece.strip():
                    yield number, at, piece
                at += len(piece)
            start += len(line)


def _split(line: bytes) -> Iterator[bytes]:
    """A line in pieces: each JSON object that stands where a record may begin, and what is between them.

    What is inside an object is not looked at, for any object may hold one that begins as records do.
    """
    text = line.decode("utf-8", "surrogateescape")
    at = 0
    while at < len(text):
        end = at
        if text[at] == "{":
            with suppress(ValueError, RecursionError):
                _, end = _decoder.raw_decode(text, at)
        if end == at:
            beginning = _BEGINNING.search(text, at + 1)
            end = beginning.start() if beginning else len(text)
        yield text[at:end].encode("utf-8", "surrogateescape")
        at = end


def _said(gap: range) -> str:
    return f"{gap.start}" if gap.stop == gap.start + 1 else f"{gap.start} to {gap.stop - 1}"


def _gaps(taken: set[int], end: int) -> list[range]:
    """The indices that are not among ``taken``, up to the highest of them and at least to ``end``."""
    gaps: list[range] = []
    due = 0
    for index in [*sorted(taken), *([end] if end > max(taken, default=-1) else [])]:
        if index > due:
            gaps.append(range(due, index))
        due = index + 1
    return gaps


def _copy(source: Path, found: Mapping[int, tuple[int, int]], target: Path, undo: ExitStack) -> None:
    """Writes the records that were found to a new file, in index order, for good: it is there whole, or not at all.
    ``undo`` then removes it.
    """
    make_folder(target.parent)
    new = target.with_name(f"{target.name}.{os.getpid()}.new")
    with new.open("xb") as file:
        try:
            if found:
                with source.open("rb") as old:
                    for index in sorted(found):
                        start, length = found[index]
                        old.seek(start)
                        file.write(old.read(length) + b"\n")
            file.flush()
            os.fsync(file.fileno())
            _name(new, target)
            undo.callback(_remove, target)
        finally:
            new.unlink(missing_ok=True)
    sync_folder(target.parent)


def _name(new: Path, target: Path) -> None:
    """Gives the file ``new`` the name ``target``, at which there is nothing. Raises FileExistsError if there is."""
    try:
        target.hardlink_to(new)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        target.touch(exist_ok=False)  # a file system without links: what is renamed there replaces only this
        try:
            new.rename(target)
        except OSError:
            _remove(target)
            raise


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()

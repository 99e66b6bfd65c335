"""``verify``: reads everything an output holds and says what is wrong with it, line by line. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from asyncgen.config import Config
from asyncgen.errors import ResumeRefused
from asyncgen.output import manifest as manifests
from asyncgen.output.lines import Foreign, Garbled, Place, check_content, read_line
from asyncgen.output.lock import is_written
from asyncgen.output.manifest import Manifest, State
from asyncgen.output.places import Places, size_of
from asyncgen.output.repeats import Seen
from asyncgen.records import Rejection, Story

__all__ = ["MOST_PROBLEMS", "VerifyReport", "verify"]

MOST_PROBLEMS = 100
"""Problems that a report names; the rest is counted."""


@dataclass(slots=True)
class VerifyReport:
    """What ``verify`` found."""

    stories: Path
    """The file of stories; what else there is lies beside it."""
    state: State | None = None
    """What the last run left in the manifest; None if that cannot be read."""
    in_use: bool = False
    """Whether a run was writing while it was read: then what its manifest says is on disk was, and nothing beyond."""
    accepted: int = 0
    rejected: int = 0
    problems: list[str] = field(default_factory=list)
    """The first ``MOST_PROBLEMS``, one text each, with file and line where there is one."""
    unnamed: int = 0
    """Problems beyond those."""

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def text(self) -> str:
        """The report in words, a problem on each line."""
        found = f"{self.stories}: {self.accepted} stories and {self.rejected} rejections"
        if self.ok:
            ended = "was stopped" if self.state == "stopped" else "is complete"
            if self.state == "running":
                ended = "was killed, or its disk failed: the next one goes on from here"
            if self.in_use:
                ended = "is going on: this is what it had made safe on the disk"
            return (
                f"sound: {found}; each line is whole and in its place, no story stands twice that must not, and the "
                f"manifest agrees with the files. The run {ended}."
            )
        count = len(self.problems) + self.unnamed
        lines = [f"damaged: {found} can be read; {count} problem{'s' * (count > 1)}:", *self.problems]
        return "\n".join([*lines, f"... and {self.unnamed} more"] if self.unnamed else lines)

    def add(self, problem: str) -> None:
        """Adds one."""
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(problem)
        else:
            self.unnamed += 1


@dataclass(frozen=True, slots=True)
class _Line:
    place: Place
    record: Story | Rejection
    where: str
    is_story: bool


def verify(
    output: Config | Path, *, key: Callable[[str], str] = str, words: Callable[[str], int] | None = None
) -> VerifyReport:
    """Checks every line of the output of a configuration, or at a path: JSON, keys and types, ids, order, counts; that
    there is a text and its ``word_count`` is ``words(content)`` (None: not compared); that no story repeats another (of
    ``key(content)``, unless the run allowed it); and the manifest against the files.

    Raises OSError if a file cannot be read, ConfigError for a path that is no file.
    """
    places = Places.of(output.output_path if isinstance(output, Config) else output)
    before = _told(places)
    report = _look(places, *before, key, words)
    now = _told(places)
    if report.ok or now in (before, (False, None)):
        return report
    # What a run that began meanwhile does looks like damage: what it had made safe stays as it is.
    return _look(places, True, now[1], key, words)


def _told(places: Places) -> tuple[bool, Manifest | str | None]:
    """Whether a run is writing, and then the manifest, or why that cannot be read; None if there is none."""
    in_use = is_written(places)
    try:
        return in_use, manifests.read(places.manifest)
    except ResumeRefused as error:
        return in_use, error.message


def _look(
    places: Places,
    in_use: bool,
    told: Manifest | str | None,
    key: Callable[[str], str],
    words: Callable[[str], int] | None,
) -> VerifyReport:
    report = VerifyReport(places.stories, in_use=in_use)
    manifest = told if isinstance(told, Manifest) else None
    if isinstance(told, str):
        report.add(told)
    elif told is None and not in_use:
        report.add(f"{places.manifest}: it is missing, so nothing tells what made the stories")
    report.state = None if manifest is None else manifest.state
    stories = _File(places.stories, Story, manifest, report)
    rejected = _File(places.rejected, Rejection, manifest, report)
    lost = [each.path for each in (stories, rejected) if each.synced and not each.path.exists()]
    for path in lost:
        report.add(f"{path}: it is not there, and the manifest says that it has records")
    _check_lines(stories, rejected, _repeats_key(manifest, key), words, report, whole=not lost)
    if manifest is not None:
        _check_manifest(manifest, stories, rejected, report)
    return report


class _File:
    """The lines of one file that can be read as records; every other one is a problem."""

    def __init__(
        self, path: Path, kind: type[Story | Rejection], manifest: Manifest | None, report: VerifyReport
    ) -> None:
        self.path, self._kind, self._report = path, kind, report
        self._seed = None if manifest is None else manifest.seed
        mark = (0, 0) if manifest is None else (manifest.synced.stories, manifest.synced.rejected)
        self.synced = mark[kind is Rejection]
        self.lines_synced: int | None = 0 if self.synced == 0 else None

    def __iter__(self) -> Iterator[_Line]:
        if size_of(self.path) == 0:
            return
        end = 0
        with self.path.open("rb") as file:
            for number, data in enumerate(file, 1):
                if self._report.in_use and end >= self.synced:
                    return
                end += len(data)
                if end == self.synced:
                    self.lines_synced = number
                where = f"{self.path}:{number}"
                try:
                    yield self._line(data, where)
                except (Garbled, Foreign) as error:
                    self._report.add(f"{where}: {error}")

    def _line(self, data: bytes, where: str) -> _Line:
        if not data.endswith(b"\n"):
            # What was safe is torn by no crash, and without a manifest nobody knows what was: a run refuses both.
            is_cut = self._seed is not None and size_of(self.path) > self.synced
            raise Garbled("torn: it has no end" + (" (the next run cuts it off)" if is_cut else ""))
        record, place = read_line(data, self._kind, self._seed)
        return _Line(place, record, where, self._kind is Story)


def _check_lines(
    stories: _File,
    rejected: _File,
    key: Callable[[str], str] | None,
    words: Callable[[str], int] | None,
    report: VerifyReport,
    *,
    whole: bool,
) -> None:
    """``whole``: no file is missing, so each place follows from the one before."""
    seen = Seen()
    before = Place(-1, 0, 0)
    for line in _merge(iter(stories), iter(rejected)):
        due = Place(before.index + 1, before.accepted + line.is_story, before.rejected + (not line.is_story))
        if whole and line.place != due:
            report.add(f"{line.where}: {_said(line.place)} where {_said(due)} is due")
        before = line.place
        report.accepted += line.is_story
        report.rejected += not line.is_story
        try:
            check_content(line.record, words)
        except Foreign as error:
            report.add(f"{line.where}: {error}")
        if line.is_story and key is not None and not seen.add(_hash(key(line.record.content))):
            report.add(f"{line.where}: repeats an earlier story")


def _merge(stories: Iterator[_Line], rejected: Iterator[_Line]) -> Iterator[_Line]:
    """Both by index; unlike ``heapq.merge`` it goes on when one is not sorted."""
    story, rejection = next(stories, None), next(rejected, None)
    while story or rejection:
        if story and (rejection is None or story.place.index <= rejection.place.index):
            yield story
            story = next(stories, None)
        elif rejection:
            yield rejection
            rejection = next(rejected, None)


def _check_manifest(manifest: Manifest, stories: _File, rejected: _File, report: VerifyReport) -> None:
    for file, count in ((stories, manifest.totals.accepted), (rejected, manifest.totals.rejected)):
        if file.synced and not file.path.exists():
            continue  # which is said already
        if file.lines_synced != count:
            report.add(f"{file.path}: the manifest says {count} lines in {file.synced} bytes; that is not so")
        elif not report.in_use and manifest.state != "running" and size_of(file.path) != file.synced:
            report.add(f"{file.path}: {size_of(file.path)} bytes, but the run {manifest.state} at {file.synced}")


def _repeats_key(manifest: Manifest | None, key: Callable[[str], str]) -> Callable[[str], str] | None:
    """None if the run let stories repeat each other."""
    found = None if manifest is None else manifest.config.get("validation")
    validation = found if isinstance(found, dict) else {}
    return key if validation.get("enabled", True) and validation.get("reject_repeats", True) else None


def _said(place: Place) -> str:
    return f"index {place.index} ({place.accepted} accepted, {place.rejected} rejected)"


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())

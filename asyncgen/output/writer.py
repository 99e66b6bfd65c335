"""``open_output``: the only writer of an output, in index order, each index exactly once, whatever happens.

    lock -> recover -> compare -> open -> [write ... write] -> commit -> manifest -> unlock

A write is visible to readers at once and survives the end of this process. It survives a power cut after its *commit
group*: what was written since the last one, ended by an fsync of both files, at most every ``GROUP_SECONDS`` and at
close. Only after that may the manifest claim it. Within a group stories are appended before rejections; recovery needs
no order between the two.

Nothing is left half written while the disk works: writes, fsyncs and cuts run to their end under cancellation. After
an error of the disk both files are cut back to the last commit, nothing is tried again, and the manifest stays as it
is, which is true of the files still.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.lowlevel

from asyncgen.config import Config
from asyncgen.errors import InputError, OutputFailed, ResumeRefused
from asyncgen.output import manifest as manifests
from asyncgen.output.lines import Place, encode, kinds_of, place_of
from asyncgen.output.manifest import State, Synced, Totals
from asyncgen.output.opening import Look, Opened, entering, failing, look, now, prepare
from asyncgen.output.pair import Pair
from asyncgen.output.places import Places
from asyncgen.output.points import points
from asyncgen.output.recovery import Mark
from asyncgen.output.repeats import seen_stories
from asyncgen.output.thread import DiskThread, disk_thread, locked
from asyncgen.records import Rejection, Story
from asyncgen.tasks import in_thread, single_cause

_log = logging.getLogger(__name__)

__all__ = ["GROUP_SECONDS", "MANIFEST_SECONDS", "Output", "open_output"]

GROUP_SECONDS = 0.5
"""Least time between two fsyncs."""
MANIFEST_SECONDS = 10.0
"""Least time between two manifests."""
_MANY = 256


@asynccontextmanager
async def open_output(
    config: Config,
    inputs: Mapping[str, Path | str] | None = None,
    *,
    versions: Mapping[str, str] | None = None,
    hardware: Mapping[str, object] | None = None,
    read: Callable[[Iterator[str]], object] | None = None,
    must_resume: bool = False,
) -> AsyncIterator[Output]:
    """The output of ``config``, locked, recovered and ready at its next index; closed on leaving, whatever the reason.

    ``inputs`` are all texts, files and model directories that records depend on, by name (see ``fingerprint``).
    ``versions`` and ``hardware`` add to what the manifest says of both. ``read``, called in a worker thread unless the
    goal is reached, is given the texts of all stories that are there, before anything is changed: what it reads is
    found to be sound, or refused. ``must_resume`` refuses an output that would begin anew.

    Raises OutputInUse, ResumeRefused, OutputDamaged, DataError and ConfigError, and then only the folder and the lock
    file are new, as when an InputError leaves the block before anything was written; OutputFailed if the disk fails.
    Leaving waits for the disk, and no thread of this is left.
    """
    async with AsyncExitStack() as stack:
        thread = await stack.enter_async_context(disk_thread())
        places = await thread.run(Places.of, config.output_path)
        with entering(places):
            made = await stack.enter_async_context(locked(places, thread))
            points.at("locked")
            is_new = await thread.run(_is_new, places)
            pair = await stack.enter_async_context(_closing(Pair(places, thread)))
            with anyio.CancelScope(shield=True):
                found = await thread.run(look, places, config, inputs or {})
            if must_resume and found.anew:
                _refuse_anew(places, found)
            if read is not None:
                await _read_stories(places, found, config.num_stories, read)
            with anyio.CancelScope(shield=True):
                opened = await thread.run(prepare, places, found, config, inputs or {}, versions or {}, hardware or {})
                points.at("recovered")
                await _open_whole(pair)
                points.at("opened")
                await thread.run(manifests.replace, places.manifest, opened.manifest)
        output = Output(config, places, pair, opened, thread)
        output.made_folder = made
        refused = False
        try:
            yield output
        except InputError:
            refused = True
            raise
        finally:
            await output.close()
            if refused and is_new and output.start == 0:
                with anyio.CancelScope(shield=True), suppress(OSError):
                    await thread.run(_remove, places)


def _refuse_anew(places: Places, found: Look) -> None:
    what = f"{places.stories} holds no story that this run could go on from, so it would begin anew"
    raise ResumeRefused(
        f"{what}, and resume require wants to go on",
        hint="put these back" if found.differences else "look whether output_path is the one you mean",
        changes={each.key: each.change for each in found.differences},
    )


async def _read_stories(places: Places, found: Look, goal: int | None, read: Callable[[Iterator[str]], object]) -> None:
    accepted = 0 if found.anew else found.kept.mark.accepted
    if goal is None or accepted < goal:
        seed = 0 if found.manifest is None else found.manifest.seed
        await in_thread(read, seen_stories(places.stories, accepted, seed))


def _is_new(places: Places) -> bool:
    return not any(path.exists() for path in (places.stories, places.rejected, places.manifest))


def _remove(places: Places) -> None:
    """Takes back what opening made; the lock stays, for another process may wait with it open."""
    for path in (places.stories, places.rejected, places.manifest):
        path.unlink(missing_ok=True)


@asynccontextmanager
async def _closing(pair: Pair) -> AsyncIterator[Pair]:
    try:
        yield pair
    finally:
        with anyio.CancelScope(shield=True), suppress(OSError):  # all of it is synced, or has been given up
            await pair.close()


async def _open_whole(pair: Pair) -> None:
    """Opens both files to the end, in a task that asyncio's own Task.cancel() does not reach: a file that is opened
    while nobody waits for it any more would stay open.
    """

    async def shielded() -> None:
        with anyio.CancelScope(shield=True):
            await pair.open()

    with single_cause():
        async with anyio.create_task_group() as group:
            group.start_soon(shielded)


@dataclass(slots=True)
class _Group:
    """Records as bytes, ready to be appended."""

    stories: bytearray = field(default_factory=bytearray)
    rejected: bytearray = field(default_factory=bytearray)
    reasons: Counter[str] = field(default_factory=Counter)


class Output:
    """An open output. One task at a time writes."""

    def __init__(self, config: Config, places: Places, pair: Pair, opened: Opened, thread: DiskThread) -> None:
        self._goal = config.num_stories
        self._places, self._pair, self._thread = places, pair, thread
        self._manifest = opened.manifest
        self._written = self._committed = opened.mark
        self._reasons = Counter(opened.manifest.totals.reasons)
        self._committed_reasons = Counter(self._reasons)
        self._committed_at = self._manifest_at = self._opened_at = time.monotonic()
        self._interrupted = False
        self._failure: OutputFailed | None = None
        self._turn = anyio.Lock()
        self._closed = False
        self.resumed = opened.mark.index > 0
        """Whether records were there already."""
        self.made_folder: Path | None = None
        """The output's folder, if it was not there before."""
        self.notes = opened.news
        """What differs from the run before: what does not change the plan, or why the output begins anew."""
        self.cuts = opened.cuts
        """What was found behind the last record and cut off, and where it is kept if no kill left it, in sentences."""

    @property
    def start(self) -> int:
        """The next index to be written."""
        return self._written.index

    @property
    def accepted(self) -> int:
        """Stories written, those of earlier runs included."""
        return self._written.accepted

    @property
    def rejected(self) -> int:
        """Rejections written, those of earlier runs included."""
        return self._written.rejections

    @property
    def reasons(self) -> Mapping[str, int]:
        """Kind of reason -> how often, over all attempts of the rejections written."""
        return dict(self._reasons)

    @property
    def complete(self) -> bool:
        """Whether the goal is reached; never without a goal."""
        return self._goal is not None and self.accepted >= self._goal

    @property
    def places(self) -> Places:
        """Where the files lie."""
        return self._places

    async def write(self, records: Sequence[Story | Rejection]) -> None:
        """Appends ``records``, which begin at ``start`` and follow each other.

        If the disk fails, what is not committed is taken back: OutputFailed. Raises ValueError, before anything is
        written, for records out of order, counts that are not theirs, or numbers that JSON does not have.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()  # the rest is shielded: without it, a loop of writes never ends
        async with self._turn:
            self._raise_failure()
            many = len(records) > _MANY  # more than a few milliseconds of the loop's time
            group, end = await self._thread.run(self._encode, records) if many else self._encode(records)
            async with self._whole():
                await self._pair.append(bytes(group.stories), bytes(group.rejected))
                self._written = end
                self._reasons += group.reasons
                if time.monotonic() - self._committed_at >= GROUP_SECONDS:
                    await self._commit()

    async def commit(self) -> None:
        """Ends the commit group now: what was written lasts through a power cut."""
        async with self._turn, self._whole():
            await self._commit()

    async def keep_committed(self) -> None:
        """Commits what a run that has gone quiet has not committed yet; to be run beside the writer until cancelled.

        Ends when the disk fails: the next ``write`` or ``close`` says so.
        """
        with suppress(OutputFailed):
            while True:
                await anyio.sleep(GROUP_SECONDS)
                if self._written != self._committed:
                    await self.commit()

    @property
    def facts(self) -> Mapping[str, object]:
        """What the manifest's ``facts`` say, those of earlier runs included."""
        return self._manifest.facts

    def describe(self, facts: Mapping[str, object]) -> None:
        """Adds JSON values to the manifest's ``facts``, from its next replacement on. Raises ValueError or TypeError
        for what is none: here, and not when the run ends.
        """
        json.dumps(dict(facts), allow_nan=False)
        self._manifest = self._manifest.model_copy(update={"facts": self._manifest.facts | dict(facts)})

    async def settle(self, facts: Mapping[str, object]) -> None:
        """Adds to the manifest's ``facts`` and makes that last: a record written after this is never there without
        them. Commits what was written. Raises OutputFailed.
        """
        self.describe(facts)
        async with self._turn, self._whole():
            await self._commit("running")

    def note(self, text: str) -> None:
        """Adds a text to the manifest's ``notes``, from its next replacement on."""
        self._manifest = self._manifest.model_copy(update={"notes": [*self._manifest.notes, text]})

    async def close(self, state: State | None = None) -> None:
        """Commits and writes the manifest with ``state`` (None: complete if the goal is reached, else stopped).

        Leaving ``open_output`` calls it; a second call does nothing. Raises OutputFailed.
        """
        if self._closed:
            return
        if self._failure is None:
            if self._interrupted:
                await self._take_back_what_was_torn()
            async with self._whole():
                await self._commit(state or ("complete" if self.complete else "stopped"))
        self._closed = True
        _log.info("%s closed with %d stories, %d rejected prompts", self._places.stories, self.accepted, self.rejected)

    def _encode(self, records: Sequence[Story | Rejection]) -> tuple[_Group, Mark]:
        group = _Group()
        accepted, rejections = self.accepted, self.rejected
        for record in records:
            if isinstance(record, Rejection):
                rejections += 1
                group.rejected += encode(record)
                group.reasons.update(kinds_of(record))
            else:
                accepted += 1
                group.stories += encode(record)
            due = Place(accepted + rejections - 1, accepted, rejections)
            if place_of(record) != due:
                raise ValueError(f"{place_of(record)} where {due} is due")
        end = self._written
        return group, Mark(end.stories + len(group.stories), end.rejected + len(group.rejected), accepted, rejections)

    @asynccontextmanager
    async def _whole(self) -> AsyncIterator[None]:
        """What happens inside happens to its end, or both files go back to the last commit."""
        self._raise_failure()
        if self._interrupted or self._closed:
            raise RuntimeError("the output is closed, or a write is under way or was torn away")
        with anyio.CancelScope(shield=True):
            # A shield does not hold against asyncio's own Task.cancel(): then close() finds this set and cuts.
            self._interrupted = True
            try:
                with failing(self._places):
                    yield
            except OutputFailed as error:
                self._failure = error
                with suppress(OSError):  # recovery cuts on the next start what could not be cut now
                    await self._take_back()
                raise
            self._interrupted = False

    async def _take_back_what_was_torn(self) -> None:
        """What is not taken back may be gone from the disk, and no fsync would say so: then nothing may claim it."""
        with anyio.CancelScope(shield=True):
            try:
                with failing(self._places):
                    await self._take_back()
            except OutputFailed as error:
                self._failure = error
                raise
        self._interrupted = False

    async def _take_back(self) -> None:
        await self._pair.cut(self._committed)
        self._written, self._reasons = self._committed, Counter(self._committed_reasons)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise OutputFailed(self._failure.message, hint=self._failure.hint)

    async def _commit(self, last: State | None = None) -> None:
        await self._pair.sync()
        self._committed, self._committed_at = self._written, time.monotonic()
        self._committed_reasons = Counter(self._reasons)
        _log.debug("committed %d stories, %d rejected prompts", self.accepted, self.rejected)
        if last is not None or self._committed_at - self._manifest_at >= MANIFEST_SECONDS:
            await self._thread.run(manifests.replace, self._places.manifest, self._manifest_now(last or "running"))
            self._manifest_at = time.monotonic()

    def _manifest_now(self, state: State) -> manifests.Manifest:
        mark, old = self._committed, self._manifest
        seconds = round(old.timings.seconds + time.monotonic() - self._opened_at, 3)
        return old.model_copy(
            update={
                "state": state,
                "synced": Synced(stories=mark.stories, rejected=mark.rejected),
                "totals": Totals(accepted=mark.accepted, rejected=mark.rejections, reasons=dict(self._reasons)),
                "timings": old.timings.model_copy(update={"updated": now(), "seconds": seconds}),
            }
        )

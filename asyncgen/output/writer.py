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

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
from filelock import FileLock, Timeout

from asyncgen.config import Config
from asyncgen.errors import OutputFailed, OutputInUse
from asyncgen.output import manifest as manifests
from asyncgen.output.lines import Place, encode, kinds_of, place_of
from asyncgen.output.manifest import State, Synced, Totals
from asyncgen.output.opening import Opened, failing, make_folder, now, prepare
from asyncgen.output.pair import Pair
from asyncgen.output.places import Places
from asyncgen.output.recovery import Mark
from asyncgen.records import Rejection, Story

__all__ = ["GROUP_SECONDS", "MANIFEST_SECONDS", "Output", "open_output"]

GROUP_SECONDS = 0.5
"""Least time between two fsyncs."""
MANIFEST_SECONDS = 10.0
"""Least time between two manifests."""
_MANY = 64

_T = TypeVar("_T")


@asynccontextmanager
async def open_output(
    config: Config,
    inputs: Mapping[str, Path | str] | None = None,
    *,
    versions: Mapping[str, str] | None = None,
    hardware: Mapping[str, object] | None = None,
) -> AsyncIterator[Output]:
    """The output of ``config``, locked, recovered and ready at its next index; closed on leaving, whatever the reason.

    ``inputs`` are all texts, files and model directories that records depend on, by name (see ``fingerprint``).
    ``versions`` and ``hardware`` add to what the manifest says of both.

    Raises OutputInUse, ResumeRefused, OutputDamaged, OutputFailed, DataError, ConfigError; nothing has been changed
    then but for the folder and the lock file. Leaving waits for the disk and for no thread else.
    """
    executor = ThreadPoolExecutor(1, thread_name_prefix="asyncgen-output")
    try:
        places = await _run(executor, Places.of, config.output_path)
        async with _locked(places, executor), _pair(places, executor) as pair:
            with anyio.CancelScope(shield=True), failing(places):
                opened = await _run(executor, prepare, places, config, inputs or {}, versions or {}, hardware or {})
                await pair.open()
                await _run(executor, manifests.replace, places.manifest, opened.manifest)
            output = Output(config, places, pair, opened, executor)
            try:
                yield output
            finally:
                await output.close()
    finally:
        with anyio.CancelScope(shield=True):
            # Joins a thread with nothing left to do; even that would block the loop.
            await anyio.to_thread.run_sync(executor.shutdown, limiter=anyio.CapacityLimiter(1))


@dataclass(slots=True)
class _Group:
    """Records as bytes, ready to be appended."""

    stories: bytearray = field(default_factory=bytearray)
    rejected: bytearray = field(default_factory=bytearray)
    reasons: Counter[str] = field(default_factory=Counter)


class Output:
    """An open output. One task at a time writes."""

    def __init__(self, config: Config, places: Places, pair: Pair, opened: Opened, executor: Executor) -> None:
        self._goal = config.num_stories
        self._places, self._pair, self._executor = places, pair, executor
        self._manifest = opened.manifest
        self._written = self._committed = opened.mark
        self._reasons = Counter(opened.manifest.totals.reasons)
        self._committed_reasons = Counter(self._reasons)
        self._committed_at = self._manifest_at = self._opened_at = time.monotonic()
        self._interrupted = False
        self._failure: OutputFailed | None = None
        self._closed = False
        self.resumed = opened.mark.index > 0
        """Whether records were there already."""
        self.notes = opened.news
        """What differs from the run before and does not change the plan."""

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
        many = len(records) > _MANY  # enough to hold up the loop
        group, end = await _run(self._executor, self._encode, records) if many else self._encode(records)
        async with self._whole():
            await self._pair.append(bytes(group.stories), bytes(group.rejected))
            self._written = end
            self._reasons += group.reasons
            if time.monotonic() - self._committed_at >= GROUP_SECONDS:
                await self._commit()

    async def commit(self) -> None:
        """Ends the commit group now: what was written lasts through a power cut. For a run that has gone quiet."""
        async with self._whole():
            await self._commit()

    def describe(self, facts: Mapping[str, object]) -> None:
        """Adds JSON values to the manifest's ``facts``, from its next replacement on."""
        self._manifest = self._manifest.model_copy(update={"facts": self._manifest.facts | dict(facts)})

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
                with anyio.CancelScope(shield=True), suppress(OSError):
                    await self._take_back()
                self._interrupted = False
            async with self._whole():
                await self._commit(state or ("complete" if self.complete else "stopped"))
        self._closed = True

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
        if self._failure is not None:
            raise OutputFailed(self._failure.message, hint=self._failure.hint)
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

    async def _take_back(self) -> None:
        await self._pair.cut(self._committed)
        self._written, self._reasons = self._committed, Counter(self._committed_reasons)

    async def _commit(self, last: State | None = None) -> None:
        await self._pair.sync()
        self._committed, self._committed_at = self._written, time.monotonic()
        self._committed_reasons = Counter(self._reasons)
        if last is not None or self._committed_at - self._manifest_at >= MANIFEST_SECONDS:
            await _run(self._executor, manifests.replace, self._places.manifest, self._manifest_now(last or "running"))
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


@asynccontextmanager
async def _locked(places: Places, executor: Executor) -> AsyncIterator[None]:
    """Holds the lock. It belongs to an open file of this process, so it ends with it and is never stale."""
    lock = FileLock(places.lock, thread_local=False)
    try:
        with anyio.CancelScope(shield=True), failing(places):
            await _run(executor, _take, lock, places)
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await _run(executor, lock.release)


def _take(lock: FileLock, places: Places) -> None:
    make_folder(places.lock.parent)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise OutputInUse(
            f"{places.stories} is being written by another run", hint="wait for it, or give another output_path"
        ) from error


@asynccontextmanager
async def _pair(places: Places, executor: Executor) -> AsyncIterator[Pair]:
    """Closes what is open of it."""
    pair = Pair(places, executor)
    try:
        yield pair
    finally:
        with anyio.CancelScope(shield=True):
            await pair.close()


async def _run(executor: Executor, function: Callable[..., _T], *args: object) -> _T:
    return await asyncio.get_running_loop().run_in_executor(executor, function, *args)

"""THE STORY: wires the stages, top to bottom as in the diagram.

      plan -> produce -> [PromptPool] -> generate -> [completions] -> validate -> [verdicts] -> commit -> sink
                 ^            ^                                          |                        |
                 |            '------ retry: same prompt, next attempt --+---- repeat found ------'
                 '-------------------- Window: what is planned and not yet decided ---------------'

``Flow`` is the graph, whatever stands at its two ends; ``session.run`` ends it in files, ``stream.open_pipeline`` in a
stream for the caller's own loop. Every [name] is bounded, and every stream has room for the whole window, so inside it
no send ever blocks. Knows nothing about signals, terminals or exit codes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from types import MappingProxyType

import anyio
import anyio.from_thread
import anyio.lowlevel
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from asyncgen.backends import Generator
from asyncgen.config import Config
from asyncgen.endings import failing, failures, hopeless, too_few_prompts, used_up, worry
from asyncgen.errors import (
    AsyncgenError,
    BackendFailed,
    PromptRefused,
    PromptTooLong,
)
from asyncgen.metrics import Metrics, Snapshot
from asyncgen.ordering import Ordering, next_attempt
from asyncgen.output import Seen
from asyncgen.packing import PromptPool, Window
from asyncgen.prompts import PromptSource
from asyncgen.records import Completion, Prompt, Rejection, Story, Verdict
from asyncgen.tasks import single_cause
from asyncgen.validators import BUILT_IN, Functions, Validators, fingerprint64

_log = logging.getLogger(__name__)

__all__ = ["Flow", "Sink", "seen_before"]

GROUP = 32
"""Prompts planned and prepared at a time."""

SLICE = 16
"""Completions judged between two checkpoints of the event loop: a millisecond or two (without patterns)."""

Sink = Callable[[Sequence[Story | Rejection]], Awaitable[None]]
"""Takes decided records, in index order."""


class Flow:
    """The stages of one run and what they share. ``run`` it once."""

    def __init__(
        self,
        config: Config,
        source: PromptSource,
        backend: Generator,
        validators: Validators,
        *,
        start: int = 0,
        accepted: int = 0,
        rejected: int = 0,
        seen: Seen | None = None,
        tell: Callable[[str], object] = _log.info,
    ) -> None:
        """``tell`` is told sentences that a user should read once."""
        self._tell = tell
        self.config = config
        self.source = source
        self.backend = backend
        self.start = start
        self.window = Window(_window_size(config, backend), config.num_stories, start=start, accepted=accepted)
        self.pool = PromptPool(self.window, self._whose_turn)
        self.metrics = Metrics()
        self.judge: Callable[[Completion], Verdict] = validators.judge
        self._judging_may_take_long = validators.judge.may_take_long
        self._judging_in_thread = False
        self.functions = validators.functions
        repeats = Seen() if seen is None else seen
        self.ordering = Ordering(
            config, lambda text: repeats.add(fingerprint64(text)), start=start, accepted=accepted, rejected=rejected
        )
        self.sources_ended = False
        self.source_failure: AsyncgenError | None = None
        """What ended planning: the item of a source that cannot be had, or an end that could not be recorded."""
        self.stopped = False
        self._drained_by = 0.0
        self._before = (accepted, rejected)
        self._writing = False
        self._planning = anyio.CancelScope()
        self._threads = anyio.CapacityLimiter(1)  # our own, never the application's default tokens
        self._judges = anyio.CapacityLimiter(1)
        self._completions, self._completions_in = anyio.create_memory_object_stream[tuple[Completion, ...]](
            self.window.size
        )
        self._asked, self._asked_in = anyio.create_memory_object_stream[Verdict](self.window.size)
        self._verdicts, self._verdicts_in = anyio.create_memory_object_stream[tuple[Verdict, ...]](self.window.size)

    async def run(self, sink: Sink) -> None:
        """Runs all stages until the goal is reached, the sources end, ``stop`` is called or something fails.

        Raises TooManyRejections; TooManyFailures, also at the end of the sources; SourcesEnded if these gave fewer than
        ``num_stories`` accepted stories; or what a stage or the sink raised.
        """
        refusals = self._completions.clone()
        with (
            self._completions,
            refusals,
            self._completions_in,
            self._asked,
            self._asked_in,
            self._verdicts,
            self._verdicts_in,
            single_cause(),
        ):
            self.metrics.begin()
            try:
                async with anyio.create_task_group() as stages:
                    stages.start_soon(self._close_pool_when_settled)  # first: it must be there whoever fails next
                    stages.start_soon(self._produce, refusals)
                    stages.start_soon(self._generate, self._completions)
                    stages.start_soon(self._validate, self._completions_in, self._verdicts)
                    stages.start_soon(self._commit, self._verdicts_in, sink)
            finally:
                self.metrics.end()
        self._check_end()

    def stop(self) -> None:
        """Stops planning. Everything that was begun is finished and committed: what the generator holds, and what must
        be decided before it because output is in index order. What only waits is let go.
        """
        _log.info("stopping: what was begun is finished")
        self.stopped = True
        self._drained_by = time.monotonic() + self.config.drain_timeout
        self._planning.cancel()
        self.pool.drain()

    @property
    def complete(self) -> bool:
        """Whether all that was asked for is decided: the goal is reached, or without one the sources have ended."""
        if self.config.num_stories is not None:
            return self.window.reached
        return self.sources_ended and self.window.undecided == 0

    @property
    def to_mend(self) -> list[str]:
        """The inputs with code of the user's that failed and ended the run."""
        functions = () if self.functions is None else self.functions.to_mend
        return [*filter(None, [self.source.to_mend]), *functions]

    async def _produce(self, refusals: MemoryObjectSendStream[tuple[Completion, ...]]) -> None:
        """Plans prompts while the window has room, prepares them off the loop, and puts them into the pool.

        A source that fails ends planning: what is planned is finished and committed, then ``run`` raises the failure.
        """
        index = self.start
        with refusals, self._planning:
            try:
                while room := await self.window.wait_for_room():
                    try:
                        drafts = await self.source.take(index, min(room, GROUP))
                    except AsyncgenError as failure:
                        self.source_failure = failure
                        break
                    if not drafts:
                        self.sources_ended = True
                        break
                    self.window.plan(len(drafts))
                    index += len(drafts)
                    ready, refused = await anyio.to_thread.run_sync(self._prepare, drafts, limiter=self._threads)
                    if refused:
                        refusals.send_nowait(refused)
                    self.pool.put(ready)
            finally:
                self.window.end()

    def _prepare(self, drafts: Sequence[Prompt]) -> tuple[list[Prompt], tuple[Completion, ...]]:
        """Renders and tokenises, in a worker thread; a prompt that cannot be used is a completion without text."""
        ready: list[Prompt] = []
        refused: list[Completion] = []
        sampling, stop = self.config.generation.sampling, self.config.generation.stop
        for draft in drafts:
            try:
                prepared = self.backend.prepare(draft.asked, draft.max_new_tokens, draft.shared)
                stops = stop if draft.stop is None else draft.stop
                ready.append(replace(draft, prepared=prepared, sampling=draft.sampling or sampling, stop=stops))
            except (PromptTooLong, PromptRefused) as error:
                refused.append(Completion(draft, "", 0, 0.0, "refused", error=error.message, retryable=False))
        return ready, tuple(refused)

    async def _generate(self, completions: MemoryObjectSendStream[tuple[Completion, ...]]) -> None:
        """Lets the backend pull from the pool until it is closed."""
        with completions:
            await self.backend.run(self.pool, completions)
            if not self.pool.closed:
                raise BackendFailed("the backend ended while prompts were still to come")

    async def _validate(
        self,
        completions: MemoryObjectReceiveStream[tuple[Completion, ...]],
        verdicts: MemoryObjectSendStream[tuple[Verdict, ...]],
    ) -> None:
        """Judges completions, first by the built-in checks, then by functions of the user's if there are any."""
        with verdicts:
            if self.functions is None:
                await self._judge(completions, verdicts)
                return
            async with anyio.create_task_group() as askers:
                for _ in range(min(self.functions.concurrency, self.window.size)):
                    askers.start_soon(self._ask, self.functions, self._asked_in, verdicts)
                with self._asked:
                    await self._judge(completions, verdicts)

    async def _judge(
        self,
        completions: MemoryObjectReceiveStream[tuple[Completion, ...]],
        verdicts: MemoryObjectSendStream[tuple[Verdict, ...]],
    ) -> None:
        """Asks the built-in checks. What they accept waits for the user's functions, and holds nothing else up."""
        async for group in completions:
            for at in range(0, len(group), SLICE):
                began = time.perf_counter()
                judged = await self._judge_slice(group[at : at + SLICE])
                self.metrics.validated(BUILT_IN, time.perf_counter() - began, len(judged))
                if self.functions is not None:
                    for verdict in judged:
                        if verdict.accepted:
                            self._asked.send_nowait(verdict)
                    judged = [verdict for verdict in judged if not verdict.accepted]
                await self._pass_on(judged, verdicts)
                await anyio.lowlevel.checkpoint()

    async def _judge_slice(self, completions: Sequence[Completion]) -> list[Verdict]:
        """Judges on the loop, where that takes less than handing over to a thread, unless there are patterns."""
        if not self._judging_may_take_long:
            return [self.judge(completion) for completion in completions]
        self._judging_in_thread = True
        try:
            return await anyio.to_thread.run_sync(
                lambda: [self.judge(completion) for completion in completions], limiter=self._judges
            )
        finally:
            self._judging_in_thread = False

    async def _ask(
        self,
        functions: Functions,
        asked: MemoryObjectReceiveStream[Verdict],
        verdicts: MemoryObjectSendStream[tuple[Verdict, ...]],
    ) -> None:
        """Asks the user's functions about one text after another, beside others that do the same."""
        async for verdict in asked:
            await self._pass_on([await functions.ask(verdict, self.metrics.validated)], verdicts)

    async def _pass_on(self, judged: Sequence[Verdict], verdicts: MemoryObjectSendStream[tuple[Verdict, ...]]) -> None:
        """Those rejected with attempts left go back into the pool, the rest goes on."""
        self.metrics.judged(judged)
        final = tuple(verdict for verdict in judged if not self._tries_again(verdict))
        if final:
            await verdicts.send(final)

    def _tries_again(self, verdict: Verdict) -> bool:
        if verdict.accepted or (retry := next_attempt(verdict, self.config)) is None:
            return False
        self.pool.put([retry])
        return True

    async def _commit(self, verdicts: MemoryObjectReceiveStream[tuple[Verdict, ...]], sink: Sink) -> None:
        """Puts verdicts in index order, refuses repeats, hands records to the sink and frees the window."""
        async for group in verdicts:
            decisions = self.ordering.add([*group, *_what_else_is_there(verdicts)])
            self.metrics.repeated(decisions.repeats)
            self.pool.put(decisions.retries)
            if decisions.records:
                await self._hand_over(decisions.records, sink)
                for record in decisions.records:
                    self.window.decide(accepted=isinstance(record, Story))
            if decisions.worrying and not decisions.hopeless:
                self._tell(worry(self.ordering, self.metrics))
            if decisions.failing:
                raise failing(self.ordering, self.metrics)
            if decisions.hopeless:
                raise hopeless(self.ordering, self.metrics, self.config)

    async def _hand_over(self, records: Sequence[Story | Rejection], sink: Sink) -> None:
        began = time.monotonic()
        self._set_writing(True)
        try:
            await sink(records)
        finally:
            self._set_writing(False)
            self.metrics.disk_seconds += time.monotonic() - began

    def _set_writing(self, writing: bool) -> None:
        self._writing = writing
        self.pool.turn_changed()

    def _whose_turn(self) -> str:
        """Who has what the generator waits for. Nothing is in the generator then, so if no more may be planned, all
        that is undecided is in the validators or on its way to disk.
        """
        if not (self.window.blocked or self.window.ended):
            return "prompts"
        judging = self._to_judge or self._judging or self._judging_in_thread
        return "disk" if self._writing and not judging else "validators"

    @property
    def _to_judge(self) -> int:
        """Groups of completions, and texts for the user's functions, that wait."""
        return sum(stream.statistics().current_buffer_used for stream in (self._completions, self._asked))

    @property
    def _judging(self) -> int:
        return 0 if self.functions is None else self.functions.asking

    async def _close_pool_when_settled(self) -> None:
        """Ends the flow: the graph has a cycle, so closed streams alone never would. Also when cancelled: the
        generator's thread may be waiting in ``take``, where no cancellation reaches it.
        """
        try:
            await self.window.wait_until_settled()
        finally:
            self.pool.close()

    def _check_end(self) -> None:
        if self.source_failure is not None:
            raise self.source_failure
        if not self.sources_ended or self.stopped or self.window.reached:
            return
        if self.ordering.broken:
            raise used_up(failures(self.ordering, self.metrics))
        if not self.complete:
            raise too_few_prompts(self.window.decided, self.window.accepted, self.config)

    def snapshot(self) -> Snapshot:
        """The state of the run now; views only read this."""
        depths = {
            "prompts": len(self.pool),
            "completions": self._to_judge,
            "judging": self._judging,
            "verdicts": self._verdicts.statistics().current_buffer_used,
            "in order": len(self.ordering),
            "retries": max(0, self.pool.retries - (self.metrics.attempts - self.metrics.first_attempts)),
            "undecided": self.window.undecided,
            "window": self.window.size,
        }
        metrics = self.metrics
        return Snapshot(
            **self.backend.snapshot().values(),
            goal=self.config.num_stories,
            accepted=self.ordering.accepted,
            rejected=self.ordering.rejected,
            recent_rejected=self.ordering.recent[0],
            recent=self.ordering.recent[1],
            stops_at=self.ordering.stops_at,
            accepted_before=self._before[0],
            rejected_before=self._before[1],
            attempts=metrics.attempts,
            accepted_attempts=metrics.accepted_attempts,
            first_attempts=metrics.first_attempts,
            accepted_first=metrics.accepted_first,
            tokens=metrics.tokens,
            seconds=metrics.seconds,
            starved_by=self.pool.starved_by,
            stopping=self.stopped,
            finishing=self.window.left if self.stopped else 0,
            drain_seconds=max(0.0, self._drained_by - time.monotonic()) if self.stopped else 0.0,
            let_go=self.source.let_go,
            source_seconds=MappingProxyType(dict(self.source.waited)),
            validator_seconds=MappingProxyType(dict(metrics.validator_seconds)),
            validator_blocked=MappingProxyType({} if self.functions is None else dict(self.functions.blocked)),
            validator_calls=MappingProxyType(dict(metrics.validator_calls)),
            disk_seconds=metrics.disk_seconds,
            reasons=MappingProxyType(dict(metrics.reasons.most_common())),
            depths=MappingProxyType(depths),
        )


def seen_before(config: Config, texts: Iterable[str]) -> Seen:
    """What new stories must not repeat: ``texts`` of earlier ones, read only if that matters. Runs in a thread."""
    seen = Seen()
    if config.validation.enabled and config.validation.reject_repeats:
        for text in texts:
            seen.add(fingerprint64(text))
            anyio.from_thread.check_cancelled()
    return seen


def _window_size(config: Config, backend: Generator) -> int:
    rows = backend.limits.rows
    size = max(256, 4 * rows * min(config.attempts, 8)) if config.window is None else config.window
    return max(size, 2 * rows)


def _what_else_is_there(verdicts: MemoryObjectReceiveStream[tuple[Verdict, ...]]) -> list[Verdict]:
    """What waits in the stream, without waiting: one write then carries all of it."""
    found: list[Verdict] = []
    for _ in range(verdicts.statistics().current_buffer_used):
        found.extend(verdicts.receive_nowait())
    return found

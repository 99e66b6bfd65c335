"""One session of a run: from a configuration to files on disk, the first time or going on after a stop.

Opens what a run needs in the order in which it is cheap to refuse (inputs, model name, output, model), lets the
``Flow`` go, and says how it ended. Nothing here knows about signals or terminals; torch is imported by the backend.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread

from asyncgen.backends import check_model, open_backend
from asyncgen.backends.find import locate
from asyncgen.config import Config, EchoBackend
from asyncgen.errors import RunStopped, SourcesEnded, TooManyRejections
from asyncgen.metrics import Snapshot
from asyncgen.output import Output, Places, Progress, Seen, open_output, peek, seen_stories
from asyncgen.pipeline import Flow, Sink, single_cause
from asyncgen.prompts import input_files, open_source
from asyncgen.records import Rejection, Story
from asyncgen.report import Outcome, Report
from asyncgen.validators import fingerprint64

__all__ = ["Notice", "Watch", "progress_on_disk", "run"]

Watch = Callable[[Flow], Coroutine[object, object, None]]
"""Shows a flow until it is cancelled; it may only read ``flow.snapshot()``."""

Notice = Callable[[str], object]
"""Told, one at a time, sentences that a user should read once."""

SYNC_SECONDS = 0.5
"""What was written is on the disk for good at most this much later, however long the next record takes."""


async def run(
    config: Config, *, stop: anyio.Event | None = None, watch: Watch | None = None, notice: Notice | None = None
) -> Report:
    """Makes the stories that ``config`` asks for, or those that an earlier session left to be made.

    ``stop``, once set, ends the run gracefully: what is being generated is finished and committed. Cancellation ends
    it within one decode step of the model; what was decided before is on disk either way.

    Raises InputError, OutputError, TooManyRejections, SourcesEnded or BackendFailed; the two in the middle carry the
    ``report``.
    """
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        if notice is not None:
            notice(text)

    with single_cause():
        async with open_source(config) as source, _checked_output(config) as output:
            for note in output.notes:
                tell(f"resumed with another setting: {note}")
            if output.complete:
                return _report("complete", _at_rest(config, output), output, told)
            if not await source.take(output.start, 1):
                return _sources_ended(config, output, told)
            async with open_backend(config) as backend:
                for text in backend.notices:
                    tell(text)
                seen = await _seen(config, output)
                flow = Flow(
                    config,
                    source,
                    backend,
                    start=output.start,
                    accepted=output.accepted,
                    rejected=output.rejected,
                    seen=seen,
                )
                return await _let_go(flow, output, stop, watch, told)


def progress_on_disk(config: Config) -> Progress | None:
    """How far the output of ``config`` is, None if nothing is there. Cheap: changes nothing, imports no torch.

    Raises what ``run`` would raise before it loads a model.
    """
    return peek(config, _inputs(config))


@asynccontextmanager
async def _checked_output(config: Config) -> AsyncIterator[Output]:
    """The output, opened once everything else that is cheap to refuse has been looked at."""
    inputs = await anyio.to_thread.run_sync(_checked_inputs, config, limiter=anyio.CapacityLimiter(1))
    async with open_output(config, inputs) as output:
        yield output


async def _let_go(
    flow: Flow, output: Output, stop: anyio.Event | None, watch: Watch | None, told: Sequence[str]
) -> Report:
    """Runs the flow into the output, beside its watchers."""
    async with anyio.create_task_group() as watchers, _synced(output) as write:
        if stop is not None:
            watchers.start_soon(_stop_when_asked, flow, stop)
        if watch is not None:
            watchers.start_soon(watch, flow)
        try:
            await _run_and_describe(flow, output, write)
        except RunStopped as stopped:
            outcome: Outcome = "too many rejections" if isinstance(stopped, TooManyRejections) else "sources ended"
            stopped.report = _report(outcome, flow.snapshot(), output, told)
            raise
        watchers.cancel_scope.cancel()
    ended = flow.stopped and not flow.window.reached
    if not ended:
        await output.close("complete")
    return _report("stopped" if ended else "complete", flow.snapshot(), output, told)


async def _run_and_describe(flow: Flow, output: Output, write: Sink) -> None:
    """Runs the flow; however it ends, the manifest tells what this session measured."""
    try:
        await flow.run(write)
    finally:
        s = flow.snapshot()
        output.describe(
            {
                "last session": {
                    "stories": s.new,
                    "attempts": s.attempts,
                    "tokens": s.tokens,
                    "seconds": round(s.seconds, 3),
                    "busy seconds": round(s.busy_seconds, 3),
                    "refused attempts": dict(s.reasons),
                }
            }
        )


@asynccontextmanager
async def _synced(output: Output) -> AsyncIterator[Sink]:
    """A sink that writes to ``output``, and a task that commits what a quiet run has not committed yet."""
    lock = anyio.Lock()
    dirty = anyio.Event()

    async def write(records: Sequence[Story | Rejection]) -> None:
        async with lock:
            await output.write(records)
            dirty.set()

    async def commit_when_quiet() -> None:
        nonlocal dirty
        while True:
            await dirty.wait()
            await anyio.sleep(SYNC_SECONDS)
            async with lock:
                dirty = anyio.Event()
                await output.commit()

    async with anyio.create_task_group() as group:
        group.start_soon(commit_when_quiet)
        yield write
        group.cancel_scope.cancel()


async def _stop_when_asked(flow: Flow, stop: anyio.Event) -> None:
    await stop.wait()
    flow.stop()


async def _seen(config: Config, output: Output) -> Seen:
    """The repeats that earlier sessions must be known by, read from the stories on disk."""
    seen = Seen()
    if output.resumed and config.validation.enabled and config.validation.reject_repeats:

        def read() -> None:
            for content in seen_stories(output.places.stories):
                seen.add(fingerprint64(content))
                anyio.from_thread.check_cancelled()

        await anyio.to_thread.run_sync(read, limiter=anyio.CapacityLimiter(1))
    return seen


def _checked_inputs(config: Config) -> dict[str, Path | str]:
    check_model(config)
    return _inputs(config)


def _inputs(config: Config) -> dict[str, Path | str]:
    """Everything on disk that records depend on: what prompts are made from, and a local model's files."""
    inputs = dict(input_files(config))
    if not isinstance(config.backend, EchoBackend) and isinstance(place := locate(config.model_name), Path):
        inputs["model"] = place
    return inputs


def _sources_ended(config: Config, output: Output, told: Sequence[str]) -> Report:
    outcome: Outcome = "complete" if config.num_stories is None else "sources ended"
    report = _report(outcome, _at_rest(config, output), output, told)
    if config.num_stories is not None:
        raise SourcesEnded(
            f"the sources have no prompts after the {output.start} on disk: "
            f"{output.accepted} of {config.num_stories} stories accepted",
            hint="add prompts to the source, or lower num_stories",
            report=report,
        )
    return report


def _at_rest(config: Config, output: Output) -> Snapshot:
    return Snapshot(
        goal=config.num_stories, accepted=output.accepted, rejected=output.rejected, accepted_before=output.accepted
    )


def _report(outcome: Outcome, snapshot: Snapshot, output: Output, told: Sequence[str]) -> Report:
    places: Places = output.places
    return Report(outcome, snapshot, places.stories, places.rejected, tuple(told))

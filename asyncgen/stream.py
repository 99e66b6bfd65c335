"""``open_pipeline``: the stages of a run, into somebody else's own loop instead of files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from asyncgen.config import Config
from asyncgen.engine import Engine, engine_for
from asyncgen.metrics import Snapshot
from asyncgen.pipeline import Flow, seen_before
from asyncgen.prompts import open_source
from asyncgen.records import Rejection, Story
from asyncgen.tasks import as_raised, in_thread, tell_nobody
from asyncgen.validators import open_validators

__all__ = ["Stories", "open_pipeline"]


class Stories:
    """Accepted stories in index order, to be read with ``async for``; ``snapshot()`` tells how it goes."""

    def __init__(self, stories: MemoryObjectReceiveStream[Story], flow: Flow) -> None:
        self._stories = stories
        self._flow = flow

    def __aiter__(self) -> AsyncIterator[Story]:
        return self._stories.__aiter__()

    def snapshot(self) -> Snapshot:
        """The state of the pipeline now."""
        return self._flow.snapshot()


@asynccontextmanager
async def open_pipeline(
    config: Config, *, engine: Engine | None = None, start: int = 0, kept: Iterable[str] = ()
) -> AsyncIterator[Stories]:
    """The stages of a run, into your own loop; writes nothing.

    Yields accepted stories in index order. ``engine`` is one that is open and has the model of ``config``, to be shared
    with others, whose requests go first; None opens one.
    To resume, give ``start``, one past the ``metadata["index"]`` of the last story you kept, and ``kept``, the texts of
    all you kept: they count towards ``num_stories`` and are not repeated. Raises ValueError if that is more than
    ``start`` indices can have given.
    Leaving the block early stops everything within one decode step of the model. A slow reader slows the generator;
    nothing piles up beyond the window.

    Nothing records where a source of several ended and gave its places to the others, so with ``start`` it is found
    again: the files must be as they were, and a function that has no item there is counted from its beginning. The
    files of ``run`` do record it.

    If the run cannot go on, ``async for`` ends and leaving the block raises what ``run`` would raise.
    """
    texts = tuple(kept)
    if start < len(texts):
        raise ValueError(f"start is {start}, but {len(texts)} texts were kept: they have as many indices before it")
    failures: list[Exception] = []
    seen = await in_thread(seen_before, config, texts)
    validators = await in_thread(open_validators, config)
    async with open_source(config) as source, engine_for(config, engine, tell_nobody) as opened:
        await source.find_ends(start)
        flow = Flow(
            config,
            source,
            opened.as_backend(),
            validators,
            start=start,
            accepted=len(texts),
            rejected=start - len(texts),
            seen=seen,
        )
        stories, stories_in = anyio.create_memory_object_stream[Story]()
        with stories, stories_in, as_raised():  # what the caller raises inside the block leaves as it was raised
            async with anyio.create_task_group() as group:
                group.start_soon(_run_into, flow, stories, failures)
                yield Stories(stories_in, flow)
                group.cancel_scope.cancel()
    for failure in failures:
        raise failure


async def _run_into(flow: Flow, stories: MemoryObjectSendStream[Story], failures: list[Exception]) -> None:
    """Runs the flow into the stream. A failure is kept for later: the reader may be busy with its last story."""

    async def send(records: Sequence[Story | Rejection]) -> None:
        for record in records:
            if isinstance(record, Story):
                await stories.send(record)

    with stories:
        try:
            await flow.run(send)
        except Exception as failure:  # noqa: BLE001  # raised by open_pipeline
            failures.append(failure)

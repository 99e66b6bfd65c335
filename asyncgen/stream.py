"""``open_pipeline``: the stages of a run, into somebody else's own loop instead of files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from asyncgen.backends.find import cautions
from asyncgen.config import Config, check_config
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

    def __init__(self, stories: MemoryObjectReceiveStream[Story], flow: Flow, notices: Sequence[str]) -> None:
        self._stories = stories
        self._flow = flow
        self._notices = notices

    @property
    def notices(self) -> tuple[str, ...]:
        """What a person should read once: that the model has no chat template, say. More may come."""
        return tuple(self._notices)

    def __aiter__(self) -> AsyncIterator[Story]:
        return self._stories.__aiter__()

    def snapshot(self) -> Snapshot:
        """The state of the pipeline now."""
        return self._flow.snapshot()


@asynccontextmanager
async def open_pipeline(
    config: Config,
    *,
    engine: Engine | None = None,
    start: int = 0,
    kept: Iterable[str] = (),
    notice: Callable[[str], object] | None = None,
) -> AsyncIterator[Stories]:
    """The stages of a run, into your own loop; writes nothing.

    Yields accepted stories in index order. ``engine`` is one that is open and has the model of ``config``, to be shared
    with others, whose requests go first; None opens one.
    To resume, give ``start``, one past the ``metadata["index"]`` of the last story you kept, and ``kept``, the texts of
    all you kept: they count towards ``num_stories`` and are not repeated. Raises ValueError if that is more than
    ``start`` indices can have given.
    ``notice`` is called, on the event loop, with each sentence that a person should read once, as ``run`` calls its
    own; all but the loading is in ``notices`` too.
    Leaving the block early stops everything within one decode step of the model. A slow reader slows the generator;
    nothing piles up beyond the window.

    Nothing records where a source of several ended and gave its places to the others, so with ``start`` it is found
    again: the files must be as they were, and a function that has no item there is counted from its beginning. The
    files of ``run`` do record it.

    If the run cannot go on, ``async for`` ends and leaving the block raises what ``run`` would raise; of a RunStopped
    the ``report`` is None, for there is no output, and ``snapshot()`` says how far it came.
    """
    check_config(config)
    texts = tuple(kept)
    _check_start(start, texts)
    failures: list[Exception] = []
    seen = await in_thread(seen_before, config, texts)
    validators = await in_thread(open_validators, config)
    hear = notice or tell_nobody
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        hear(text)

    for caution in cautions(config):
        tell(caution)
    async with open_source(config, tell) as source, engine_for(config, engine, hear) as opened:
        backend = opened.as_backend()
        for text in () if engine else backend.notices:  # whoever opened it was told, of other prompts than ours
            tell(text)
        await source.find_ends(start)
        flow = Flow(
            config,
            source,
            backend,
            validators,
            start=start,
            accepted=len(texts),
            rejected=start - len(texts),
            seen=seen,
            tell=tell,
        )
        stories, stories_in = anyio.create_memory_object_stream[Story]()
        with stories, stories_in, as_raised():  # what the caller raises inside the block leaves as it was raised
            async with anyio.create_task_group() as group:
                group.start_soon(_run_into, flow, stories, failures)
                yield Stories(stories_in, flow, told)
                group.cancel_scope.cancel()
    for failure in failures:
        raise failure


def _check_start(start: int, kept: Sequence[str]) -> None:
    if start < 0:
        raise ValueError(f"start: found {start}, expected 0 or more")
    if start < len(kept):
        raise ValueError(f"start is {start}, but {len(kept)} texts were kept: they have as many indices before it")


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

"""Flows on the echo backend, and what tests need to look at them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel

from asyncgen.backends import open_backend
from asyncgen.config import Config, EchoBackend
from asyncgen.pipeline import Flow
from asyncgen.prompts import PromptSource, open_source
from asyncgen.records import Prompt, Rejection, Story
from asyncgen.validators import open_validators

Record = Story | Rejection


def config_for(**changes: object) -> Config:
    echo = {
        name: changes.pop(name)
        for name in ("bad_share", "distinct", "context_length", "seconds_per_batch")
        if name in changes
    }
    settings: dict[str, object] = {
        "backend": EchoBackend(kind="echo", **echo),
        "max_rejection_rate": 1.0,
        "use_k_shot": False,
        **changes,
    }
    return Config.model_validate(settings)


class Finite:
    """A source that ends after ``count`` prompts and lets others run before each answer."""

    def __init__(self, source: PromptSource, count: int) -> None:
        self.count: int | None = count
        self.to_mend: str | None = None
        self.waited: Mapping[str, float] = {}
        self.let_go = 0
        self._source = source

    async def take(self, start: int, count: int) -> tuple[Prompt, ...]:
        await anyio.lowlevel.checkpoint()
        return await self._source.take(start, max(0, min(count, (self.count or 0) - start)))


async def decide(config: Config, *, prompts: int | None = None, start: int = 0, accepted: int = 0) -> list[Record]:
    """Runs a flow to its end and returns what it decided."""
    records: list[Record] = []

    async def sink(group: Sequence[Record]) -> None:
        await anyio.lowlevel.checkpoint()
        records.extend(group)

    async with flow_for(config, prompts=prompts, start=start, accepted=accepted) as flow:
        await flow.run(sink)
    return records


@asynccontextmanager
async def flow_for(
    config: Config, *, prompts: int | None = None, start: int = 0, accepted: int = 0
) -> AsyncIterator[Flow]:
    async with open_source(config) as source, open_backend(config) as backend:
        end = Finite(source, prompts) if prompts is not None else source
        yield Flow(
            config, end, backend, open_validators(config), start=start, accepted=accepted, rejected=start - accepted
        )


def texts(records: Sequence[Record]) -> list[tuple[int, str, bool]]:
    return [(record.index, record.content, isinstance(record, Rejection)) for record in records]

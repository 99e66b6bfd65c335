"""The ``openai`` backend: texts from a server, which renders, tokenises and batches; here is who is asked when."""

from __future__ import annotations

from collections.abc import Callable

from asyncgen.backends.base import BackendSnapshot, Completions, Limits, Pool, nobody
from asyncgen.backends.openai.asker import Asker
from asyncgen.backends.openai.asking import stops_of
from asyncgen.backends.openai.client import Client
from asyncgen.backends.openai.meter import ServerMeter
from asyncgen.backends.openai.pace import FIRST
from asyncgen.backends.openai.running import Running
from asyncgen.backends.stops import Stops
from asyncgen.backends.streaming import Progress, TextReader
from asyncgen.config import Config, OpenAIBackend
from asyncgen.records import Given, Prepared, Prompt

__all__ = ["AUTO_ROWS", "Served"]

AUTO_ROWS = 64
"""Requests in flight at most, where ``generation.batch_size`` is ``auto``."""


class Served:
    """See the module. Made by ``open_server``, which closes the ``client``."""

    def __init__(
        self, config: Config, options: OpenAIBackend, client: Client, rows: int, notice: Callable[[str], object]
    ) -> None:
        self.limits = Limits(None, rows)
        self.notices: tuple[str, ...] = ()
        self.engine = "openai"
        self.fallback = ""
        self.revision: str | None = None
        self._options, self._generation, self._notice = options, config.generation, notice
        self._asker = Asker(client, config, options, notice)
        self._meter = ServerMeter(min(FIRST, rows))
        self._running: Running | None = None

    def prepare(self, given: Given, max_new_tokens: int, shared: int = 0) -> Prepared:  # noqa: ARG002  # the server's business
        """Nothing is known of tokens here, so prompts are taken in the order of the plan."""
        return Prepared(0)

    async def run(self, pool: Pool, completions: Completions, progress: Progress = nobody) -> None:
        """See ``Backend.run``. Raises ServerFailed; leaves the pool closed, however it ends."""
        rows = self.limits.rows
        self._running = Running(
            self._asker, self._options, rows, self._meter, self._notice, pool, completions, progress
        )
        try:
            await self._running.go()
        finally:
            self._running = None
            pool.close()

    def cancel(self, prompt: Prompt) -> None:
        """See ``Backend.cancel``: its connection is closed, by which a server knows."""
        if self._running is not None:
            self._running.cancel(prompt)

    def reader(self, prompt: Prompt) -> TextReader:
        """See ``Backend.reader``."""
        return TextReader(Stops(stops_of(prompt, self._generation), lambda _: ""))

    def snapshot(self) -> BackendSnapshot:
        """See ``Backend.snapshot``."""
        return self._meter.snapshot()

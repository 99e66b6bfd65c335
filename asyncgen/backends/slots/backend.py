"""The ``slots`` backend: the engine's thread, between a pool of prompts and a stream of completions.

The thread's whole life is a loop: take what has come, seat it in free slots, make a step, hand over what has ended.
It looks for the end of the exchange before every step, so leaving takes one step at most.
"""

from __future__ import annotations

import gc
from dataclasses import replace

import anyio
import torch
from anyio import CapacityLimiter, to_thread

from asyncgen.backends.base import BackendSnapshot, Completions, Limits, Pool, nobody
from asyncgen.backends.chat import Chat
from asyncgen.backends.loading import Loaded
from asyncgen.backends.rendering import check_template, encode
from asyncgen.backends.slots.boundary import Boundaries
from asyncgen.backends.slots.decoders import open_decoders
from asyncgen.backends.slots.exchange import Exchange
from asyncgen.backends.slots.meter import SlotMeter
from asyncgen.backends.slots.probe import probe
from asyncgen.backends.slots.worker import Worker
from asyncgen.backends.streaming import Progress, TokenReader
from asyncgen.config import Config
from asyncgen.errors import BackendFailed
from asyncgen.records import Given, Prepared, Prompt

__all__ = ["Slots"]


class Slots:
    """See the module. ``close`` frees the model; nothing else may be called after it."""

    def __init__(self, loaded: Loaded, config: Config) -> None:
        """Raises Unsupported if the model cannot be run like this; it is as it was then."""
        self._loaded, self._device = loaded, loaded.device
        self._sampling = config.generation.sampling
        self._chat = Chat(loaded.tokenizer, config.generation.stop)
        check_template(self._chat, config)
        self._boundaries = Boundaries(self._chat)
        self._decoders = open_decoders(loaded, probe(loaded, loaded.context_length), config)
        self.limits = Limits(loaded.context_length, self._decoders.slots)
        self.notices: tuple[str, ...] = self._chat.notices(config.system_prompt)
        if self._decoders.notice:
            self.notices += (self._decoders.notice,)
        if self.limits.rows < (wanted := self._decoders.wanted):
            self.notices += (f"memory holds {self.limits.rows} rows at once, not {wanted} (generation.batch_size)",)
        self.engine = "slots"
        self.fallback = ""
        self.revision: str | None = loaded.revision
        self.described = (
            f"on {loaded.device}, {str(loaded.model.dtype).removeprefix('torch.')}, {self.limits.rows} slots"
        )
        """Where and in what the model was loaded, for people."""
        self._meter = SlotMeter(self.limits.rows)
        self._exchange: Exchange | None = None
        self._limiter = CapacityLimiter(1)

    def prepare(self, given: Given, max_new_tokens: int, shared: int = 0) -> Prepared:
        """See ``Backend.prepare``. ``length`` counts the tokens behind the shared beginning."""
        limits = {"context_length": self._loaded.context_length, "embeddings": self._loaded.embeddings}
        ids = encode(self._chat, given, max_new_tokens, **limits)
        beginning = self._boundaries.shared(given, shared, ids)
        return Prepared(len(ids) - beginning, ids, shared=beginning)

    async def run(self, pool: Pool, completions: Completions, progress: Progress = nobody) -> None:
        """See ``Backend.run``. Raises BackendFailed if the model does; leaves the pool closed, however it ends."""
        exchange = self._exchange = Exchange(pool, completions, progress)
        failures: list[Exception] = []
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(exchange.serve)
                # In a task of its own: there, cancellation always comes by a scope, and never leaves the thread behind.
                tasks.start_soon(self._drive, exchange, failures, tasks.cancel_scope)
        finally:
            self._exchange = None
            pool.close()
        for failure in [*failures, *exchange.failures]:  # the first; raised here, it is in no group
            raise failure

    def cancel(self, prompt: Prompt) -> None:
        """See ``Backend.cancel``."""
        if self._exchange is not None:
            self._exchange.cancel(prompt)

    def reader(self, prompt: Prompt) -> TokenReader:
        """See ``Backend.reader``."""
        return self._chat.reader(prompt)

    def snapshot(self) -> BackendSnapshot:
        """See ``Backend.snapshot``."""
        if self._device.type == "cuda":
            return replace(self._meter.snapshot(), device_bytes=torch.cuda.memory_reserved(self._device))
        return self._meter.snapshot()

    def close(self) -> None:
        """Frees the model; blocks for as long as a garbage collection."""
        del self._loaded, self._chat, self._boundaries, self._decoders
        gc.collect()  # models hold reference cycles
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    async def _drive(self, exchange: Exchange, failures: list[Exception], scope: anyio.CancelScope) -> None:
        try:
            await to_thread.run_sync(self._work, exchange, limiter=self._limiter)
        except Exception as failure:  # noqa: BLE001  # raised by run
            failures.append(failure)
        scope.cancel()

    def _work(self, exchange: Exchange) -> None:
        self._meter.preparing()
        try:
            self._worker().run(exchange)
        except Exception as error:
            raise BackendFailed(f"the model failed: {type(error).__name__}: {error}") from error

    def _worker(self) -> Worker:
        """The engine with its memory, of which there may be less than when it was opened."""
        decoder = self._decoders.decoder()
        if decoder.slots != self.limits.rows:
            self.limits = replace(self.limits, rows=decoder.slots)
            self._meter.resized(decoder.slots)
        return Worker(
            decoder,
            self._decoders.prefix_room,
            chat=self._chat,
            sampling=self._sampling,
            eos_ids=self._loaded.eos_ids,
            meter=self._meter,
        )

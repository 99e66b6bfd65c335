"""The engine's thread: prompts in, seats, steps, completions out."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from contextlib import nullcontext
from time import perf_counter

import torch

from asyncgen.backends.chat import Chat
from asyncgen.backends.decoding import Row
from asyncgen.backends.loading import Loaded
from asyncgen.backends.memory import TokenBudget, is_out_of_memory
from asyncgen.backends.slots.arrangement import Seat
from asyncgen.backends.slots.cache import LayerShape, pages_for
from asyncgen.backends.slots.decoder import Decoder
from asyncgen.backends.slots.exchange import Exchange
from asyncgen.backends.slots.filling import LANES
from asyncgen.backends.slots.meter import SlotMeter
from asyncgen.backends.slots.prefixes import Prefixes
from asyncgen.backends.slots.sizing import Size
from asyncgen.backends.slots.threads import ThreadChoice, choosing_threads
from asyncgen.records import Completion, FinishReason, Prompt, Sampling

_log = logging.getLogger(__name__)

__all__ = ["Worker"]

TOGETHER = 2048
"""Prompt tokens computed at a time; the rows that run wait meanwhile."""
SOON = 32
"""Prompts that are asked for at a time, beside a refill."""
SHORTEST_WAIT, PATIENCE = 0.05, 7
"""Seconds that a row waits which is alone and does not fit, twice as long each time, and how often: 6 s in all."""
CALM = 64
"""Steps without running out of memory that count for more rows, where there were too many."""
REFILL = 16
"""Slots are refilled when a share of one in so many is free: prompts are cheaper to compute together."""


class Worker:
    """One run of the engine, in one thread."""

    def __init__(
        self,
        loaded: Loaded,
        layers: Sequence[LayerShape],
        size: Size,
        *,
        chat: Chat,
        sampling: Sampling,
        meter: SlotMeter,
    ) -> None:
        self._chat, self._sampling, self._eos_ids = chat, sampling, loaded.eos_ids
        self._decoder = Decoder(
            loaded.model,
            layers,
            slots=size.slots,
            pages=size.pages,
            vocabulary=_logits_width(loaded),
            settle=self._settle,
        )
        self._prefixes = Prefixes(self._decoder.prefix, size.prefix_tokens)
        self._meter = meter
        self._most_pages = size.pages - 1
        self._slots = size.slots
        self._budget = TokenBudget()  # of rows, not of tokens
        self._steps = 0
        self._alone = 0  # times in a row that a step of a single row did not fit
        self._waiting: deque[Prompt] = deque()
        self._done: list[Completion] = []
        self._tokens = 0

    def run(self, exchange: Exchange) -> None:
        """Until everything is done, or nobody wants it. Raises what the model does."""
        on_cpu = self._decoder.device.type == "cpu"
        with torch.inference_mode(), choosing_threads() if on_cpu else nullcontext(ThreadChoice(1)) as choice:
            if choice.open:
                torch.set_num_threads(choice.begin(*(self._timed(number) for number in (1, choice.threads))))
            self._meter.running(0)
            try:
                while not (exchange.over or (exchange.ended and self._idle)):
                    self._turn(exchange, choice)
            finally:
                self._meter.running(0)

    def _turn(self, exchange: Exchange, choice: ThreadChoice) -> None:
        """At most one group of prompts, and one step: whoever wants something waits no longer than that."""
        decoder = self._decoder
        # No more than is begun soon: what is taken is finished, even if the run is told to stop.
        exchange.ask(min(self._free, SOON) + self._refill - len(self._waiting))
        self._waiting += exchange.collect(wait=self._idle)
        self._drop(exchange.cancelled)
        if self._waiting and (self._free >= min(self._refill, len(self._waiting)) or not decoder.live):
            self._admit()
        if decoder.live:
            began = perf_counter()
            self._step()
            if choice.open:
                torch.set_num_threads(choice.stepped(perf_counter() - began))
        self._meter.running(decoder.live, self._tokens)
        self._tokens = 0
        exchange.deliver(tuple(self._done))
        self._done.clear()

    def _step(self) -> None:
        """One more token of every row that runs; of fewer rows from now on, if memory does not hold the step."""
        rows = self._decoder.live
        try:
            picked = self._decoder.compute()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            picked = None
        # Out here the exception is gone, whose traceback kept the tensors alive.
        if picked is None:
            self._make_room()
            return
        self._finish(self._decoder.take(picked))
        self._steps, self._alone = self._steps + 1, 0
        if self._steps % CALM == 0:
            self._budget.fitted(rows)

    def _make_room(self) -> None:
        """Lets half of the rows begin anew later, those that have least to lose. One that is alone waits for memory to
        come back, and has failed if that does not happen for some seconds.
        """
        self._meter.out_of_memory()
        self._prefixes.clear()
        if self._decoder.live == 1 and self._alone < PATIENCE:
            time.sleep(SHORTEST_WAIT * 2**self._alone)
            self._alone += 1
            return
        self._alone = 0
        self._budget.failed(self._decoder.live)
        seats = sorted(self._decoder.seats, key=lambda seat: len(seat.row.tokens))
        for seat in seats[: max(1, len(seats) // 2)]:
            self._decoder.remove(seat)
            self._leave(seat)
            if len(seats) == 1:
                self._reject(seat.row.prompt, "a step of it does not fit, not even alone")
            else:
                self._waiting.appendleft(seat.row.prompt)
        _log.info("a step of %d rows did not fit into memory", len(seats))

    @property
    def _idle(self) -> bool:
        return not self._decoder.live and not self._waiting

    @property
    def _rows(self) -> int:
        """Rows that may run at once: the slots, or fewer, as far as memory was found to hold them."""
        return self._slots if self._budget.limit is None else min(self._slots, self._budget.limit)

    @property
    def _free(self) -> int:
        """Rows that may join those that run."""
        return max(0, self._rows - self._decoder.live)

    @property
    def _refill(self) -> int:
        """Free slots that are worth a group of prompts."""
        return max(1, self._rows // REFILL)

    def _timed(self, threads: int) -> float:
        """Seconds of a small forward pass with this number of threads, at best."""
        torch.set_num_threads(threads)
        seconds = []
        for _ in range(3):
            began = perf_counter()
            self._decoder.prefix((0,) * LANES)
            seconds.append(perf_counter() - began)
        return min(seconds)

    def _admit(self) -> None:
        """Seats the next of those who wait, as far as there is room, together if they share a beginning."""
        if group := self._group():
            self._meter.running(self._decoder.live + len(group), self._tokens)
            self._tokens = 0
            hits, misses = self._prefixes.hits, self._prefixes.misses
            self._seat(group)
            self._meter.prefixes(self._prefixes.hits - hits, self._prefixes.misses - misses)

    def _group(self) -> list[Prompt]:
        """The next prompts that are computed together; none if there is no room for the next one now."""
        group: list[Prompt] = []
        tokens = 0
        room = self._decoder.cache.pages.room
        while self._waiting and len(group) < self._free:
            prompt = self._waiting[0]
            pages = pages_for(prompt.prepared.length, prompt.max_new_tokens)
            if pages > self._most_pages:
                self._waiting.popleft()
                why = f"it needs {pages} pages of the cache, which has {self._most_pages}"
                self._reject(prompt, why, "refused")  # as one that is too long for the model: nothing is broken
                continue
            tokens += prompt.prepared.length
            if group and (tokens > TOGETHER or _beginning(prompt) != _beginning(group[0])):
                break
            if not group and not self._prefixes.fits(_beginning(prompt)):
                break
            if pages > room:
                break
            room -= pages
            group.append(self._waiting.popleft())
        return group

    def _seat(self, group: Sequence[Prompt]) -> None:
        """Computes prompts and gives them slots; out of memory, one by one."""
        began = perf_counter()
        seats: list[Seat] = []
        try:
            beginning = _beginning(group[0])
            for prompt in group:
                prefix = self._prefixes.use(beginning) if beginning else None
                sampling = prompt.sampling or self._sampling
                own = prompt.prepared.token_ids[len(beginning) :]
                seats.append(Seat(Row(prompt, began), own, prefix, sampling))
            ended = self._decoder.admit(seats)
            self._meter.admitted(len(group), sum(len(seat.own) for seat in seats))
            self._finish(ended)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            for seat in seats:
                self._leave(seat)
            failed = True
        else:
            failed = False
        # Out here the exception is gone, whose traceback kept the tensors alive.
        if failed:
            self._meter.out_of_memory()
            self._prefixes.clear()
            for prompt in group:
                if len(group) > 1:
                    self._seat([prompt])
                else:
                    self._reject(prompt, "it does not fit, not even alone")

    def _finish(self, ended: Sequence[Seat]) -> None:
        for seat in ended:
            self._leave(seat)
            self._done.append(seat.row.completion(self._chat))

    def _leave(self, seat: Seat) -> None:
        if seat.prefix is not None:
            self._prefixes.leave(seat.prefix)

    def _settle(self, row: Row, token: int, broken: bool, logprob: float | None) -> None:
        self._tokens += row.advance(token, self._chat, self._eos_ids, broken=broken, logprob=logprob)

    def _reject(self, prompt: Prompt, why: str, reason: FinishReason = "error") -> None:
        self._done.append(Completion(prompt, "", 0, 0.0, reason, f"out of memory: {why}", retryable=False))

    def _drop(self, cancelled: AbstractSet[int]) -> None:
        if not cancelled:
            return
        for prompt in [prompt for prompt in self._waiting if prompt.index in cancelled]:
            self._waiting.remove(prompt)
            self._done.append(Completion(prompt, "", 0, 0.0, "cancelled", retryable=False))
        for seat in [seat for seat in self._decoder.seats if seat.row.prompt.index in cancelled]:
            seat.row.end("cancelled")
            self._decoder.remove(seat)
            self._finish([seat])


def _beginning(prompt: Prompt) -> tuple[int, ...]:
    return prompt.prepared.token_ids[: prompt.prepared.shared]


def _logits_width(loaded: Loaded) -> int:
    """A model's last layer may be wider than its embedding, for the sake of round numbers."""
    head = loaded.model.get_output_embeddings()
    return loaded.embeddings if head is None else int(head.weight.shape[0])

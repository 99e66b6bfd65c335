"""The engine's thread: prompts in, seats, steps, completions out."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from math import inf
from time import monotonic, perf_counter

import torch

from asyncgen.backends.chat import Chat
from asyncgen.backends.decoding import Row
from asyncgen.backends.memory import TokenBudget, is_out_of_memory
from asyncgen.backends.shortage import TRIES, Aside, Stage, pause_after
from asyncgen.backends.slots.arrangement import Seat
from asyncgen.backends.slots.base import SlotDecoder
from asyncgen.backends.slots.cache import pages_for
from asyncgen.backends.slots.exchange import Exchange
from asyncgen.backends.slots.filling import LANES
from asyncgen.backends.slots.meter import SlotMeter
from asyncgen.backends.slots.prefixes import Prefixes, Room
from asyncgen.backends.slots.threads import ThreadChoice, beside_others
from asyncgen.backends.streaming import Piece
from asyncgen.records import Completion, FinishReason, Prompt, Sampling

_log = logging.getLogger(__name__)

__all__ = ["Worker"]

SOON = 32
"""Prompts that are asked for at a time, beside a refill."""
REFILL = 16
"""Slots are refilled when a share of one in so many is free: prompts are cheaper to compute together."""


class Worker:
    """One run of the engine, in one thread."""

    def __init__(
        self,
        decoder: SlotDecoder,
        prefix_room: Room,
        *,
        chat: Chat,
        sampling: Sampling,
        eos_ids: frozenset[int],
        meter: SlotMeter,
    ) -> None:
        """``decoder`` has no rows."""
        self._chat, self._sampling, self._eos_ids = chat, sampling, eos_ids
        self._decoder = decoder
        decoder.settle = self._settle
        self._prefix_room = prefix_room
        self._prefixes = Prefixes(decoder.prefix, decoder.forget, prefix_room)
        self._meter = meter
        self._slots = decoder.slots
        self._row_budget = TokenBudget()  # of rows, not of tokens
        self._prompt_budget = TokenBudget()
        self._failures = 0  # steps in a row that did not fit
        self._begun = self._own_tokens = 0  # prompts so far, and their tokens behind shared beginnings
        self._waiting: deque[Prompt] = deque()
        self._aside = Aside()
        self._done: list[Completion] = []
        self._news: list[tuple[Prompt, int, Piece]] = []
        self._tokens = 0

    def run(self, exchange: Exchange) -> None:
        """Until everything is done, or nobody wants it. Raises what the model does."""
        with torch.inference_mode(), beside_others(self._decoder.device) as choice:
            if choice.open:
                torch.set_num_threads(choice.begin(*(self._timed(number, exchange) for number in (1, choice.threads))))
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
        exchange.ask(min(self._free, SOON) + self._refill - len(self._waiting) - len(self._aside))
        self._waiting += exchange.collect(wait=self._idle)
        self._drop(frozenset(exchange.cancelled))  # as they are now: the loop adds to them
        self._waiting.extendleft(reversed(self._aside.due(monotonic())))
        if self._waiting and (self._free >= min(self._refill, len(self._waiting)) or not decoder.live):
            self._admit()
        if decoder.live:
            began = perf_counter()
            if not self._step():
                exchange.pause(pause_after(self._failures))
            elif choice.open:
                torch.set_num_threads(choice.stepped(perf_counter() - began))
        elif self._aside and not self._waiting:
            exchange.pause(self._aside.seconds(monotonic()))
        self._meter.running(decoder.live, self._tokens)
        self._tokens = 0
        exchange.tell(tuple(self._news))
        exchange.deliver(tuple(self._done))
        self._news.clear()
        self._done.clear()

    def _step(self) -> bool:
        """One more token of every row that runs; False if memory does not hold that. Then nothing is lost but time."""
        decoder, seats = self._decoder, tuple(self._decoder.seats)
        try:
            ended = decoder.step()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failed = True
        else:
            failed = False
        # Out here the exception is gone, whose traceback kept the tensors alive.
        if failed:
            self._meter.out_of_memory()
            self._prefixes.clear()
            self._failures += 1
            self._make_room(seats)
            return False
        self._finish(ended)
        self._aside.fitted([seat.row.prompt for seat in seats], "step")
        self._failures = 0
        self._row_budget.fitted(len(seats))
        return True

    def _make_room(self, seats: Sequence[Seat]) -> None:
        """Lets rows begin anew later: half of them, those that have least to lose; at first none, for memory may come
        back at once. One that is alone is set aside when as many steps have failed in a row as a prompt may fail.
        """
        if self._decoder.torn:
            self._decoder.reset()
            self._finish([seat for seat in seats if seat.row.reason is not None])
            going = [seat for seat in seats if seat.row.reason is None]
            if len(going) == 1 and self._failures > TRIES:
                self._failures = 0
                self._leave(going[0])
                self._set_aside(going[0].row.prompt, "a step of it does not fit", "step")
                return
            if self._failures > 1:
                self._row_budget.failed(len(seats))
            self._begin_anew(going)
        elif len(seats) == 1:
            if self._failures > TRIES:
                self._failures = 0
                self._decoder.remove(seats[0])
                self._leave(seats[0])
                self._set_aside(seats[0].row.prompt, "a step of it does not fit", "step")
        elif self._failures > 1:
            self._row_budget.failed(len(seats))
            leaving = sorted(seats, key=lambda seat: len(seat.row.tokens))[: len(seats) // 2]
            for seat in leaving:
                self._decoder.remove(seat)
            self._begin_anew(leaving)
            _log.info("a step of %d rows did not fit into memory", len(seats))

    def _begin_anew(self, seats: Sequence[Seat]) -> None:
        """Lets rows that have no slot any more wait for another one."""
        for seat in seats:
            self._leave(seat)
        self._waiting.extendleft(seat.row.prompt for seat in seats)

    def _set_aside(self, prompt: Prompt, why: str, stage: Stage) -> None:
        """One that did not fit, not even alone, is tried again later, or given up."""
        if self._aside.failed(prompt, monotonic(), stage):
            self._reject(prompt, f"{why}, not even alone")

    @property
    def _idle(self) -> bool:
        return not (self._decoder.live or self._waiting or self._aside)

    @property
    def _rows(self) -> int:
        """Rows that may run at once: the slots, or fewer, as far as memory was found to hold them."""
        return min(self._slots, self._row_budget.limit or self._slots)

    @property
    def _free(self) -> int:
        """Rows that may join those that run."""
        return max(0, self._rows - self._decoder.live)

    @property
    def _refill(self) -> int:
        """Free slots that are worth a group of prompts: no more than are computed together."""
        together = self._decoder.together // max(1, self._own_tokens // max(1, self._begun))
        return max(1, min(self._rows // REFILL, together))

    def _timed(self, threads: int, exchange: Exchange) -> float:
        """Seconds of a small forward pass with this number of threads, at best; infinitely many out of memory, and when
        nobody wants to know any more.
        """
        torch.set_num_threads(threads)
        seconds = [inf]
        for _ in range(3):
            if exchange.over:
                break
            began = perf_counter()
            try:
                self._decoder.prefix((0,) * LANES)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            else:
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
        room, together = self._decoder.room, self._decoder.together
        most = min(together, self._prompt_budget.limit or together)
        while self._waiting and len(group) < min(self._free, self._decoder.most_rows):
            prompt = self._waiting[0]
            if group and (prompt in self._aside or group[0] in self._aside):
                break  # one that has failed is tried alone
            beginning = self._beginning(prompt)
            own = len(prompt.prepared.token_ids) - len(beginning)
            pages = pages_for(own, prompt.max_new_tokens)
            if pages > self._decoder.most_pages:
                self._waiting.popleft()
                why = f"it needs {pages} pages of the cache, which has {self._decoder.most_pages}"
                self._reject(prompt, why, "refused")  # as one that is too long for the model: nothing is broken
                continue
            tokens += own
            if group and (tokens > most or beginning != self._beginning(group[0])):
                break
            if not group and not self._prefixes.fits(beginning):
                break
            if pages > room:
                break
            room -= pages
            group.append(self._waiting.popleft())
        return group

    def _beginning(self, prompt: Prompt) -> tuple[int, ...]:
        """The prompt's tokens that are computed once for all that share them; none if there is no room for so many."""
        shared, most = prompt.prepared.shared, self._prefix_room.most
        return prompt.prepared.token_ids[: 0 if most is not None and shared > most else shared]

    def _seat(self, group: Sequence[Prompt]) -> None:
        """Computes prompts and gives them slots. Out of memory, they are tried again: fewer at a time, or later."""
        began = perf_counter()
        tokens = sum(prompt.prepared.length for prompt in group)
        seats: list[Seat] = []
        try:
            beginning = self._beginning(group[0])
            for prompt in group:
                prefix = self._prefixes.use(beginning) if beginning else None
                sampling = prompt.sampling or self._sampling
                own = prompt.prepared.token_ids[len(beginning) :]
                seats.append(Seat(Row(prompt, began, self._chat.stops_of(prompt)), own, prefix, sampling))
            ended = self._decoder.admit(seats)
            computed = sum(len(seat.own) for seat in seats)
            self._begun += len(group)
            self._own_tokens += computed
            self._meter.admitted(len(group), computed)
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
            if len(group) > 1:
                self._prompt_budget.failed(tokens)
                self._waiting.extendleft(reversed(group))
            else:
                self._set_aside(group[0], "it does not fit", "prompt")
        else:
            self._aside.fitted(group)
            self._prompt_budget.fitted(tokens)

    def _finish(self, ended: Sequence[Seat]) -> None:
        for seat in ended:
            self._leave(seat)
            self._aside.finished(seat.row.prompt)
            self._done.append(seat.row.completion(self._chat))

    def _leave(self, seat: Seat) -> None:
        if seat.prefix is not None:
            self._prefixes.leave(seat.prefix)

    def _settle(self, row: Row, token: int, broken: bool, logprob: float | None) -> None:
        spoken = row.advance(token, self._eos_ids, broken=broken, logprob=logprob)
        self._tokens += spoken
        if spoken and row.prompt.streamed:
            self._news.append((row.prompt, len(row.tokens) - 1, (token,)))

    def _reject(self, prompt: Prompt, why: str, reason: FinishReason = "error") -> None:
        self._done.append(Completion(prompt, "", 0, 0.0, reason, f"out of memory: {why}", retryable=False))

    def _drop(self, cancelled: AbstractSet[int]) -> None:
        if not cancelled:
            return
        waiting = [prompt for prompt in self._waiting if id(prompt) in cancelled]
        self._waiting = deque(prompt for prompt in self._waiting if id(prompt) not in cancelled)
        for prompt in [*waiting, *self._aside.drop(cancelled)]:
            self._aside.finished(prompt)
            self._done.append(Completion(prompt, "", 0, 0.0, "cancelled", retryable=False))
        for seat in [seat for seat in self._decoder.seats if id(seat.row.prompt) in cancelled]:
            seat.row.end("cancelled")
            self._decoder.remove(seat)
            self._finish([seat])

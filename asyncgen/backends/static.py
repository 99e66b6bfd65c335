"""``model.generate`` on length-sorted batches: works for every transformers causal language model.

On the CPU a record's text does not depend, to the bit, on its neighbours, its slot or the order of work (fp32):

- a prompt is left-padded to a length that it alone decides (a multiple of 32 that leaves at least one padded cell),
  and a batch holds prompts of one such length only;
- a batch has exactly ``batch_size`` rows, fillers included, and always an attention mask;
- attention is transformers' ``eager``; with ``sdpa`` equal rows in different slots differ in their last bits.

Out of memory, a batch is tried again with half the rows, so a run that met it may differ in last bits from one that
did not. On a GPU there are no fillers: prompts of neighbouring lengths are padded to the longest (at most a fifth of
the cells) and the text is promised to be the same for the same batches only; the random stream is the same always.

One worker thread owns the model: it takes a batch, generates and hands over, and looks for cancellation after every
token and before every hand-over. It never waits where a cancellation could not reach it: sends do not block, and a
waiting ``take`` ends because cancelling ``run`` closes the pool.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import inf
from time import monotonic, perf_counter

import anyio
import torch
from anyio import CapacityLimiter, from_thread, to_thread
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from asyncgen.backends.base import BackendSnapshot, Completions, Limits, Pool, nobody
from asyncgen.backends.chat import Chat
from asyncgen.backends.decoding import Chooser, Row, Watch
from asyncgen.backends.loading import Loaded
from asyncgen.backends.memory import TokenBudget, free_bytes, is_out_of_memory, kv_bytes_per_token, rows_that_fit
from asyncgen.backends.meter import Meter
from asyncgen.backends.rendering import check_template, encode
from asyncgen.backends.shortage import Aside
from asyncgen.backends.streaming import Progress, TokenReader
from asyncgen.config import Config
from asyncgen.errors import BackendFailed
from asyncgen.records import Completion, Given, Prepared, Prompt

_log = logging.getLogger(__name__)

__all__ = ["Static"]

_BUCKET = 32
_AUTO_CPU_ROWS = 16
_GPU_SPREAD = 0.8
_PROMPT_GUESS = 1024
"""Prompt tokens that an automatic batch size plans for."""


class Static:
    """The ``static`` backend. ``close`` frees the model; nothing else may be called after it."""

    def __init__(self, loaded: Loaded, config: Config) -> None:
        self._loaded = loaded
        self._generation = config.generation
        self._chat = Chat(loaded.tokenizer, config.generation.stop)
        self._fixed_shape = loaded.device.type == "cpu"
        self.limits = Limits(loaded.context_length, self._batch_size())
        self.notices: tuple[str, ...] = self._chat.notices(config.system_prompt)
        self.engine = "static"
        self.fallback = ""
        self.revision: str | None = loaded.revision
        dtype = str(loaded.model.dtype).removeprefix("torch.")
        self.described = f"on {loaded.device}, {dtype}, batches of {self.limits.rows} (static)"
        """Where and in what the model was loaded, for people."""
        check_template(self._chat, config)
        self._budget = TokenBudget()
        self._meter = Meter()
        self._gpus = {weight.device for weight in loaded.model.parameters() if weight.device.type == "cuda"}
        self._limiter = CapacityLimiter(1)
        self._tell: Progress = nobody
        self._completions: Completions | None = None
        self._gone = False
        self._held: set[int] = set()  # ids of prompts taken whose completions were not sent
        self._cancelled: set[int] = set()  # those of them that nobody wants; both are changed on the loop only

    def prepare(self, given: Given, max_new_tokens: int, shared: int = 0) -> Prepared:  # noqa: ARG002  # computes every prompt whole
        """See ``Backend.prepare``. Raises ModelError if the tokenizer does not fit the model."""
        context = self._loaded.context_length
        ids = encode(self._chat, given, max_new_tokens, context_length=context, embeddings=self._loaded.embeddings)
        if not self._fixed_shape:
            return Prepared(len(ids), ids)
        return Prepared(min(_BUCKET * (len(ids) // _BUCKET + 1), context - max_new_tokens), ids)

    async def run(self, pool: Pool, completions: Completions, progress: Progress = nobody) -> None:
        """See ``Backend.run``. Raises BackendFailed if the model does; leaves the pool closed, however it ends."""
        failures: list[Exception] = []
        self._tell, self._loop = progress, asyncio.get_running_loop()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_close_in_the_end, pool)
            # In a task of its own: there, cancellation always comes by a scope, which the thread can see.
            tasks.start_soon(self._drive, pool, completions, failures, tasks.cancel_scope)
        for failure in failures:  # at most one; raised here, it is in no group
            raise failure

    def cancel(self, prompt: Prompt) -> None:
        """See ``Backend.cancel``."""
        if id(prompt) in self._held:
            self._cancelled.add(id(prompt))

    def reader(self, prompt: Prompt) -> TokenReader:
        """See ``Backend.reader``."""
        return self._chat.reader(prompt)

    def snapshot(self) -> BackendSnapshot:
        """See ``Backend.snapshot``."""
        held = sum(torch.cuda.memory_reserved(gpu) for gpu in self._gpus)
        return replace(self._meter.snapshot(), device_bytes=held) if held else self._meter.snapshot()

    def close(self) -> None:
        """Frees the model; blocks for as long as a garbage collection."""
        device = self._loaded.device
        del self._loaded, self._chat
        gc.collect()  # models hold reference cycles
        _empty_cache(device)

    async def _drive(
        self, pool: Pool, completions: Completions, failures: list[Exception], scope: anyio.CancelScope
    ) -> None:
        try:
            await to_thread.run_sync(self._work, pool, completions, limiter=self._limiter)
        except Exception as failure:  # noqa: BLE001  # raised by run
            failures.append(failure)
        scope.cancel()

    def _work(self, pool: Pool, completions: Completions) -> None:
        """The worker thread's whole life: take, generate, hand over, until the pool is closed."""
        aside = Aside()
        self._completions, self._gone = completions, False
        while not self._gone and ((prompts := self._take(pool, aside)) or aside):
            cancelled = aside.drop(frozenset(self._cancelled))
            self._hand_over([_cancelled(prompt) for prompt in cancelled])
            self._complete(prompts, aside)

    def _hand_over(self, group: Sequence[Completion]) -> None:
        """Hands completions over; whoever received them may be gone: then the run ends, and has its own error."""
        from_thread.check_cancelled()
        if group and not self._gone:
            try:
                from_thread.run_sync(self._send, tuple(group))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                self._gone = True

    def _send(self, group: tuple[Completion, ...]) -> None:
        """On the event loop."""
        done = {id(completion.prompt) for completion in group}
        self._held -= done
        self._cancelled -= done
        assert self._completions is not None, "set by run"
        self._completions.send_nowait(group)

    def _take(self, pool: Pool, aside: Aside) -> tuple[Prompt, ...]:
        """The next batch: one that is tried again, alone; or from the pool; or nothing, if none of these is there."""
        from_thread.check_cancelled()
        if due := aside.due(monotonic(), most=1):
            return due
        spread = 1.0 if self._fixed_shape else _GPU_SPREAD
        take = partial(pool.take, self.limits.rows, tokens=self._budget.limit, spread=spread)
        patience = aside.seconds(monotonic()) if aside else inf
        try:
            return from_thread.run(self._within, patience, take)
        except concurrent.futures.CancelledError:  # cancelled while it waited there
            from_thread.check_cancelled()
            return ()

    def _complete(self, prompts: tuple[Prompt, ...], aside: Aside) -> None:
        """Generates for the prompts, in parts if they do not fit into memory together; those that do not fit alone are
        set aside.
        """
        began = perf_counter()
        waiting = [prompts]
        while waiting and not self._gone:
            if not (part := self._wanted(waiting.pop(), aside)):
                continue
            cells = _cells_per_row(part)
            rows = self._budget.rows(self.limits.rows if self._fixed_shape else len(part), cells)
            if cells > self._loaded.context_length:  # the longest prompt and the longest answer are not the same one's
                rows = max(1, len(part) // 2)
            if len(part) > rows:
                waiting += [part[rows:], part[:rows]]
            elif self._try(part, rows, began):
                self._budget.fitted(rows * cells)
                aside.fitted(part)
                for prompt in part:
                    aside.finished(prompt)
            else:
                # Out here the exception is gone, whose traceback kept the batch's tensors alive.
                _empty_cache(self._loaded.device)
                self._budget.failed(rows * cells)
                if rows > 1:
                    waiting.append(part)
                elif aside.failed(part[0], monotonic()):
                    self._hand_over([_does_not_fit(part[0], cells, began)])

    def _wanted(self, part: tuple[Prompt, ...], aside: Aside) -> tuple[Prompt, ...]:
        """Those of ``part`` that have no completion yet, but for those that nobody wants: they get one now."""
        ids = frozenset(self._cancelled)
        unwanted = [prompt for prompt in part if id(prompt) in ids]
        for prompt in unwanted:
            aside.finished(prompt)
        self._hand_over([_cancelled(prompt) for prompt in unwanted])
        return tuple(prompt for prompt in part if id(prompt) in self._held)

    def _try(self, part: Sequence[Prompt], rows: int, began: float) -> bool:
        """Generates for ``part`` in a batch of ``rows``. Returns whether that did fit into memory."""
        length = max(prompt.prepared.length for prompt in part)
        real = sum(len(prompt.prepared.token_ids) for prompt in part)
        offered = rows if self._fixed_shape else self.limits.rows
        with self._meter.batch(
            filled=len(part), offered=offered, cells=rows * length, padded_cells=rows * length - real
        ):
            try:
                self._generate(part, rows, length, began)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise BackendFailed(f"the model failed: {type(error).__name__}: {error}") from error
                self._meter.out_of_memory()
                _log.info("%d rows of %d tokens did not fit into memory", rows, _cells_per_row(part))
                return False
        return True

    def _generate(self, part: Sequence[Prompt], rows: int, length: int, began: float) -> None:
        loaded = self._loaded
        answers = [Row(prompt, began, self._chat.stops_of(prompt)) for prompt in part]
        ids, mask = _left_padded([prompt.prepared.token_ids for prompt in part], rows, length, loaded.pad_id)
        # mps knows no float64, so the noise is computed beside it.
        device = torch.device("cpu") if loaded.device.type == "mps" else loaded.device
        chooser = Chooser(part, rows, default=self._generation.sampling, device=device)
        watch = Watch(
            answers,
            rows,
            chooser=chooser,
            eos_ids=loaded.eos_ids,
            check=self._check,
            progress=self._meter.progress,
        )
        longest = max(prompt.max_new_tokens for prompt in part)
        with torch.inference_mode():
            loaded.model.generate(
                input_ids=ids.to(loaded.device),
                attention_mask=mask.to(loaded.device),
                generation_config=GenerationConfig(max_new_tokens=longest, do_sample=False),  # type: ignore[no-untyped-call]  # transformers is typed in parts
                logits_processor=LogitsProcessorList([chooser]),
                stopping_criteria=StoppingCriteriaList([watch]),
            )
        _log.debug("%d prompts in %d rows of %d tokens took %.2f s", len(part), rows, length, perf_counter() - began)
        self._hand_over([answer.completion(self._chat) for answer in answers if id(answer.prompt) in self._held])

    def _check(self, rows: Sequence[Row]) -> None:
        """Leaves the thread if nobody wants anything any more; ends rows that nobody wants, hands over those that have
        ended, tells of those that are streamed.
        """
        from_thread.check_cancelled()
        for row in rows:
            if row.reason is None and id(row.prompt) in self._cancelled:
                row.end("cancelled")
        ended = [row for row in rows if row.reason is not None and id(row.prompt) in self._held]
        self._hand_over([row.completion(self._chat) for row in ended])
        for row in rows:
            if row.reason is None and row.prompt.streamed and row.tokens:
                with suppress(RuntimeError):  # the loop is closed: there is nobody left to tell
                    self._loop.call_soon_threadsafe(self._tell, row.prompt, len(row.tokens) - 1, row.tokens[-1:])

    async def _within(self, seconds: float, take: Callable[[], Awaitable[tuple[Prompt, ...]]]) -> tuple[Prompt, ...]:
        """What ``take`` gives; nothing if that takes longer, and if the pool is closed: then the time is waited."""
        with anyio.move_on_after(seconds):
            prompts = await take()
            if not prompts and seconds < inf:
                await anyio.sleep(seconds)
            self._held.update(map(id, prompts))
            return prompts
        return ()

    def _batch_size(self) -> int:
        """What the configuration says; ``auto`` is 16 on a CPU, and on a GPU what its free memory holds."""
        if self._generation.batch_size != "auto":
            return self._generation.batch_size
        if self._loaded.device.type != "cuda":
            return _AUTO_CPU_ROWS
        cells = min(self._loaded.context_length, _PROMPT_GUESS + self._generation.max_new_tokens)
        row = cells * _kv_bytes(self._loaded) + self._loaded.embeddings * 64
        return rows_that_fit(free_bytes(self._loaded.device), row)


async def _close_in_the_end(pool: Pool) -> None:
    """Closes the pool when it is cancelled, which ends a ``take`` that waits there."""
    try:
        await anyio.sleep_forever()
    finally:
        pool.close()


def _cancelled(prompt: Prompt) -> Completion:
    return Completion(prompt, "", 0, 0.0, "cancelled", retryable=False)


def _cells_per_row(part: Sequence[Prompt]) -> int:
    return max(prompt.prepared.length for prompt in part) + max(prompt.max_new_tokens for prompt in part)


def _left_padded(prompts: Sequence[Sequence[int]], rows: int, length: int, pad: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, int64 [rows, length]; rows beyond the prompts hold a single pad token each."""
    ids = torch.full((rows, length), pad, dtype=torch.int64)
    mask = torch.zeros((rows, length), dtype=torch.int64)
    mask[:, -1] = 1
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    return ids, mask


def _does_not_fit(prompt: Prompt, cells: int, began: float) -> Completion:
    error = f"out of memory: {cells} tokens of prompt and answer do not fit, not even alone"
    return Completion(prompt, "", 0, perf_counter() - began, "error", error, retryable=False)


def _empty_cache(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _kv_bytes(loaded: Loaded) -> int:
    """Bytes of keys and values of one token, from the model's configuration."""
    config = loaded.model.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    return kv_bytes_per_token(
        layers=config.num_hidden_layers,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        item_bytes=loaded.model.dtype.itemsize,
    )

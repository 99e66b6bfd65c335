"""A deterministic stand-in for a model, without torch: it tells small stories about a child and a boat.

The text is a function of the prompt's seed and selected words; each word occurs in it, and the default validators
accept it. For tests, crash suites and benchmarks of the pipeline, whose speed it must not limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from time import perf_counter

import anyio
from anyio.lowlevel import checkpoint

from asyncgen.backends.base import BackendSnapshot, Completions, Limits
from asyncgen.backends.echo_story import write
from asyncgen.backends.meter import Meter
from asyncgen.config import Config, EchoBackend
from asyncgen.errors import PromptTooLong
from asyncgen.packing import PromptPool
from asyncgen.records import Completion, FinishReason, Message, Prepared, Prompt

__all__ = ["Echo"]

_AUTO_ROWS = 32
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_BAD_TEXT = "This one is much too short."


@lru_cache(maxsize=1024)
def _count_words(content: str) -> int:
    return len(content.split())


class Echo:
    """The ``echo`` backend: runs on the event loop, yields to it once a batch."""

    def __init__(self, config: Config, options: EchoBackend) -> None:
        batch_size = config.generation.batch_size
        self.limits = Limits(options.context_length, _AUTO_ROWS if batch_size == "auto" else batch_size)
        self.notices: tuple[str, ...] = ()
        self.engine = "echo"
        self.fallback = ""
        self.revision: str | None = None
        self._options = options
        self._stop = config.generation.stop
        self._meter = Meter()

    def prepare(self, messages: Sequence[Message], max_new_tokens: int, shared: int = 0) -> Prepared:  # noqa: ARG002  # computes every prompt whole
        """Counts words as tokens. Raises PromptTooLong."""
        length = sum(_count_words(message["content"]) for message in messages)
        if length + max_new_tokens > self.limits.context_length:
            raise PromptTooLong(length, max_new_tokens, self.limits.context_length)
        return Prepared(length)

    async def run(self, pool: PromptPool, completions: Completions) -> None:
        """See ``Backend.run``."""
        rows, seconds = self.limits.rows, self._options.seconds_per_batch
        try:
            while prompts := await pool.take(rows):
                began = perf_counter()
                with self._meter.batch(
                    filled=len(prompts), offered=rows, cells=sum(p.prepared.length for p in prompts)
                ):
                    await (anyio.sleep(seconds) if seconds else checkpoint())
                    texts = [self._complete(prompt) for prompt in prompts]
                    self._meter.progress(sum(tokens for _, tokens, _ in texts), len(texts))
                took = perf_counter() - began
                completions.send_nowait(
                    tuple(
                        Completion(prompt, text, tokens, took, reason)
                        for prompt, (text, tokens, reason) in zip(prompts, texts, strict=True)
                    )
                )
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return  # whoever received is gone: the run is being torn down, and has its own error

    def snapshot(self) -> BackendSnapshot:
        """See ``Backend.snapshot``."""
        return self._meter.snapshot()

    def _complete(self, prompt: Prompt) -> tuple[str, int, FinishReason]:
        """Text, tokens (words) and finish reason of one prompt."""
        options, seed = self._options, prompt.seed
        if options.bad_share and (seed * _GOLDEN & _MASK) / 2**64 < options.bad_share:
            text = _BAD_TEXT
        else:
            key = seed if options.distinct is None else seed % options.distinct
            text = write(key, tuple(prompt.selected_words.values()))
        for stop in self._stop:
            text = text.partition(stop)[0]
        tokens = text.count(" ") + bool(text)
        if tokens > prompt.max_new_tokens:
            return " ".join(text.split(" ")[: prompt.max_new_tokens]), prompt.max_new_tokens, "length"
        return text, tokens, "stop"

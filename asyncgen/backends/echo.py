"""A deterministic stand-in for a model, without torch: it tells small stories about a child and a boat.

The text is a function of the prompt's seed and selected words; each word occurs in it, and the default validators
accept it. For tests, crash suites and benchmarks of the pipeline, whose speed it must not limit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from time import perf_counter

import anyio
from anyio.lowlevel import checkpoint

from asyncgen.backends.base import BackendSnapshot, Completions, Limits, Pool, nobody
from asyncgen.backends.echo_story import write
from asyncgen.backends.meter import Meter
from asyncgen.backends.stops import NO_STOPS, cut_at_stop
from asyncgen.backends.streaming import Progress, TextReader
from asyncgen.config import Config, EchoBackend
from asyncgen.errors import PromptTooLong
from asyncgen.records import Completion, FinishReason, Given, Prepared, Prompt, conversation_of

__all__ = ["Echo"]

_AUTO_ROWS = 32
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_WORD = re.compile(r"\S+\s*")
_BAD_TEXT = "This one is much too short."


@lru_cache(maxsize=1024)
def _count_words(content: str) -> int:
    return len(content.split())


def _completion(prompt: Prompt, text: str, tokens: int, seconds: float, reason: FinishReason) -> Completion:
    """With log-probabilities, if they are asked for: there is no other text that it could have written."""
    if prompt.sampling is None or not prompt.sampling.logprobs:
        return Completion(prompt, text, tokens, seconds, reason)
    words = text.split(" ")
    texts = (words[0], *(f" {word}" for word in words[1:])) if text else ()
    return Completion(prompt, text, tokens, seconds, reason, logprobs=(0.0,) * len(texts), token_texts=texts)


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
        self._held: dict[int, Prompt] = {}  # of the batch, by id, those that somebody wants
        self._nobody_waits = anyio.Event()

    def prepare(self, given: Given, max_new_tokens: int, shared: int = 0) -> Prepared:  # noqa: ARG002  # computes every prompt whole
        """Counts words as tokens. Raises PromptTooLong."""
        if isinstance(given, str):
            length = _count_words(given)
        elif (messages := conversation_of(given)) is None:
            length = len(given)
        else:
            length = sum(_count_words(message["content"]) for message in messages)
        if length + max_new_tokens > self._options.context_length:
            raise PromptTooLong(length, max_new_tokens, self._options.context_length)
        return Prepared(length)

    async def run(self, pool: Pool, completions: Completions, progress: Progress = nobody) -> None:
        """See ``Backend.run``. What is streamed comes word by word, over the time that a batch takes."""
        rows = self.limits.rows
        try:
            while prompts := await pool.take(rows):
                began = perf_counter()
                self._held = {id(prompt): prompt for prompt in prompts}
                with self._meter.batch(
                    filled=len(prompts), offered=rows, cells=sum(p.prepared.length for p in prompts)
                ):
                    texts = [self._complete(prompt) for prompt in prompts]
                    streamed = [(p, text) for p, (text, _, _) in zip(prompts, texts, strict=True) if p.streamed]
                    await self._pass_time(streamed, progress)
                    self._meter.progress(sum(tokens for _, tokens, _ in texts), len(texts))
                took = perf_counter() - began
                done = [
                    _completion(prompt, text, tokens, took, reason)
                    if id(prompt) in self._held
                    else Completion(prompt, "", 0, took, "cancelled", retryable=False)
                    for prompt, (text, tokens, reason) in zip(prompts, texts, strict=True)
                ]
                self._held = {}
                completions.send_nowait(tuple(done))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return  # whoever received is gone: the run is being torn down, and has its own error

    def cancel(self, prompt: Prompt) -> None:
        """See ``Backend.cancel``: it gets no text when its batch ends, which ends at once if nobody wants any of it."""
        if self._held.pop(id(prompt), None) and not self._held:
            self._nobody_waits.set()

    def reader(self, prompt: Prompt) -> TextReader:  # noqa: ARG002  # a text is cut already
        """See ``Backend.reader``."""
        return TextReader(NO_STOPS)

    async def _pass_time(self, streamed: Sequence[tuple[Prompt, str]], progress: Progress) -> None:
        """Waits as long as a batch takes, or until nobody wants any of it."""
        seconds = self._options.seconds_per_batch
        self._nobody_waits = anyio.Event()
        pieces = [(prompt, [(word.start(), word[0]) for word in _WORD.finditer(text)]) for prompt, text in streamed]
        steps = max((len(words) for _, words in pieces), default=1)
        for step in range(steps):
            for prompt, words in pieces:
                if step < len(words) and id(prompt) in self._held:
                    progress(prompt, *words[step])
            if seconds:
                with anyio.move_on_after(seconds / steps):
                    await self._nobody_waits.wait()
                    return
        if not seconds:
            await checkpoint()

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
        cut = cut_at_stop(text, self._stop if prompt.stop is None else prompt.stop)
        text = text if cut is None else cut
        tokens = text.count(" ") + bool(text)
        if tokens > prompt.max_new_tokens:
            return " ".join(text.split(" ")[: prompt.max_new_tokens]), prompt.max_new_tokens, "length"
        return text, tokens, "stop"

"""Our backends, all driven alike: every prompt waits in the pool, ``run`` takes what it wants, completions are counted.

This is ``Backend.run`` as the pipeline calls it, without prompts to make and texts to judge. Prompts are rendered and
tokenised, and texts decoded, inside the time that is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
from anyio.from_thread import start_blocking_portal

from asyncgen import load_config
from asyncgen.backends import Backend, open_backend
from asyncgen.config import Config
from asyncgen.errors import AsyncgenError
from asyncgen.packing import PromptPool, Window
from asyncgen.records import Completion, Prompt
from asyncgen.seeds import sampling_seed
from benchmarks.generation.engine import Cannot, Setting, best_of
from benchmarks.generation.workload import Request

__all__ = ["Slots", "Static"]


class Ours:
    """A backend of ours, on an event loop in a thread of its own, as in the pipeline."""

    kind = ""
    sizes: tuple[int | str, ...] = ("auto",)

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._loop = start_blocking_portal()
        self._portal = self._loop.__enter__()
        self._open: Any = None
        sizes = self.sizes if setting.rows is None else (setting.rows,)
        try:
            size, rates = best_of(sizes, lambda _, sample: self.run(sample), setting.sample, prepare=self._reopen)
            self._reopen(size)
        except AsyncgenError as error:
            self.close()
            raise Cannot(str(error)) from error
        self.rows = self._backend.limits.rows
        self.settings = {"batch_size": size, "rows": self.rows, "trials": rates}

    def run(self, requests: Sequence[Request]) -> list[int]:
        """See ``Engine.run``."""
        prompts = [self._prompt(index, request) for index, request in enumerate(requests)]
        done = self._portal.call(_complete, self._backend, prompts)
        if failed := next((completion for completion in done if completion.error), None):
            raise Cannot(f"a completion failed: {failed.error}")
        tokens = {completion.prompt.index: completion.tokens for completion in done}
        return [tokens[index] for index in range(len(requests))]

    def close(self) -> None:
        """See ``Engine.close``."""
        self._leave()
        self._loop.__exit__(None, None, None)

    def _prompt(self, index: int, request: Request) -> Prompt:
        """A request as the pipeline would have planned it."""
        prompt = Prompt(
            index=index,
            messages=request.messages,
            seed=sampling_seed(self._setting.seed, index, 1),
            max_new_tokens=request.limit,
            shared=request.shared,
        )
        return prompt.with_prepared(self._backend.prepare(prompt.messages, prompt.max_new_tokens, prompt.shared))

    def _reopen(self, size: int | str) -> None:
        self._leave()
        context = self._portal.wrap_async_context_manager(open_backend(_configured(self.kind, size, self._setting)))
        self._backend: Backend = context.__enter__()
        self._open = context

    def _leave(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None


class Static(Ours):
    """``model.generate`` on length-sorted batches."""

    kind = "static"
    sizes = (32,)


class Slots(Ours):
    """Our in-flight engine."""

    kind = "slots"


def _configured(kind: str, size: int | str, setting: Setting) -> Config:
    longest = max(request.limit for request in setting.workload.requests)
    return load_config(
        None,
        [
            f"model_name={setting.model}",
            f"seed={setting.seed}",
            f"backend={{kind: {kind}, device: cpu, dtype: float32}}",
            f"generation.batch_size={size}",
            f"generation.temperature={setting.temperature}",
            f"generation.top_k={setting.top_k}",
            f"generation.top_p={setting.top_p}",
            f"generation.max_new_tokens={longest}",
            "validation.min_words=0",
        ],
    )


async def _complete(backend: Backend, prompts: Sequence[Prompt]) -> list[Completion]:
    """What becomes of ``prompts``, all of which wait from the beginning."""
    window = Window(len(prompts), len(prompts))
    window.plan(len(prompts))
    window.end()
    pool = PromptPool(window)
    pool.put(prompts)
    send, receive = anyio.create_memory_object_stream[tuple[Completion, ...]](len(prompts))
    done: list[Completion] = []
    with send, receive:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(backend.run, pool, send)
            while len(done) < len(prompts):
                done += await receive.receive()
            pool.close()
    return done

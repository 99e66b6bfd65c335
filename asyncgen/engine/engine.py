"""``Engine``: one model, shared by many tasks of one event loop.

Whoever wants an answer waits for it and holds nothing else: what works (the backend, the preparing of prompts, the
feeding of ``map``) lives in one task of the engine's own, from ``start`` to ``aclose``. So an engine may be opened in
one task and closed in another (a notebook's cells, an application's life span), a caller may be cancelled at any
moment, and when the model fails every caller is told why. It is asyncio's own ``create_task``, for a task group of
anyio's must be left by the task that entered it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from types import TracebackType
from typing import Any, Self, Unpack

import anyio

from asyncgen.backends import BackendSnapshot, Generator, Limits, open_backend
from asyncgen.config import Config
from asyncgen.config_file import config_of, with_absolute_model
from asyncgen.engine.asking import Asked, Asking, Question, WhenFull, check_names, check_when_full, understood
from asyncgen.engine.blocking import BlockingEngine
from asyncgen.engine.core import Core
from asyncgen.engine.mapping import Answers
from asyncgen.engine.shared import Shared
from asyncgen.engine.streams import TextStream
from asyncgen.engine.waiting import within
from asyncgen.errors import AsyncgenError, BackendFailed, EngineClosed
from asyncgen.records import Completion
from asyncgen.resources import BUNDLED_MODEL
from asyncgen.tasks import in_thread, tell_nobody

__all__ = ["Engine", "EngineSnapshot"]


@dataclass(frozen=True, slots=True)
class EngineSnapshot(BackendSnapshot):
    """What an engine has done so far, and where its requests are; two of them add up."""

    requests: int = 0
    """Requests that wait or run."""
    max_requests: int = 0
    """How many may."""
    waiting: int = 0
    """Of ``requests``, those that are prepared and wait for the model."""
    at_the_gate: int = 0
    """Calls that wait until there is room for another request."""
    finished: int = 0
    """Requests that got a completion."""
    failed: int = 0
    """Requests that got an error."""
    cancelled: int = 0
    """Requests for which nobody waited any more."""
    tokens: int = 0
    """Tokens of the completions."""


class Engine:
    """One model, shared by the tasks of one event loop.

    ::

        async with asyncgen.Engine("Qwen/Qwen2.5-3B-Instruct") as engine:
            completion = await engine.generate([{"role": "user", "content": "Hello"}], max_new_tokens=64)

    Where ``async with`` does not fit (a notebook), ``await engine.start()`` and ``await engine.aclose()`` do the same,
    in any tasks. Calls belong to the loop on which it was started; ``engine.blocking()`` is for other threads.
    """

    def __init__(
        self,
        model: str | PathLike[str] | Config = BUNDLED_MODEL,
        *,
        max_requests: int | None = None,
        when_full: WhenFull = "wait",
        notice: Callable[[str], object] = tell_nobody,
        **settings: Any,
    ) -> None:
        """``model`` is what ``model_name`` may be in a configuration, and ``settings`` are sections of one:
        ``Engine("gpt2", generation={"batch_size": 64}, backend={"device": "cpu"})``; or it is a configuration, of which
        ``model_name``, ``backend``, ``generation`` (the number of rows at once, and what a request does not say) and
        ``drain_timeout`` count.

        ``max_requests`` bounds what waits or runs; None is four times the rows, at least 256. A call beyond it waits
        for room, or raises EngineFull, as ``when_full`` says (each call may say otherwise). ``notice`` is told, on the
        event loop, sentences that a person should read once; ``print`` will do.

        Loads nothing yet. Raises ConfigError, TypeError or ValueError.
        """
        self.config = _configuration(model, settings)
        if max_requests is not None and max_requests < 1:
            raise ValueError(f"max_requests: found {max_requests}, expected at least 1, or None")
        self._max_requests, self._when_full, self._notice = max_requests, check_when_full(when_full), notice
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runner: asyncio.Task[None] | None = None
        self._life: anyio.CancelScope | None = None  # the runner's: cancelled by a scope, no thread is left running
        self._core: Core | None = None
        self._failure: Exception | None = None

    async def start(self) -> Self:
        """Loads the model; use ``async with`` where you can. Raises ModelError or ConfigError if it cannot be used."""
        if self._runner is not None:
            raise RuntimeError("this engine was started before, and an engine is started once: make another one")
        ready = anyio.Event()
        self._loop = asyncio.get_running_loop()
        self._life = anyio.CancelScope()
        self._runner = asyncio.create_task(self._live(ready, self._life), name="asyncgen.Engine")
        self._runner.add_done_callback(lambda _: ready.set())
        try:
            await ready.wait()
        except BaseException:
            await self._end()
            raise
        if self._core is None:
            raise self._failure or _closed()
        return self

    async def aclose(self, *, drain: bool = True) -> None:
        """Lets no more requests in, finishes those that are in (for ``drain_timeout`` seconds of the configuration at
        most, 20 unless it says otherwise; with ``drain=False`` not at all), and frees the model, within one decode
        step. Whoever waits then gets EngineClosed, and so do runs that share it: end those before. Closing again does
        nothing.
        """
        if self._runner is None or self._runner.done():
            return
        if self._core is not None:
            self._core.check_loop()
        if self._core is not None and self._core.is_fed_here:
            raise RuntimeError("an engine cannot be closed by the prompts that it answers: they end before it does")
        try:
            if self._core is not None:
                self._core.gate.close(_closed)
                if drain:
                    with anyio.move_on_after(self.config.drain_timeout):
                        await self._core.wait_until_idle()
        finally:
            await self._end()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose(drain=error is None)

    async def generate(self, prompt: Question, **asking: Unpack[Asking]) -> Completion:
        """The answer to ``prompt``: messages, which the model's chat template renders; or a text or token ids, to go on
        from as they stand. ``Asking`` says what may be said about it (``temperature``, ``max_new_tokens``,
        ``stop``, ``seed``, ``priority``, ``timeout`` ...).

        Cancelled or timed out, its row is free after the decode step in progress, and nobody else's answer changes.

        Raises TypeError or ValueError for arguments that mean nothing; PromptTooLong or PromptRefused; TimeoutError;
        EngineFull; CompletionFailed if this answer could not be made; BackendFailed if the model failed; EngineClosed.
        """
        core, asked = self._asked(prompt, asking)
        with within(asked.timeout):
            async with core.requested(asked) as request:
                await request.finished.wait()
        return request.completion()

    def stream(self, prompt: Question, **asking: Unpack[Asking]) -> TextStream:
        """The same, its text while it is made.

        ::

            async with engine.stream(messages) as pieces:
                async for piece in pieces:
                    print(piece, end="")
            pieces.completion.finish_reason

        Joined, the pieces are the completion's text: none ends within a character, none holds a part of a stop string.
        Leaving the block early frees the row. Raises what ``generate`` does, as it is read.
        """
        core, asked = self._asked(prompt, asking, streamed=True)
        return TextStream(core, asked)

    def map(
        self,
        prompts: Iterable[Question] | AsyncIterable[Question],
        *,
        ordered: bool = True,
        ahead: int | None = None,
        **asking: Unpack[Asking],
    ) -> Answers:
        """The answers to many prompts, with ``async for``: in their order, or with ``ordered=False`` as they come
        (``completion.prompt.index`` says to which prompt). Prompts are taken as answers are read: at most ``ahead`` are
        begun and not read yet, None is twice the rows. With a ``seed``, each prompt's follows from it and its place.

        What cannot be answered is no error here: its completion has the finish reason ``refused`` or ``error`` and says
        why. Raises what the prompts raise, TypeError or ValueError for one that is none, BackendFailed, EngineClosed.
        Leaving the loop early ends the rest, at the latest when nobody holds it any more;
        ``async with engine.map(...) as answers`` ends it at once.
        """
        core, rows = self._opened(), self.limits.rows
        if isinstance(prompts, str | bytes | Mapping):
            raise TypeError(f"prompts: found {type(prompts).__name__}, expected several prompts, as in a list")
        check_names(asking)
        if "when_full" in asking:
            raise TypeError("when_full: not for map, which always waits for room")
        if ahead is not None and ahead < 1:
            raise ValueError(f"ahead: found {ahead}, expected at least 1, or None")

        def ask(place: int, prompt: Question) -> Asked:
            return understood(prompt, asking, self.config.generation, "wait", place=place)

        return Answers(core, prompts, ask, ordered=ordered, ahead=2 * rows if ahead is None else ahead)

    def blocking(self) -> BlockingEngine:
        """The same engine for those who cannot await: threads beside its event loop, and scripts without one."""
        return BlockingEngine(self)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that it lives on. Raises what ``check`` does."""
        self.check()
        assert self._loop is not None, "it is open"
        return self._loop

    def check(self) -> None:
        """Raises why nobody gets an answer: EngineClosed if it is not open, BackendFailed if the model failed. For any
        thread.
        """
        if self._core is not None:
            self._core.check()
        if self._loop is None or self._runner is None or self._runner.done():
            raise EngineClosed("the engine is not open", hint="use `with engine.blocking() as ...`, or start it")

    def as_backend(self) -> Generator:
        """The engine as a run's backend: the run's prompts are taken behind all requests, and beside other runs'.

        Raises BackendFailed or EngineClosed when it has ended.
        """
        core = self._opened()
        core.gate.check()
        return Shared(core)

    async def ended(self) -> AsyncgenError:
        """Why nobody gets an answer any more, as soon as that is so: EngineClosed, or BackendFailed if the model has
        failed. It is returned, and not raised.
        """
        return await self._opened().cause()

    @property
    def limits(self) -> Limits:
        """The context's length in tokens, and the rows at once."""
        return self._known().backend.limits

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences that a person should read once: a missing chat template, another engine than hoped for."""
        return self._known().backend.notices

    def snapshot(self) -> EngineSnapshot:
        """What it has done so far, and where its requests are. Cheap; for any thread."""
        if self._core is None:
            return EngineSnapshot()
        core = self._core
        return EngineSnapshot(
            **core.backend.snapshot().values(),
            requests=core.requests,
            max_requests=core.gate.limit,
            waiting=core.desk.waiting,
            at_the_gate=core.gate.waiting,
            finished=core.counts.finished,
            failed=core.counts.failed,
            cancelled=core.counts.cancelled,
            tokens=core.counts.tokens,
        )

    async def _live(self, ready: anyio.Event, life: anyio.CancelScope) -> None:
        """The engine's own task."""
        try:
            with life:
                self.config = await in_thread(with_absolute_model, self.config)
                async with open_backend(self.config, self._notice) as backend:
                    core = self._core = Core(backend, self._max_requests)
                    ready.set()
                    try:
                        await core.run()
                    except Exception as error:  # noqa: BLE001  # each caller is told
                        self._failure = error
                    finally:
                        core.fail(self._cause)
        except Exception as error:  # noqa: BLE001  # raised by start
            self._failure = error

    async def _end(self) -> None:
        """Ends the engine's task and waits until it has ended, however often the waiting is cancelled: then it has
        nothing left behind, neither a thread nor the model.
        """
        assert self._runner is not None
        assert self._life is not None, "it was started"
        cancelled: asyncio.CancelledError | None = None
        with anyio.CancelScope(shield=True):
            self._life.cancel()
            while not self._runner.done():
                try:
                    await asyncio.wait({self._runner})
                except asyncio.CancelledError as error:  # asyncio's own: no shield holds against it
                    cancelled = error
        if cancelled is not None:
            raise cancelled

    def _cause(self) -> AsyncgenError:
        """Why nobody gets an answer any more; a new one each time, for tracebacks are kept in errors."""
        if self._failure is None:
            return _closed()
        why = self._failure
        error = type(why)(*why.args, hint=why.hint) if isinstance(why, BackendFailed) else BackendFailed(f"{why}")
        error.__cause__ = why.__cause__ if isinstance(why, BackendFailed) else why
        return error

    def _known(self) -> Core:
        if self._core is None:
            raise EngineClosed("the engine is not open", hint="use `async with Engine(...) as engine`, or start() it")
        return self._core

    def _opened(self) -> Core:
        core = self._known()
        core.check_loop()
        return core

    def _asked(self, prompt: Question, asking: Asking, *, streamed: bool = False) -> tuple[Core, Asked]:
        core = self._opened()
        return core, understood(prompt, asking, self.config.generation, self._when_full, streamed=streamed)


def _configuration(model: str | PathLike[str] | Config, settings: dict[str, Any]) -> Config:
    if isinstance(model, str | PathLike):
        return config_of({"validation": {"enabled": False}, **settings, "model_name": fspath(model)}, "Engine(...)")
    if not isinstance(model, Config):
        raise TypeError(f"model: found {type(model).__name__}, expected a name, a path or a Config")
    if settings:
        raise TypeError(f"{next(iter(settings))}: a configuration is given already, so put it there")
    return model


def _closed() -> EngineClosed:
    return EngineClosed("the engine is closed")

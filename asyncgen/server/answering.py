"""From questions to answers: what a request wants of the engine, all of it at once or in pieces."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from pydantic import BaseModel

from asyncgen.engine import Asking, Engine, TextStream
from asyncgen.errors import PromptTooLong
from asyncgen.records import Completion
from asyncgen.server.answers import Style, usage_of
from asyncgen.server.limits import Limits
from asyncgen.server.meters import Meters
from asyncgen.server.questions import ChatQuestion, Choice, TextQuestion, choices_of
from asyncgen.server.refusals import refusal_for
from asyncgen.tasks import as_raised

__all__ = ["Answering"]

_Event = Mapping[str, Any]
_T = TypeVar("_T")


class Answering:
    """The answers to one request; ``whole`` or ``events`` is used once. Raises Refusal for what ``limits`` forbid."""

    def __init__(
        self, engine: Engine, meters: Meters, limits: Limits, question: ChatQuestion | TextQuestion, style: Style
    ) -> None:
        limits.check(question)
        self._engine, self._meters, self._limits, self._style = engine, meters, limits, style
        self._answers, self._prompts = question.answers, len(question.prompts)
        self._choices = list(choices_of(question))
        self._length = min(question.lengths.values(), default=None)
        timeout = engine.config.server.timeout
        self._asking: Asking = {**question.asking(), "logprobs": question.wants_logprobs, "timeout": timeout}
        self._began = perf_counter()
        self._completions: dict[int, Completion] = {}
        self._failures: dict[int, Exception] = {}

    async def whole(self) -> BaseModel:
        """All answers. Raises what the engine does, or Refusal."""
        async with anyio.create_task_group() as tasks:
            for choice in self._choices:
                tasks.start_soon(self._noting_failure, choice, partial(self._answer, choice), tasks.cancel_scope)
        self._check()
        return self._style.whole(self._all(), usage_of(self._all(), self._answers))

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[_Event]]:
        """All answers in pieces, those of several as they come. Raises what ``whole`` does, while it is read."""
        mixed = aclosing(self._told(self._choices[0])) if len(self._choices) == 1 else self._mixed()
        async with mixed as pieces, aclosing(self._to_the_end(pieces)) as events:
            yield events

    async def _to_the_end(self, pieces: AsyncIterator[_Event]) -> AsyncGenerator[_Event]:
        async for piece in pieces:
            yield piece
        self._check()
        if self._style.tells_usage:
            yield self._style.usage(usage_of(self._all(), self._answers))

    @asynccontextmanager
    async def _mixed(self) -> AsyncIterator[MemoryObjectReceiveStream[_Event]]:
        """Pieces of several answers, one at a time: until the client has taken it, the others wait in the engine."""
        into, pieces = anyio.create_memory_object_stream[_Event]()
        with as_raised():  # what is raised where the pieces are read leaves as it was raised
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._tell_all, into)
                with pieces:
                    yield pieces
                tasks.cancel_scope.cancel()

    async def _tell_all(self, into: MemoryObjectSendStream[_Event]) -> None:
        async with into, anyio.create_task_group() as tasks:
            for choice in self._choices:
                tasks.start_soon(self._noting_failure, choice, partial(self._tell, choice, into), tasks.cancel_scope)

    async def _tell(self, choice: Choice, into: MemoryObjectSendStream[_Event]) -> None:
        async with aclosing(self._told(choice)) as told:
            async for piece in told:
                await into.send(piece)

    async def _noting_failure(
        self, choice: Choice, work: Callable[[], Awaitable[None]], others: anyio.CancelScope
    ) -> None:
        """One answer that cannot be made ends them all; several may fail at once, of which one is told."""
        try:
            await work()
        except Exception as error:  # noqa: BLE001  # raised by _check
            self._failures[choice.index] = error
            others.cancel()

    def _check(self) -> None:
        """Raises the first failure, with the prompt that it is of, where there are several."""
        if not self._failures:
            return
        index = min(self._failures)
        refusal = refusal_for(self._failures[index])
        if refusal.status < 500 and self._prompts > 1:
            refusal.param = refusal.param or f"prompt[{index // self._answers}]"
        raise refusal from self._failures[index]

    async def _answer(self, choice: Choice) -> None:
        ask = partial(self._engine.generate, choice.prompt, **self._asking_for(choice))
        self._note(choice, await self._with_length(lambda length: ask(max_new_tokens=length)))

    async def _told(self, choice: Choice) -> AsyncGenerator[_Event]:
        """Pieces of one answer."""
        ask = partial(self._engine.stream, choice.prompt, **self._asking_for(choice))
        stream, text = await self._with_length(lambda length: _begun(ask(max_new_tokens=length)))
        if text is not None:
            self._meters.began(perf_counter() - self._began)
        async with stream:
            for piece in self._style.first(choice.index):
                yield piece
            while text is not None:
                yield self._style.piece(choice.index, text)
                text = await anext(stream, None)
        self._note(choice, stream.completion)
        yield self._style.last(choice.index, stream.completion)

    async def _with_length(self, ask: Callable[[int], Awaitable[_T]]) -> _T:
        """What ``ask`` gives for the length that the client says; if it says none, for the usual one, or what fits."""
        if self._length is not None:
            return await ask(self._length)
        try:
            return await ask(self._limits.usual_tokens)
        except PromptTooLong as error:
            room = error.context_length - error.prompt_tokens
            if room < 1:
                raise
            return await ask(room)

    def _asking_for(self, choice: Choice) -> Asking:
        return self._asking if choice.seed is None else {**self._asking, "seed": choice.seed}

    def _note(self, choice: Choice, completion: Completion) -> None:
        self._completions[choice.index] = completion
        self._meters.answered(completion)

    def _all(self) -> list[Completion]:
        return [self._completions[choice.index] for choice in self._choices]


async def _begun(stream: TextStream) -> tuple[TextStream, str | None]:
    """A stream, and its first piece."""
    return stream, await anext(stream, None)

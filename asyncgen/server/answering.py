"""From questions to answers: what a request wants of the engine, all of it at once or in pieces."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import partial
from time import perf_counter
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectSendStream
from pydantic import BaseModel

from asyncgen.config import Config, Server
from asyncgen.engine import Asking, Engine
from asyncgen.errors import PromptTooLong
from asyncgen.records import Completion
from asyncgen.server.answers import Style, usage_of
from asyncgen.server.document import longest
from asyncgen.server.meters import Meters
from asyncgen.server.questions import ChatQuestion, Choice, TextQuestion, choices_of
from asyncgen.server.refusals import Refusal
from asyncgen.tasks import single_cause

__all__ = ["Answering"]

_Event = Mapping[str, Any]


class Answering:
    """The answers to one request; ``whole`` or ``events`` is used once. Raises Refusal for what is beyond the limits
    of ``config``.
    """

    def __init__(
        self, engine: Engine, meters: Meters, config: Config, question: ChatQuestion | TextQuestion, style: Style
    ) -> None:
        self._engine, self._meters, self._style = engine, meters, style
        self._answers = question.answers
        _check_number(question, config.server)
        self._choices = list(choices_of(question))
        self._said_length = question.longest is not None
        self._length = _length(question, config, engine.limits.context_length)
        self._asking: Asking = {
            **question.asking(),
            "logprobs": question.wants_logprobs,
            "timeout": config.server.timeout,
        }
        self._began = perf_counter()
        self._completions: dict[int, Completion] = {}

    async def whole(self) -> BaseModel:
        """All answers. Raises what the engine does."""
        with single_cause():
            async with anyio.create_task_group() as tasks:
                for choice in self._choices:
                    tasks.start_soon(self._answer, choice)
        completions = self._all()
        return self._style.whole(completions, usage_of(completions, self._answers))

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[_Event]]:
        """All answers in pieces, those of several as they come. Raises what the engine does, while it is read."""
        async with aclosing(self._told(self._choices[0])) if len(self._choices) == 1 else self._mixed() as pieces:
            yield self._with_usage(pieces)

    async def _with_usage(self, pieces: AsyncIterator[_Event]) -> AsyncIterator[_Event]:
        async for piece in pieces:
            yield piece
        if self._style.tells_usage:
            yield self._style.usage(usage_of(self._all(), self._answers))

    @asynccontextmanager
    async def _mixed(self) -> AsyncIterator[AsyncIterator[_Event]]:
        """Pieces of several answers. None waits here: a client that reads slowly holds up neither the model nor us."""
        into, pieces = anyio.create_memory_object_stream[_Event]()

        async def tell(choice: Choice, into: MemoryObjectSendStream[_Event]) -> None:
            async with into, aclosing(self._told(choice)) as told:
                async for piece in told:
                    await into.send(piece)

        with single_cause(), pieces:
            async with anyio.create_task_group() as tasks:
                with into:
                    for choice in self._choices:
                        tasks.start_soon(tell, choice, into.clone())
                yield pieces
                tasks.cancel_scope.cancel()

    async def _answer(self, choice: Choice) -> None:
        ask = partial(self._engine.generate, choice.prompt, **self._asking_for(choice))
        try:
            completion = await ask(max_new_tokens=self._length)
        except PromptTooLong as error:
            completion = await ask(max_new_tokens=self._shorter(error))
        self._note(choice, completion)

    async def _told(self, choice: Choice) -> AsyncGenerator[_Event]:
        """Pieces of one answer."""
        ask = partial(self._engine.stream, choice.prompt, **self._asking_for(choice))
        stream = ask(max_new_tokens=self._length)
        try:
            text = await anext(stream, None)
        except PromptTooLong as error:
            stream = ask(max_new_tokens=self._shorter(error))
            text = await anext(stream, None)
        self._meters.began(perf_counter() - self._began)
        async with stream:
            for piece in self._style.first(choice.index):
                yield piece
            while text is not None:
                yield self._style.piece(choice.index, text)
                text = await anext(stream, None)
        self._note(choice, stream.completion)
        yield self._style.last(choice.index, stream.completion)

    def _asking_for(self, choice: Choice) -> Asking:
        return self._asking if choice.seed is None else {**self._asking, "seed": choice.seed}

    def _shorter(self, error: PromptTooLong) -> int:
        """The length that fits, if the client did not ask for another; else raises ``error``."""
        room = error.context_length - error.prompt_tokens
        if self._said_length or room < 1:
            raise error
        return room

    def _note(self, choice: Choice, completion: Completion) -> None:
        self._completions[choice.index] = completion
        self._meters.answered(completion, perf_counter() - self._began)

    def _all(self) -> list[Completion]:
        return [self._completions[choice.index] for choice in self._choices]


def _check_number(question: ChatQuestion | TextQuestion, server: Server) -> None:
    prompts, most = len(question.prompts), server.max_choices
    for param, found in (("n", question.answers), ("prompt", prompts)):
        if found > most:
            raise Refusal(400, "invalid_value", f"{param}: found {found}, at most {most} may be", param=param)
    if prompts * question.answers > server.max_requests:
        raise Refusal(
            429,
            "too_many_requests",
            f"{prompts * question.answers} answers are wanted at once, and no more than {server.max_requests} may wait "
            "or run; ask for them in several requests",
        )


def _length(question: ChatQuestion | TextQuestion, config: Config, context: int) -> int:
    """Tokens that an answer may have, at most."""
    most, asked = longest(config, context), question.longest
    if asked is None:
        return min(config.generation.max_new_tokens, most)
    if asked > most:
        code = "context_length_exceeded" if config.server.max_tokens is None else "invalid_value"
        raise Refusal(400, code, f"max_tokens: found {asked}, at most {most} may be", param="max_tokens")
    return asked

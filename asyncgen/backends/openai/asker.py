"""Asks a server for one answer, whole or in pieces, and makes a completion of it."""

from __future__ import annotations

from collections.abc import Callable

from asyncgen.backends.openai.answers import Answer, Growing, whole
from asyncgen.backends.openai.asking import completion_of, is_chat, request_of
from asyncgen.backends.openai.client import Client
from asyncgen.backends.openai.failures import TryFailed, cut, invalid
from asyncgen.config import Config, OpenAIBackend
from asyncgen.records import Completion, Prompt

__all__ = ["Asker"]


class Asker:
    """Used on the event loop. ``notice`` is told, once, what a person should know of the server."""

    def __init__(self, client: Client, config: Config, options: OpenAIBackend, notice: Callable[[str], object]) -> None:
        self._client, self._options, self._notice = client, options, notice
        self._model, self._generation = config.model_name, config.generation
        self._noticed = False

    async def ask(self, prompt: Prompt, tell: Callable[[str], object]) -> Answer:
        """The answer to one request; of a streamed one, ``tell`` gets each piece, empty ones too. Raises TryFailed."""
        chat = is_chat(prompt)
        path = "/chat/completions" if chat else "/completions"
        body = request_of(prompt, self._model, self._options, self._generation)
        if not prompt.streamed:
            return self._seen(whole(await self._client.post(path, body), chat=chat, hide=self._client.hide))
        hide, recent = self._client.hide, ""
        growing = Growing(chat=chat, hide=hide)

        def take(event: bytes) -> bool:
            nonlocal recent
            piece = growing.add(event)
            recent += piece
            if hide.needed(recent):
                raise TryFailed(invalid("it holds the key"))
            recent = recent[-hide.reach :] if hide.reach else ""
            tell(piece)
            return growing.complete

        try:
            await self._client.stream(path, body, take)
        except TryFailed:
            if not growing.complete:  # what may still come after the end is the usage
                raise
        if not growing.complete:
            raise TryFailed(cut("the stream ended without a finish reason"))
        return self._seen(growing.answer())

    def completion(self, prompt: Prompt, answer: Answer, seconds: float) -> Completion:
        """What the answer is worth."""
        return completion_of(prompt, answer, seconds, self._generation, self._client.hide)

    async def is_let_in(self) -> bool:
        """Whether the server tells its models."""
        try:
            await self._client.models()
        except TryFailed:
            return False
        return True

    async def is_alive(self) -> bool:
        """Whether the server answers, and not that something is wrong with it."""
        try:
            await self._client.models()
        except TryFailed as error:
            return error.failure.alive
        return True

    def _seen(self, answer: Answer) -> Answer:
        if answer.tokens is None and not self._noticed:
            self._noticed = True
            self._notice("the server does not say how many tokens its answers have: they count as 0")
        return answer

"""What a server's answers say, whole ones and the pieces of streams, checked field by field: nothing is made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from asyncgen.backends.openai.failures import TryFailed, invalid, plain

__all__ = ["Answer", "Growing", "whole"]

_Model = TypeVar("_Model", bound=BaseModel)
_Count = Annotated[int, Field(ge=0, lt=2**53)]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as the server gave it, before it is cut and stripped."""

    text: str | None
    finish: str | None
    """The server's own word."""
    tokens: int | None
    """As the server counted them; None if it did not."""
    prompt_tokens: int | None
    logprobs: tuple[float, ...] = ()
    token_texts: tuple[str, ...] = ()


class _Part(BaseModel):
    """Fields that are not known are left out: servers add many."""

    model_config = ConfigDict(allow_inf_nan=False, strict=True)


class _Usage(_Part):
    completion_tokens: _Count | None = None
    prompt_tokens: _Count | None = None


class _Token(_Part):
    token: str
    logprob: float


class _ChatLogprobs(_Part):
    content: Annotated[list[_Token], Field(fail_fast=True)] | None = None

    def lists(self) -> tuple[list[float], list[str]]:
        tokens = self.content or []
        return [each.logprob for each in tokens], [each.token for each in tokens]


class _TextLogprobs(_Part):
    tokens: Annotated[list[str], Field(fail_fast=True)] | None = None
    token_logprobs: Annotated[list[float], Field(fail_fast=True)] | None = None

    def lists(self) -> tuple[list[float], list[str]]:
        return self.token_logprobs or [], self.tokens or []


class _Message(_Part):
    content: str | None = None


class _ChatChoice(_Part):
    index: int = 0
    message: _Message
    finish_reason: str
    logprobs: _ChatLogprobs | None = None

    @property
    def piece(self) -> str | None:
        return self.message.content


class _ChatPiece(_Part):
    index: int = 0
    delta: _Message | None = None
    finish_reason: str | None = None
    logprobs: _ChatLogprobs | None = None

    @property
    def piece(self) -> str | None:
        return None if self.delta is None else self.delta.content


class _TextPiece(_Part):
    index: int = 0
    text: str
    finish_reason: str | None = None
    logprobs: _TextLogprobs | None = None

    @property
    def piece(self) -> str | None:
        return self.text


class _TextChoice(_TextPiece):
    finish_reason: str


class _Chat(_Part):
    choices: Annotated[list[_ChatChoice], Field(fail_fast=True)] | None = None
    usage: _Usage | None = None
    error: object = None


class _Text(_Part):
    choices: Annotated[list[_TextChoice], Field(fail_fast=True)] | None = None
    usage: _Usage | None = None
    error: object = None


class _ChatEvent(_Part):
    choices: Annotated[list[_ChatPiece], Field(fail_fast=True)] | None = None
    usage: _Usage | None = None
    error: object = None


class _TextEvent(_Part):
    choices: Annotated[list[_TextPiece], Field(fail_fast=True)] | None = None
    usage: _Usage | None = None
    error: object = None


def whole(body: bytes, *, chat: bool, hide: Callable[[str], str] = str) -> Answer:
    """The answer in a body of JSON. ``hide`` takes out of what is told what nobody may see. Raises TryFailed."""
    parsed: _Chat | _Text = _read(_Chat, body) if chat else _read(_Text, body)
    if parsed.error is not None:
        raise TryFailed(invalid(f"an error in the place of an answer: {plain(hide(str(parsed.error)))[:300]}"))
    choice = next((each for each in parsed.choices or () if each.index == 0), None)
    if choice is None:
        raise TryFailed(invalid("choices: there is none with the index 0"))
    if choice.piece is None and choice.finish_reason == "stop":
        raise TryFailed(invalid("choices.0.message.content: it is null, and so is no text"))
    logprobs, texts = choice.logprobs.lists() if choice.logprobs else ([], [])
    return _answer(choice.piece, choice.finish_reason, parsed.usage, logprobs, texts)


class Growing:
    """An answer that comes in pieces."""

    def __init__(self, *, chat: bool, hide: Callable[[str], str]) -> None:
        """``hide`` takes out of what is told what nobody may see."""
        self._hide = hide
        self._event: type[_ChatEvent | _TextEvent] = _ChatEvent if chat else _TextEvent
        self._pieces: list[str] = []
        self._finish: str | None = None
        self._usage: _Usage | None = None
        self._logprobs: list[float] = []
        self._texts: list[str] = []

    def add(self, event: bytes) -> str:
        """The text that this event adds. Raises TryFailed."""
        parsed = _read(self._event, event)
        if parsed.error is not None:
            raise TryFailed(
                invalid(f"an error in the middle of the stream: {plain(self._hide(str(parsed.error)))[:300]}")
            )
        self._usage = parsed.usage or self._usage
        choice = next((each for each in parsed.choices or () if each.index == 0), None)
        if choice is None:
            return ""
        self._finish = choice.finish_reason or self._finish
        if choice.logprobs is not None:
            logprobs, texts = choice.logprobs.lists()
            self._logprobs += logprobs
            self._texts += texts
        self._pieces.append(choice.piece or "")
        return self._pieces[-1]

    @property
    def complete(self) -> bool:
        """Whether the server said why the text ends."""
        return self._finish is not None

    def answer(self) -> Answer:
        """All of it."""
        return _answer("".join(self._pieces), self._finish, self._usage, self._logprobs, self._texts)


def _read(model: type[_Model], body: bytes) -> _Model:
    problem = ""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        problem = f"{place}: {first['msg']}" if place else first["msg"]
    raise TryFailed(invalid(problem[:1].lower() + problem[1:]))


def _answer(
    text: str | None, finish: str | None, usage: _Usage | None, logprobs: Sequence[float], texts: Sequence[str]
) -> Answer:
    if len(logprobs) != len(texts):
        raise TryFailed(invalid(f"logprobs: {len(texts)} tokens and {len(logprobs)} numbers"))
    tokens, prompt_tokens = (usage.completion_tokens, usage.prompt_tokens) if usage else (None, None)
    return Answer(text, finish, tokens, prompt_tokens, tuple(logprobs), tuple(texts))

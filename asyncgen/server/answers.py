"""What clients get, in the words of OpenAI's protocol."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel

from asyncgen.records import Completion

__all__ = [
    "ChatAnswer",
    "ChatStyle",
    "ModelInfo",
    "ModelList",
    "Style",
    "TextAnswer",
    "TextStyle",
    "Usage",
    "prompt_tokens",
    "usage_of",
]

FinishReason = Literal["stop", "length"]


class Usage(BaseModel):
    """Tokens, the end-of-text token not counted; what several answers share of a prompt counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ReplyMessage(BaseModel):
    """The answer's turn."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class TokenLogprob(BaseModel):
    """One token: what it adds to the text, and how likely the model found it."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Any]


class ChatLogprobs(BaseModel):
    """Those of an answer."""

    content: list[TokenLogprob]
    refusal: None = None


class ChatChoice(BaseModel):
    """An answer."""

    index: int
    message: ReplyMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatAnswer(BaseModel):
    """Of ``POST /v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class TextLogprobs(BaseModel):
    """Those of an answer, a list for each property of a token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: None = None
    text_offset: list[int]


class TextChoice(BaseModel):
    """An answer."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason


class TextAnswer(BaseModel):
    """Of ``POST /v1/completions``."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage


class ModelInfo(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "asyncgen"
    max_model_len: int | None
    """Tokens of prompt and answer together; not of OpenAI's."""


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


class Style(ABC):
    """How the answers to one request are written: as one, or in pieces, which are values for JSON."""

    prefix: ClassVar[str]
    kind: ClassVar[str]
    """What a piece calls itself."""

    def __init__(self, model: str, fingerprint: str, *, tells_usage: bool = False) -> None:
        """With ``tells_usage`` the last piece of a stream has the tokens of all of it, and the others say that they do
        not.
        """
        self.tells_usage = tells_usage
        self.head: dict[str, Any] = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    @abstractmethod
    def whole(self, completions: Sequence[Completion], usage: Usage) -> BaseModel:
        """All answers at once."""

    @abstractmethod
    def first(self, index: int) -> list[dict[str, Any]]:
        """What comes before an answer's text."""

    @abstractmethod
    def piece(self, index: int, text: str) -> dict[str, Any]:
        """Some of an answer's text."""

    @abstractmethod
    def last(self, index: int, completion: Completion) -> dict[str, Any]:
        """What comes after an answer's text; all log-probabilities, if they are wanted."""

    def usage(self, usage: Usage) -> dict[str, Any]:
        """What comes after all answers."""
        return self._chunk([]) | {"usage": usage.model_dump()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = self.head | {"object": self.kind, "choices": choices}
        return chunk | {"usage": None} if self.tells_usage else chunk


class ChatStyle(Style):
    """``POST /v1/chat/completions``."""

    prefix, kind = "chatcmpl", "chat.completion.chunk"

    def whole(self, completions: Sequence[Completion], usage: Usage) -> ChatAnswer:
        """See ``Style``."""
        choices = [
            ChatChoice(
                index=index,
                message=ReplyMessage(content=each.text),
                logprobs=_chat_logprobs(each),
                finish_reason=_reason(each),
            )
            for index, each in enumerate(completions)
        ]
        return ChatAnswer(**self.head, choices=choices, usage=usage)

    def first(self, index: int) -> list[dict[str, Any]]:
        """See ``Style``."""
        return [self._delta(index, {"role": "assistant", "content": ""})]

    def piece(self, index: int, text: str) -> dict[str, Any]:
        """See ``Style``."""
        return self._delta(index, {"content": text})

    def last(self, index: int, completion: Completion) -> dict[str, Any]:
        """See ``Style``."""
        logprobs = _chat_logprobs(completion)
        return self._delta(index, {}, _reason(completion), None if logprobs is None else logprobs.model_dump())

    def _delta(
        self, index: int, delta: dict[str, str], reason: str | None = None, logprobs: Any = None
    ) -> dict[str, Any]:
        return self._chunk([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}])


class TextStyle(Style):
    """``POST /v1/completions``."""

    prefix, kind = "cmpl", "text_completion"

    def whole(self, completions: Sequence[Completion], usage: Usage) -> TextAnswer:
        """See ``Style``."""
        choices = [
            TextChoice(index=index, text=each.text, logprobs=_text_logprobs(each), finish_reason=_reason(each))
            for index, each in enumerate(completions)
        ]
        return TextAnswer(**self.head, choices=choices, usage=usage)

    def first(self, index: int) -> list[dict[str, Any]]:  # noqa: ARG002  # there is no role to tell
        """See ``Style``."""
        return []

    def piece(self, index: int, text: str) -> dict[str, Any]:
        """See ``Style``."""
        return self._chunk([{"index": index, "text": text, "logprobs": None, "finish_reason": None}])

    def last(self, index: int, completion: Completion) -> dict[str, Any]:
        """See ``Style``."""
        found = _text_logprobs(completion)
        logprobs = None if found is None else found.model_dump()
        return self._chunk([{"index": index, "text": "", "logprobs": logprobs, "finish_reason": _reason(completion)}])


def usage_of(completions: Sequence[Completion], answers: int) -> Usage:
    """The tokens of all of them, of which each ``answers`` have a prompt together."""
    read = sum(prompt_tokens(each) for each in completions[::answers])
    written = sum(each.tokens for each in completions)
    return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


def prompt_tokens(completion: Completion) -> int:
    """Tokens of the prompt; words with ``echo``."""
    prepared = completion.prompt.prepared
    return len(prepared.token_ids) or prepared.length


def _reason(completion: Completion) -> FinishReason:
    return "length" if completion.finish_reason == "length" else "stop"


def _chat_logprobs(completion: Completion) -> ChatLogprobs | None:
    if not _asked(completion):
        return None
    content = [
        TokenLogprob(token=text, logprob=logprob, bytes=list(text.encode()), top_logprobs=[])
        for text, logprob in _tokens(completion)
    ]
    return ChatLogprobs(content=content)


def _text_logprobs(completion: Completion) -> TextLogprobs | None:
    if not _asked(completion):
        return None
    tokens = _tokens(completion)
    offsets, at = [], 0
    for text, _ in tokens:
        offsets.append(at)
        at += len(text)
    logprobs = [logprob for _, logprob in tokens]
    return TextLogprobs(tokens=[text for text, _ in tokens], token_logprobs=logprobs, text_offset=offsets)


def _asked(completion: Completion) -> bool:
    return completion.prompt.sampling is not None and completion.prompt.sampling.logprobs


def _tokens(completion: Completion) -> list[tuple[str, float]]:
    """Text and log-probability of the tokens that the answer has text of; joined, the texts are the answer."""
    tokens = list(zip(completion.token_texts, completion.logprobs, strict=True))
    whole = "".join(completion.token_texts)
    skipped = whole.find(completion.text)
    if skipped < 0:
        return tokens
    found, at, end = [], 0, skipped + len(completion.text)
    for text, logprob in tokens:
        shown = text[max(0, skipped - at) : max(0, end - at)]
        at += len(text)
        if shown or (not text and skipped <= at < end):  # without text: it ends within a character
            found.append((shown, logprob))
    return found

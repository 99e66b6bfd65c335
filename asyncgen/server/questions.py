"""What clients may ask, in the words of OpenAI's protocol; what is not here is refused, and never ignored.

A field of the protocol that has a value with no effect may have that value, for clients send it without being asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from asyncgen import seeds
from asyncgen.engine import Asking, Question
from asyncgen.records import Message

__all__ = ["ChatQuestion", "Choice", "TextQuestion", "choices_of"]


def _as_whole(value: object) -> object:
    """To JSON, 7.0 is a whole number too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_off(value: bool) -> bool:
    if value:
        raise ValueError("found true, expected false: this server does not support it")
    return value


_WHOLE = BeforeValidator(_as_whole)
_Off = Annotated[bool, AfterValidator(_is_off), WithJsonSchema({"const": False})]
_Text = Annotated[str, Field(min_length=1)]
_Stops: TypeAlias = _Text | Annotated[list[_Text], Field(max_length=16)] | None
_Tokens = Annotated[list[Annotated[int, Field(ge=0, lt=2**31), _WHOLE]], Field(min_length=1)]
_Zero: TypeAlias = Annotated[float, Field(ge=0, le=0)] | None
_NoItems: TypeAlias = Annotated[list[Any], Field(max_length=0)] | None
_NoKeys: TypeAlias = Annotated[dict[str, Any], Field(max_length=0)] | None


class _Part(BaseModel):
    """Of what comes in: no unknown keys, and no text in the place of a number."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class StreamOptions(_Part):
    """What a stream brings beside pieces."""

    include_usage: bool | None = None
    """Whether a last piece without choices tells the tokens of all of them."""
    include_obfuscation: _Off | None = None


class _Common(_Part):
    """What both kinds of questions have."""

    model: str
    """The model's name; ``/v1/models`` tells it."""
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    """Divides the logits; 0 always takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Keep the likeliest tokens that together reach this probability."""
    top_k: Annotated[int, Field(ge=0, lt=2**31), _WHOLE] | None = None
    """Keep this many likeliest tokens; 0 keeps all. Not of OpenAI's; neither are the next two."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Drop tokens less likely than this share of the likeliest one's probability."""
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    """Above 1 makes tokens that prompt or answer hold less likely."""
    max_tokens: Annotated[int, Field(ge=1), _WHOLE] | None = None
    """Longest answer, in tokens."""
    n: Annotated[int, Field(ge=1), _WHOLE] | None = None
    """Answers to each prompt."""
    seed: Annotated[int, Field(ge=0, lt=2**63), _WHOLE] | None = None
    """With the same seed the answer is the same, whoever else asks for what."""
    stop: _Stops = None
    """What ends the answer, and is no part of it."""
    stream: bool | None = None
    """Whether the answer comes in pieces, as server-sent events."""
    stream_options: StreamOptions | None = None
    frequency_penalty: _Zero = None
    presence_penalty: _Zero = None
    logit_bias: _NoKeys = None

    @property
    def longest(self) -> int | None:
        """Tokens that an answer may have; None where the client does not say."""
        return self.max_tokens

    @property
    def answers(self) -> int:
        """How many answers each prompt gets."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to tell its tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def asking(self) -> Asking:
        """What the engine is told, but for seed and length."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop")
        said: Asking = {name: value for name in names if (value := getattr(self, name)) is not None}  # type: ignore[assignment]
        return said


class TextPart(_Part):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(_Part):
    """A turn of the conversation. The protocol's other fields may be there without a value, as in an answer."""

    role: Literal["system", "developer", "user", "assistant"]
    """``developer`` means ``system``."""
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: None = None
    refusal: None = None
    annotations: _NoItems = None
    audio: None = None
    function_call: None = None
    tool_calls: _NoItems = None

    @property
    def message(self) -> Message:
        """The same for the engine."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=content)


class TextFormat(_Part):
    """The only form that an answer has."""

    type: Literal["text"]


class ChatQuestion(_Common):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    """The conversation, which the model's chat template renders."""
    max_completion_tokens: Annotated[int, Field(ge=1), _WHOLE] | None = None
    """The same as ``max_tokens``; the smaller one counts."""
    logprobs: bool | None = None
    """Whether to tell how likely the model found each token."""
    top_logprobs: Annotated[int, Field(ge=0, le=0), _WHOLE] | None = None
    response_format: TextFormat | None = None
    tools: _NoItems = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: _NoItems = None
    function_call: Literal["none", "auto"] | None = None
    store: _Off | None = None

    @property
    def longest(self) -> int | None:
        """See ``_Common``."""
        return min(filter(None, (self.max_tokens, self.max_completion_tokens)), default=None)

    @property
    def wants_logprobs(self) -> bool:
        """Whether each token's log-probability is wanted."""
        return bool(self.logprobs)

    @property
    def prompts(self) -> list[Question]:
        """What answers are wanted to."""
        return [[each.message for each in self.messages]]


class TextQuestion(_Common):
    """``POST /v1/completions``."""

    prompt: (
        _Text | Annotated[list[_Text], Field(min_length=1)] | _Tokens | Annotated[list[_Tokens], Field(min_length=1)]
    )
    """A text or token ids to go on from, or several."""
    logprobs: Annotated[int, Field(ge=0, le=0), _WHOLE] | None = None
    """0 tells how likely the model found each token."""
    echo: _Off | None = None
    best_of: None = None
    suffix: None = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether each token's log-probability is wanted."""
        return self.logprobs is not None

    @property
    def prompts(self) -> list[Question]:
        """What answers are wanted to."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the answers that a request wants."""

    index: int
    prompt: Question
    seed: int | None


def choices_of(question: ChatQuestion | TextQuestion) -> Iterator[Choice]:
    """Each answer that is wanted, those to the first prompt first. The first answer to each prompt has the seed that
    was asked for, so one answer and the first of several are the same; the others' seeds follow from it.
    """
    for place, prompt in enumerate(question.prompts):
        for number in range(question.answers):
            seed = question.seed
            if seed is not None and number:
                seed = seeds.sampling_seed(seed, number, 1)
            yield Choice(place * question.answers + number, prompt, seed)

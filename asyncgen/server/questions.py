"""What clients may ask, in the words of OpenAI's protocol; what is not here is refused, and never ignored.

Of fields that are not supported, those that clients send without being asked may have the value that has no effect.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from asyncgen import seeds
from asyncgen.engine import Asking, Question, checked
from asyncgen.records import Message

__all__ = ["ChatQuestion", "Choice", "TextQuestion", "choices_of"]


def _as_whole(value: object) -> object:
    """To JSON, 7.0 is a whole number too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _nothing_but(*neutral: object) -> AfterValidator:
    """Lets only values in that have no effect here."""

    def check(value: object) -> object:
        if value not in neutral:
            raise PydanticCustomError("unsupported", "this server does not support it")
        return value

    return AfterValidator(check)


_WHOLE = BeforeValidator(_as_whole)
_Off = Annotated[bool, _nothing_but(False), WithJsonSchema({"const": False})]
_Nothing = Annotated[object, _nothing_but(None), WithJsonSchema({"type": "null"})]
_Zero = Annotated[float, _nothing_but(0), WithJsonSchema({"const": 0})]
_ZeroTokens = Annotated[int, _WHOLE, _nothing_but(0), WithJsonSchema({"const": 0})]
_One = Annotated[int, _WHOLE, _nothing_but(1), WithJsonSchema({"const": 1})]
_NoItems = Annotated[list[Any], _nothing_but([]), WithJsonSchema({"type": "array", "maxItems": 0})]
_NoKeys = Annotated[dict[str, Any], _nothing_but({}), WithJsonSchema({"type": "object", "maxProperties": 0})]
_NoTool = Annotated[object, _nothing_but("none", "auto", None), WithJsonSchema({"enum": ["none", "auto", None]})]
_AnyTier = Annotated[object, _nothing_but("auto", "default", None), WithJsonSchema({"enum": ["auto", "default", None]})]
_OnlyText = Annotated[list[Any], _nothing_but(["text"]), WithJsonSchema({"const": ["text"]})]
_TextFormat = Annotated[dict[str, Any], _nothing_but({"type": "text"}), WithJsonSchema({"const": {"type": "text"}})]
_Text = Annotated[str, Field(min_length=1)]
_Stops: TypeAlias = _Text | Annotated[list[_Text], Field(max_length=16, fail_fast=True)] | None
_Tokens = Annotated[list[Annotated[int, Field(ge=0, lt=2**31), _WHOLE]], Field(min_length=1, fail_fast=True)]


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
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    """Above 1 makes tokens that prompt or answer hold less likely."""
    max_tokens: Annotated[int, Field(ge=1, lt=2**31), _WHOLE] | None = None
    """Longest answer, in tokens."""
    n: Annotated[int, Field(ge=1, lt=2**31), _WHOLE] | None = None
    """Answers to each prompt."""
    seed: Annotated[int, Field(ge=0, lt=2**63), _WHOLE] | None = None
    """With the same seed the answer is the same, whoever else asks for what."""
    stop: _Stops = None
    """What ends the answer, and is no part of it."""
    stream: bool | None = None
    """Whether the answer comes in pieces, as server-sent events."""
    stream_options: StreamOptions | None = None
    frequency_penalty: _Zero | None = None
    presence_penalty: _Zero | None = None
    logit_bias: _NoKeys | None = None
    user: _Nothing = None

    @property
    def lengths(self) -> dict[str, int]:
        """Tokens that an answer may have at most, by the field that says so; of several, the least counts."""
        found = {name: getattr(self, name, None) for name in ("max_tokens", "max_completion_tokens")}
        return {name: value for name, value in found.items() if value is not None}

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
    content: str | Annotated[list[TextPart], Field(min_length=1, max_length=1024, fail_fast=True)]
    name: _Nothing = None
    refusal: _Nothing = None
    annotations: _NoItems | None = None
    audio: _Nothing = None
    function_call: _Nothing = None
    tool_calls: _NoItems | None = None

    @property
    def message(self) -> Message:
        """The same for the engine."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=content)


class ChatQuestion(_Common):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096, fail_fast=True)]
    """The conversation, which the model's chat template renders."""
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31), _WHOLE] | None = None
    """The same as ``max_tokens``; the smaller one counts."""
    logprobs: bool | None = None
    """Whether to tell how likely the model found each token; in a stream, all of that comes with the last piece."""
    top_logprobs: _ZeroTokens | None = None
    response_format: _TextFormat | None = None
    tools: _NoItems | None = None
    tool_choice: _NoTool = None
    parallel_tool_calls: bool | None = None
    """Without effect: there are no tools."""
    functions: _NoItems | None = None
    function_call: _NoTool = None
    modalities: _OnlyText | None = None
    service_tier: _AnyTier = None
    metadata: _NoKeys | None = None
    reasoning_effort: _Nothing = None
    store: _Off | None = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether each token's log-probability is wanted."""
        return bool(self.logprobs)

    @cached_property
    def prompts(self) -> list[Question]:
        """What answers are wanted to."""
        return [checked([each.message for each in self.messages])]


class TextQuestion(_Common):
    """``POST /v1/completions``."""

    prompt: (
        _Text
        | Annotated[list[_Text], Field(min_length=1, fail_fast=True)]
        | _Tokens
        | Annotated[list[_Tokens], Field(min_length=1, fail_fast=True)]
    )
    """A text or token ids to go on from, or several."""
    logprobs: _ZeroTokens | None = None
    """0 tells how likely the model found each token."""
    echo: _Off | None = None
    best_of: _One | None = None
    suffix: _Nothing = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether each token's log-probability is wanted."""
        return self.logprobs is not None

    @cached_property
    def prompts(self) -> list[Question]:
        """What answers are wanted to."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [checked(self.prompt)]
        return [checked(each) for each in self.prompt]


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

"""What flows: Prompt -> Completion -> Verdict -> Story or Rejection. Immutable values, no behaviour to mock."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypedDict, cast

from asyncgen import seeds

__all__ = [
    "Completion",
    "FinishReason",
    "Given",
    "Message",
    "Prepared",
    "Prompt",
    "Record",
    "Rejection",
    "Sampling",
    "Story",
    "Verdict",
    "conversation_of",
]

FinishReason = Literal["stop", "length", "error", "refused", "cancelled"]
"""``stop``: end-of-text or a stop string; ``length``: the token limit; ``error``: generating failed, see ``error``;
``refused``: the prompt cannot be generated from (it is too long, the chat template does not take it), see ``error``;
``cancelled``: nobody wanted it any more."""


class Message(TypedDict):
    """One chat turn."""

    role: str  # "system", "user" or "assistant"
    content: str


Given = Sequence[Message] | str | tuple[int, ...]
"""What an answer is wanted to: a conversation, rendered by the model's chat template; or a text, or token ids, to go on
from as they stand."""


def conversation_of(given: Given) -> Sequence[Message] | None:
    """The messages, if it is a conversation."""
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        return None
    return cast("Sequence[Message]", given)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prompt as the backend wants it: ``token_ids`` for a local model; none for a server, which tokenises itself.

    The first ``shared`` of the token ids are the beginning that the plan shares among prompts. ``length`` is the number
    of tokens that the prompt occupies in a batch, any padding the backend decides by the prompt alone included; batches
    are packed by it.
    """

    length: int
    token_ids: tuple[int, ...] = ()
    shared: int = 0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of one answer are picked; the filters apply in the order in which they stand here.

    Raises ValueError for what means nothing.
    """

    temperature: float = 0.8
    """Divides the logits; 0 always takes the likeliest token, whatever the filters."""
    top_k: int = 0
    """Keep this many likeliest tokens, and those that tie with the last of them; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together reach this probability, and those that tie with the last of them."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest one's probability; 0 drops none."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens that prompt or answer hold less likely, below 1 likelier; comes before the temperature."""
    logprobs: bool = False
    """Report how likely the model found each token."""

    def __post_init__(self) -> None:
        allowed = {
            "temperature": (0 <= self.temperature < math.inf, "0 or more"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "at least 0 and at most 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0"),
        }
        for name, (good, what) in allowed.items():
            if not good:
                raise ValueError(f"Sampling.{name}: found {getattr(self, name)!r}, expected {what}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One attempt at one index of the plan."""

    index: int
    messages: tuple[Message, ...]
    seed: int = 0
    """Sampling seed of this attempt, 63 bits."""
    max_new_tokens: int = 512
    sampling: Sampling | None = None
    """How this one is sampled; None: as the run says."""
    attempt: int = 1
    selected_words: Mapping[str, str] = field(default_factory=dict)
    """Placeholder -> word, as ``{"word1": "moon"}``; empty if the source has none."""
    additional_condition: str = ""
    shared: int = 0
    """Leading messages that the plan shares among prompts (system and examples); engines compute them once."""
    shots: tuple[str, ...] = ()
    """The answers of the k-shot examples in ``messages``: what a completion must not copy."""
    source: str = "template"
    """Name of the source."""
    position: int = 0
    """Item of that source, from 0."""
    history: tuple[tuple[str, ...], ...] = ()
    """Reasons of each earlier attempt."""
    given: str | tuple[int, ...] | None = None
    """A text or token ids to go on from, in place of ``messages``."""
    stop: tuple[str, ...] | None = None
    """Texts that end the answer; None: as the run says."""
    alone: bool = False
    """Whether somebody asks for this one answer; else it is one of a run's."""
    streamed: bool = False
    """Whether somebody wants the answer while it is made."""
    prepared: Prepared = Prepared(0)

    @property
    def asked(self) -> Given:
        """What an answer is wanted to."""
        return self.messages if self.given is None else self.given

    def with_prepared(self, prepared: Prepared) -> Prompt:
        """The same prompt, ready for the backend."""
        return replace(self, prepared=prepared)

    def next_attempt(self, reasons: Sequence[str], run_seed: int) -> Prompt:
        """The same prompt again, with the sampling seed of its next attempt and ``reasons`` kept."""
        attempt = self.attempt + 1
        return replace(
            self,
            attempt=attempt,
            seed=seeds.sampling_seed(run_seed, self.index, attempt),
            history=(*self.history, tuple(reasons)),
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """What a backend made of a prompt."""

    prompt: Prompt
    text: str
    tokens: int
    """Tokens generated, the end-of-text token not counted."""
    seconds: float
    """From the row's admission to its end."""
    finish_reason: FinishReason
    error: str = ""
    """Why there is no text, if generating failed or was refused; such an attempt is rejected with this reason."""
    retryable: bool = True
    """False when another attempt cannot differ (a prompt that does not fit, say)."""
    logprobs: tuple[float, ...] = ()
    """Log-probability of each token generated, by the model's own softmax: before penalty, temperature and filters.
    Empty unless the prompt's sampling asks for them."""
    token_texts: tuple[str, ...] = ()
    """What each of these tokens adds to the text, before the text was cut at a stop string and stripped; empty for a
    token that ends within a character, whose last token then has all of it."""
    waited: float = 0.0
    """Seconds from a request to an engine to the row's admission; 0 for a run's."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A completion, judged: accepted if there are no reasons against it."""

    completion: Completion
    reasons: tuple[str, ...]
    """One text each; the part before the first colon names the kind of reason and is what statistics count."""
    quality: float
    """In [0, 1]."""
    word_count: int

    @property
    def accepted(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.reasons


@dataclass(frozen=True, slots=True)
class Record:
    """One line on disk, with the brief's keys; everything else is inside ``metadata``."""

    story_id: str
    prompt_id: str
    content: str
    word_count: int
    generation_time: float
    tokens_generated: int
    tokens_per_second: float
    metadata: Mapping[str, object]

    @property
    def index(self) -> int:
        """Place in the plan, from 0."""
        index = self.metadata["index"]
        assert isinstance(index, int)
        return index


@dataclass(frozen=True, slots=True)
class Story(Record):
    """An accepted record."""


@dataclass(frozen=True, slots=True)
class Rejection(Record):
    """An index that failed all its attempts; ``content`` is the last one's."""

    reasons: tuple[tuple[str, ...], ...]
    """One group of reasons an attempt."""

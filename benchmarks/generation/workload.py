"""The requests that every engine gets: the same token ids and the same output lengths, drawn from a seed.

- **A**, the brief's: two k-shot examples shared by all prompts, about 400 tokens, 40 to 90 tokens of a prompt's own,
  outputs log-normal around 150 tokens, cut to 20 to 300;
- **B**: the same without the examples;
- **C**: A with long-tailed outputs, log-normal around 150 and three times as wide, cut to 20 to 1,000.

Prompts are chats, rendered by the template of the model's tokenizer, so that our engines can see from the messages what
is shared; the others get the ids (or the text) that this rendering gives. For the bundled model they are prompts of
the project's own plan, and texts end where the model ends them, at 300 (C: 1,000) tokens at the latest.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anyio
from transformers import AutoTokenizer

from asyncgen import load_config
from asyncgen.backends.chat import Chat
from asyncgen.preview import take_prompts
from asyncgen.records import Message

_VOCABULARY = 4096
"""Of the bundled tokenizer, which all models have."""

__all__ = ["WORKLOADS", "Kind", "Request", "Workload", "draw_lengths", "load", "make", "save"]


@dataclass(frozen=True, slots=True)
class Kind:
    """What a workload is drawn from; lengths in tokens."""

    shots: bool
    spread: float
    """Standard deviation of the logarithm of output lengths."""
    longest: int
    shortest: int = 20
    median: int = 150
    shared: int = 400
    own: tuple[int, int] = (40, 90)


WORKLOADS = {
    "A": Kind(shots=True, spread=0.4, longest=300),
    "B": Kind(shots=False, spread=0.4, longest=300),
    "C": Kind(shots=True, spread=1.2, longest=1000),
    "tiny": Kind(shots=True, spread=0.4, shortest=2, median=6, longest=12, shared=120, own=(24, 40)),
}


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, and how many tokens it is to get."""

    messages: tuple[Message, ...]
    shared: int
    """Leading messages that all prompts share."""
    text: str
    ids: tuple[int, ...]
    limit: int
    """Tokens to generate; with natural endings at most."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in the order in which they come."""

    name: str
    natural: bool
    prefix: int
    """Tokens that all prompts begin with."""
    requests: tuple[Request, ...]

    def describe(self) -> dict[str, Any]:
        """For the results."""
        own = [len(request.ids) - self.prefix for request in self.requests]
        limits = [request.limit for request in self.requests]
        return {
            "name": self.name,
            "requests": len(self.requests),
            "shared tokens": self.prefix,
            "own tokens": f"{min(own)} to {max(own)}",
            "output tokens": f"{min(limits)} to {max(limits)}, mean {sum(limits) / len(limits):.0f}",
            "endings": "natural" if self.natural else "drawn beforehand",
        }


def make(name: str, folder: Path, count: int, *, natural: bool, seed: int) -> Workload:
    """``count`` requests for the model in ``folder``."""
    kind = WORKLOADS[name]
    chat = Chat(AutoTokenizer.from_pretrained(folder))
    conversations = _planned(kind, count, seed) if natural else _drawn(kind, count, seed, chat)
    limits = [kind.longest] * count if natural else draw_lengths(kind, count, seed)
    shared = len(conversations[0]) - 1 if kind.shots else 0
    requests = tuple(
        Request(tuple(messages), shared, chat.render(messages), chat.encode(messages), limit)
        for messages, limit in zip(conversations, limits, strict=True)
    )
    prefix = _common([request.ids for request in requests]) if kind.shots else 0
    return Workload(name, natural, prefix, requests)


def draw_lengths(kind: Kind, count: int, seed: int) -> list[int]:
    """Output lengths: log-normal, cut to the kind's range."""
    chance = random.Random(f"lengths {seed}")
    drawn = [round(chance.lognormvariate(math.log(kind.median), kind.spread)) for _ in range(count)]
    return [min(max(length, kind.shortest), kind.longest) for length in drawn]


def save(workload: Workload, file: Path) -> None:
    """Writes it for the engines' processes."""
    file.write_text(json.dumps(asdict(workload)), encoding="utf-8")


def load(file: Path) -> Workload:
    """Reads what ``save`` wrote."""
    found = json.loads(file.read_text(encoding="utf-8"))
    requests = tuple(
        Request(**each | {"messages": tuple(each["messages"]), "ids": tuple(each["ids"])})
        for each in found.pop("requests")
    )
    return Workload(requests=requests, **found)


def _drawn(kind: Kind, count: int, seed: int, chat: Chat) -> list[list[Message]]:
    """Chats of random words. A word is one token, so that a text of n words more has n tokens more."""
    chance = random.Random(f"words {seed}")
    words = _words(chat)

    def said(tokens: int) -> str:
        return " " + " ".join(chance.choice(words) for _ in range(tokens))

    # What the template adds to a message is the difference that an empty one makes.
    ask = [Message(role="user", content="")]
    around = len(chat.encode(ask))
    turn = len(chat.encode([*ask, *ask])) - around
    shots: list[Message] = []
    if kind.shots:
        examples = (kind.shared - 4 * turn) // 2
        for _ in range(2):
            shots += [Message(role="user", content=said(examples // 4))]
            shots += [Message(role="assistant", content=said(examples - examples // 4))]
    # With examples in front, what leads up to the question's first word is shared too.
    lead = _common([chat.encode([Message(role="user", content=f" {word}")]) for word in words[:2]])
    fixed = around - (lead if kind.shots else 0)
    return [[*shots, Message(role="user", content=said(chance.randint(*kind.own) - fixed))] for _ in range(count)]


def _planned(kind: Kind, count: int, seed: int) -> list[list[Message]]:
    config = load_config(None, [f"seed={seed}", f"use_k_shot={str(kind.shots).lower()}"])
    prompts = anyio.run(take_prompts, config, 0, count)
    return [list(prompt.messages) for prompt in prompts]


def _words(chat: Chat) -> list[str]:
    """Words that the tokenizer knows as one token when a space stands before them."""
    found = []
    empty = chat.encode([Message(role="user", content="")])
    for token in range(_VOCABULARY):
        text = chat.decode([token])
        if text.startswith(" ") and text[1:].isascii() and text[1:].isalpha():
            with_it = chat.encode([Message(role="user", content=text)])
            if len(with_it) == len(empty) + 1 and token in with_it:
                found.append(text[1:])
    return found


def _common(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all of them begin with."""
    first, last = min(prompts), max(prompts)  # what these two share, all that lie between share too
    alike = zip(first, last, strict=False)
    return next((place for place, (one, other) in enumerate(alike) if one != other), min(len(first), len(last)))

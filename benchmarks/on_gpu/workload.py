"""The requests: a beginning that all share, a question of each one's own, and how long each answer is to be.

Everything about a request follows from the seed and its index. Prompts are conversations of random words, each one
token of the tokenizer, so that lengths are what was drawn.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from asyncgen.backends.chat import Chat
from asyncgen.backends.slots.boundary import Boundaries
from asyncgen.prompts.plan import Plan
from asyncgen.records import Message, Prompt
from asyncgen.seeds import sampling_seed

__all__ = ["STORIES", "TINY", "Sizes", "Workload"]


@dataclass(frozen=True, slots=True)
class Sizes:
    """In tokens; answers are normal, cut to a range."""

    shared: int
    own: tuple[int, int]
    mean: float
    spread: float
    shortest: int
    longest: int

    def describe(self) -> dict[str, Any]:
        """For the results."""
        return {
            "shared tokens": self.shared,
            "own prompt tokens": list(self.own),
            "new tokens": f"N({self.mean:g}, {self.spread:g}) in {self.shortest}..{self.longest}, drawn beforehand",
        }


STORIES = Sizes(shared=500, own=(40, 90), mean=180, spread=40, shortest=60, longest=300)
TINY = Sizes(shared=90, own=(14, 24), mean=10, spread=3, shortest=4, longest=16)


class Workload:
    """Prompts by index, for one tokenizer."""

    def __init__(self, tokenizer: Any, sizes: Sizes, seed: int = 0) -> None:
        self.sizes, self._seed = sizes, seed
        chat = Chat(tokenizer)
        self._words = _words(tokenizer)
        self._shots, self.prefix = self._examples(chat)
        lone = self._asked(chat, 8)
        self._around = len(lone) - len(self.prefix) - 8

    def new_tokens(self, index: int) -> int:
        """How long the answer is to be."""
        sizes = self.sizes
        drawn = round(random.Random(f"length {self._seed} {index}").gauss(sizes.mean, sizes.spread))
        return min(max(drawn, sizes.shortest), sizes.longest)

    def own_tokens(self, index: int) -> int:
        """Tokens of the prompt behind the shared beginning."""
        least, most = self.sizes.own
        usual = least + (most - least) / 5  # the mean is two fifths of the way
        return round(random.Random(f"own {self._seed} {index}").triangular(least, most, usual))

    def messages(self, index: int) -> tuple[Message, ...]:
        """The conversation, of which all but the last message are shared."""
        return (*self._shots, Message(role="user", content=self._said(f"words {index}", self._count(index))))

    def prompt(self, index: int) -> Prompt:
        """As the pipeline would have planned it, not yet prepared."""
        return Prompt(
            index,
            self.messages(index),
            seed=sampling_seed(self._seed, index, 1),
            max_new_tokens=self.new_tokens(index),
            shared=len(self._shots),
        )

    def plan(self, *, sharing: bool = True) -> type[Plan]:
        """A plan of the template's whose prompts are these: template, words and conditions are drawn and rendered as
        ever, then what is asked and how long the answer may be is replaced.
        """
        workload = self

        class Drawn(Plan):
            def prompt(self, index: int) -> Prompt:
                mine = workload.prompt(index)
                answers = tuple(turn["content"] for turn in mine.messages[:-1] if turn["role"] == "assistant")
                return replace(
                    super().prompt(index),
                    messages=mine.messages,
                    max_new_tokens=mine.max_new_tokens,
                    shared=mine.shared if sharing else 0,
                    shots=answers,
                )

        return Drawn

    def _count(self, index: int) -> int:
        return max(1, self.own_tokens(index) - self._around)

    @lru_cache(4096)  # noqa: B019  # one for the life of the program
    def _said(self, name: str, words: int) -> str:
        return " " + " ".join(random.Random(f"{self._seed} {name}").choices(self._words, k=words))

    def _asked(self, chat: Chat, words: int) -> Sequence[int]:
        return chat.encode((*self._shots, Message(role="user", content=self._said("probe", words))))

    def _examples(self, chat: Chat) -> tuple[tuple[Message, ...], tuple[int, ...]]:
        """Two questions and answers that make a beginning of the wanted length."""
        words = [self.sizes.shared // 10, self.sizes.shared // 4] * 2
        for _ in range(4):
            self._shots = tuple(
                Message(role=role, content=self._said(f"shot {place}", each))
                for place, (role, each) in enumerate(zip(("user", "assistant") * 2, words, strict=True))
            )
            asked = self._asked(chat, 8)
            given = (*self._shots, Message(role="user", content=self._said("probe", 8)))
            shared = Boundaries(chat).shared(given, len(self._shots), asked)
            if shared == self.sizes.shared:
                break
            words[-1] = max(1, words[-1] + self.sizes.shared - shared)
        return self._shots, tuple(asked[:shared])


def _words(tokenizer: Any) -> list[str]:
    """Those that are one token, with a space before them, whatever stands around them."""
    texts = [
        name[1:] for name in tokenizer.get_vocab() if name[:1] == "\u0120" and name[1:].isascii() and name[1:].isalpha()
    ]
    texts = sorted(text for text in texts if len(text) > 2)[:20_000]
    found = tokenizer.backend_tokenizer.encode_batch([f" {text} {text}" for text in texts], add_special_tokens=False)
    return [text for text, each in zip(texts, found, strict=True) if len(each.ids) == 2 and each.ids[0] == each.ids[1]]

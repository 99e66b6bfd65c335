"""K-shot examples as real chat messages: which ones stand in front of which prompt.

Prompts with the same examples share their beginning, and engines compute a shared beginning once; so examples change
in blocks of indices, never from prompt to prompt by chance.
"""

from __future__ import annotations

from dataclasses import dataclass

from asyncgen.errors import DataError
from asyncgen.prompts.files import Shot
from asyncgen.prompts.words import choose_distinct
from asyncgen.records import Message

__all__ = ["Examples", "ShotPlan"]


@dataclass(frozen=True, slots=True)
class Examples:
    """The examples of a block of indices, made once and shared by all its prompts."""

    messages: tuple[Message, ...]
    """What stands in front of the prompt's own turn: the system message, if any, then user, assistant, user ..."""
    answers: tuple[str, ...]
    """The assistant's contents: what a completion must not copy."""


class ShotPlan:
    """The examples of every index: a pure function of (seed, index).

    ``rotate`` 0 always takes the first ``count`` examples, in their order. ``rotate`` R > 0 gives the indices from
    b x R up to (b + 1) x R, that one not included, ``count`` different examples drawn by the seed and b.
    """

    def __init__(
        self,
        shots: tuple[Shot, ...],
        count: int,
        *,
        seed: int,
        rotate: int = 0,
        system_prompt: str | None = None,
        where: str = "the conversation",
    ) -> None:
        if count > len(shots):
            raise DataError(
                f"{where} holds {len(shots)} examples, and k_shot_count asks for {count}",
                hint="lower k_shot_count, or add pairs of user and assistant turns",
            )
        self._shots = shots
        self._count = count
        self._seed = seed
        self._rotate = rotate
        self._system: tuple[Message, ...] = ()
        if system_prompt is not None:
            self._system = ({"role": "system", "content": system_prompt},)
        self._block = 0
        self._examples = self._make(self._choose(0))

    def pick(self, index: int) -> Examples:
        """The examples of ``index``; within a block always the same object."""
        if self._rotate and index // self._rotate != self._block:
            self._block = index // self._rotate
            self._examples = self._make(self._choose(self._block))
        return self._examples

    def _choose(self, block: int) -> tuple[Shot, ...]:
        if not self._rotate:
            return self._shots[: self._count]
        chosen = choose_distinct(self._seed, "shots", block, len(self._shots), self._count)
        return tuple(self._shots[k] for k in chosen)

    def _make(self, shots: tuple[Shot, ...]) -> Examples:
        messages = list(self._system)
        for shot in shots:
            messages.append({"role": "user", "content": shot.question})
            messages.append({"role": "assistant", "content": shot.answer})
        return Examples(tuple(messages), tuple(shot.answer for shot in shots))

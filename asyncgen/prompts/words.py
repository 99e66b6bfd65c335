"""Which words a prompt gets: a pure function of (seed, index), the same in any order of asking.

With diversity, the words of indices 0, 1, 2 ... are successive cuts of one endless sequence: seeded shuffles of the
whole vocabulary, one after another. A cut that crosses two shuffles passes over the words of the new one that it
already holds; those come next. That only reorders the new shuffle, so the sequence stays a chain of permutations, and
two promises hold after any number of prompts:

- the words of a prompt are all different;
- the use counts of any two words differ by at most 1.
"""

from __future__ import annotations

from math import gcd

from asyncgen import seeds
from asyncgen.errors import DataError

__all__ = ["WordPlan", "choose_distinct"]

_KEPT = 2
"""Orders kept: a cut needs at most two."""


class WordPlan:
    """The words of every index.

    ``pick`` costs a few microseconds on average. With diversity the first pick of a shuffle sorts the vocabulary,
    and a jump there makes the shuffles before it too, as far back as one began exactly with a cut: fewer than
    ``per_prompt`` of them.
    """

    def __init__(
        self,
        words: tuple[str, ...],
        per_prompt: int,
        *,
        seed: int,
        diverse: bool = True,
        where: str = "the vocabulary",
    ) -> None:
        if per_prompt > len(words):
            raise DataError(
                f"{where} has {len(words)} words, the template {per_prompt} word placeholders; "
                "a prompt's words are all different, so there must be at least as many words"
            )
        self._words = words
        self._count = per_prompt
        self._seed = seed
        self._diverse = diverse
        self._orders: dict[int, tuple[str, ...]] = {}

    def pick(self, index: int) -> tuple[str, ...]:
        """The words of ``index`` >= 0, all different."""
        if not self._count:
            return ()
        return self._cut(index) if self._diverse else self._drawn(index)

    def _cut(self, index: int) -> tuple[str, ...]:
        number, first = divmod(index * self._count, len(self._words))
        end = first + self._count
        picked = self._order(number)[first:end]
        rest = self._count - len(picked)
        return picked + self._order(number + 1)[:rest] if rest else picked

    def _order(self, number: int) -> tuple[str, ...]:
        """The order in which shuffle ``number`` is used up."""
        if number not in self._orders:
            period = self._count // gcd(self._count, len(self._words))
            first = number - number % period  # it begins with a cut, so no earlier one matters
            if number - 1 in self._orders:
                first = number
            before = self._orders.get(first - 1, ())
            for current in range(first, number + 1):
                before = self._make(current, before)
                self._keep(current, before)
        return self._orders[number]

    def _keep(self, number: int, order: tuple[str, ...]) -> None:
        self._orders[number] = order
        if len(self._orders) > _KEPT:
            del self._orders[next(iter(self._orders))]

    def _make(self, number: int, before: tuple[str, ...]) -> tuple[str, ...]:
        """Shuffle ``number``; the cut that reaches into it holds the last words of ``before``, and passes them over."""
        seed, words = self._seed, self._words
        drawn = seeds.draw_many(seed, "shuffle", number, count=len(words))
        order = [words[k] for k in sorted(range(len(words)), key=drawn.__getitem__)]
        held = len(words) * number % self._count
        if not held:
            return tuple(order)
        avoid = set(before[-held:])
        taken = [word for word in order if word not in avoid][: self._count - held]
        skip = set(taken)
        return (*taken, *(word for word in order if word not in skip))

    def _drawn(self, index: int) -> tuple[str, ...]:
        """Words independent of other indices'."""
        return tuple(
            [self._words[k] for k in choose_distinct(self._seed, "words", index, len(self._words), self._count)]
        )


def choose_distinct(seed: int, purpose: str, place: int, total: int, count: int) -> list[int]:
    """``count`` different numbers below ``total``, each selection and order equally likely: the first places of a
    Fisher-Yates shuffle, of which only they are made.
    """
    moved: dict[int, int] = {}
    chosen = []
    for at in range(count):
        drawn = at + seeds.draw(seed, purpose, place, at) % (total - at)
        chosen.append(moved.get(drawn, drawn))
        moved[drawn] = moved.get(at, at)
    return chosen

"""The quality score: a weighted mean of scores in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence

from asyncgen.config import Validation
from asyncgen.validators.builtin import Facts

__all__ = ["Quality", "ease_of", "low_quality", "mean"]

EASY_GRADE = 3.0
HARD_GRADE = 9.0


class Quality:
    """The part of the score that the built-in checks know, by the weights of the configuration.

    A text that passes the default checks has length, words and ending 1, variety at least 0.7 and whatever
    originality: with the default weights 0.80 or more.
    """

    def __init__(self, settings: Validation) -> None:
        self._settings = settings
        weights = settings.weights
        self._weights = (
            weights.length,
            weights.words,
            weights.ending,
            weights.variety,
            weights.originality,
            weights.readability,
        )
        self.weight = math.fsum(self._weights)
        """All weights together."""

    def of(self, facts: Facts, ease: float) -> float:
        """The score, to four places; ``ease`` is the score for readability."""
        if not self.weight:
            return 1.0
        length, words, ending, variety, originality, readability = self._weights
        points = (
            length * length_fit(facts.count, self._settings)
            + words * (1 - len(facts.missing) / max(1, facts.wanted))
            + ending * (0.0 if facts.unfinished else 1.0)
            + variety * (1 - facts.repeated)
            + originality * (1 - facts.shared)
            + readability * ease
        )
        return min(1.0, round(points / self.weight, 4))


def length_fit(count: int, settings: Validation) -> float:
    """1 for ``count`` words within the bounds, else the share of the nearer bound that is reached or kept."""
    if count < settings.min_words:
        return count / settings.min_words
    return min(1.0, settings.max_words / count)


def ease_of(grade: float) -> float:
    """The score for readability: 1 for a Flesch-Kincaid grade of 3 or less, 0 for 9 or more, linear between."""
    return min(1.0, max(0.0, (HARD_GRADE - grade) / (HARD_GRADE - EASY_GRADE)))


def mean(scores: Sequence[tuple[float, float]]) -> float:
    """The mean of (weight, score), to four places; 1 if nothing weighs anything."""
    total = math.fsum(weight for weight, _ in scores)
    return round(min(1.0, math.fsum(weight * score for weight, score in scores) / total), 4) if total else 1.0


def low_quality(score: float, settings: Validation) -> str:
    """The reason against a text with such a score."""
    return f"low quality: {score:g}, at least {settings.min_quality:g}"

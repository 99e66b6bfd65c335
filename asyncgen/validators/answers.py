"""What a function of the user's may answer about a text, and how many of its calls may fail. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

__all__ = ["ALLOWED", "Answer", "CheckFailed", "Failures", "read_answer"]

ALLOWED = "None, True, False, a text, a list of texts or a number from 0 to 1"

LATEST = 100
FEWEST = 20


class CheckFailed(Exception):
    """A call that gave no answer; the message goes on after the name of the check."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a function says about one text."""

    reasons: tuple[str, ...] = ()
    """What speaks against it."""
    score: float | None = None
    """Its part of the quality score, if it gave one."""


def read_answer(value: object) -> Answer:
    """``value`` as an answer: None, True, empty texts and an empty list say nothing against a text, False refuses it,
    texts are reasons, and a number in [0, 1] is a score. Raises CheckFailed for anything else.
    """
    if value is None or value is True:
        return Answer()
    if value is False:
        return Answer(("refused",))
    if isinstance(value, str):
        return _against([value])
    if isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value):
        return _against(value)
    if isinstance(value, Real):
        score = float(value)
        if 0 <= score <= 1:
            return Answer(score=score)
        raise CheckFailed(f"returned {score:g}; a score is a number from 0 to 1")
    kind = type(value).__name__
    if isinstance(value, (list, tuple)):
        others = [type(each).__name__ for each in value if not isinstance(each, str)]
        kind = f"a {kind} with {others[0]} in it"
    raise CheckFailed(f"returned {kind}; allowed is {ALLOWED}")


def _against(texts: Sequence[str]) -> Answer:
    """Reasons in plain texts: a subclass of the user's may do anything later on."""
    plain = (str.__str__(text).strip() for text in texts)
    return Answer(tuple(text for text in plain if text))


class Failures:
    """Remembers how the latest calls of a function went: more than half of the last 100 failed is too many."""

    def __init__(self) -> None:
        self._latest: deque[bool] = deque(maxlen=LATEST)

    def add(self, *, failed: bool) -> bool:
        """Counts a call, and says whether too many have failed; never before the twentieth call."""
        self._latest.append(failed)
        return len(self._latest) >= FEWEST and 2 * self.failed > len(self._latest)

    @property
    def failed(self) -> int:
        """How many of the latest calls failed."""
        return sum(self._latest)

    @property
    def calls(self) -> int:
        """How many calls that is of."""
        return len(self._latest)

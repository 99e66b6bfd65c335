"""The texts that end an answer: whether one is complete, where the answer is cut, and what may still become one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["NO_STOPS", "Stops", "cut_at_stop"]

_TAIL_TOKENS = 8
"""Tokens decoded beyond a stop string's own bytes, so that it never begins at the edge of what is decoded."""


def cut_at_stop(text: str, stops: Sequence[str]) -> str | None:
    """``text`` before the first occurrence of any of ``stops``; None if there is none."""
    found = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(found)] if found else None


class Stops:
    """Stop strings, for answers that ``decode`` makes texts of. ``reached`` belongs to one thread."""

    def __init__(self, texts: Sequence[str], decode: Callable[[Sequence[int]], str]) -> None:
        self.texts = tuple(texts)
        self._decode = decode
        self._may_end: dict[int, bool] = {}
        self._tail = max((len(stop.encode()) for stop in self.texts), default=0) + _TAIL_TOKENS

    def reached(self, tokens: Sequence[int]) -> bool:
        """Whether the last token completed a stop string; decodes only the end, and only after tokens that can."""
        if not self.texts or not self._may_end_one(tokens[-1]):
            return False
        tail = self._decode(tokens[-self._tail :])
        return any(stop in tail for stop in self.texts)

    def cut(self, text: str) -> str | None:
        """``text`` before the first stop string in it; None if there is none."""
        return cut_at_stop(text, self.texts)

    def undecided(self, text: str) -> int:
        """Characters at the end of ``text`` with which a stop string may have begun."""
        longest = max((len(stop) for stop in self.texts), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self.texts):
                return length
        return 0

    def _may_end_one(self, token: int) -> bool:
        """Whether a stop string's last character may come with this token: asked for every token of every row, so each
        token is decoded once. A token that is not a text by itself (part of a character, say) may.
        """
        known = self._may_end.get(token)
        if known is None:
            text = self._decode([token])
            known = not text or "\ufffd" in text or any(stop[-1].isspace() or stop[-1] in text for stop in self.texts)
            self._may_end[token] = known
        return known


NO_STOPS = Stops((), lambda _: "")
"""Nothing ends an answer but the model and its length."""

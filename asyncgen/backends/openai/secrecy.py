"""Keeps the key out of whatever is told."""

from __future__ import annotations

__all__ = ["Hiding"]

_SHORTEST = 8
"""Characters of a key for which answers are looked through: a shorter one ("none", "EMPTY") is no secret."""


class Hiding:
    """Called with a text, returns it without the key."""

    def __init__(self, key: str | None) -> None:
        self._key = key

    def __call__(self, text: str) -> str:
        """``text``, the key replaced."""
        return text.replace(self._key, "(hidden)") if self._key else text

    @property
    def reach(self) -> int:
        """Characters of the key: what lies further back can be no part of one that is still to come."""
        return len(self._key or "")

    def needed(self, text: str) -> bool:
        """Whether an answer holds the key."""
        return self._key is not None and len(self._key) >= _SHORTEST and self._key in text

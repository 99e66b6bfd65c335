"""Why a model is not one for the in-flight engine."""

from __future__ import annotations

__all__ = ["Unsupported"]


class Unsupported(Exception):
    """The in-flight engine cannot run the model; ``reason`` says why, as the end of a sentence that a user reads."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

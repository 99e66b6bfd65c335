"""What every backend offers the pipeline: ``prepare``, ``run``, ``limits``, ``snapshot``. Knows nothing about torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from anyio.streams.memory import MemoryObjectSendStream

from asyncgen.metrics import BackendSnapshot
from asyncgen.packing import PromptPool
from asyncgen.records import Completion, Message, Prepared

__all__ = ["Backend", "BackendSnapshot", "Completions", "Limits"]

Completions = MemoryObjectSendStream[tuple[Completion, ...]]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a backend can hold."""

    context_length: int
    """Prompt and new tokens of one row, at most."""
    rows: int
    """Rows generated at once."""


class Backend(Protocol):
    """A generator of texts. Opened by ``open_backend``, used by one pipeline."""

    limits: Limits
    notices: tuple[str, ...]
    """Sentences a user should read once (a missing chat template, a fallback)."""
    engine: str
    """What generates, by its kind in the configuration: where that says ``auto``, what it became."""
    fallback: str
    """Why it is not the in-flight engine, where ``auto`` would have had that; else empty."""
    revision: str | None
    """The commit of a hub model that was loaded; None where there is none to know."""

    def prepare(self, messages: Sequence[Message], max_new_tokens: int, shared: int = 0) -> Prepared:
        """Renders and tokenises one prompt, whose first ``shared`` messages the plan shares among prompts; called from
        worker threads, several at a time.

        Raises PromptTooLong if it and ``max_new_tokens`` exceed the context, PromptRefused if the model's chat
        template does not take such a conversation.
        """

    async def run(self, pool: PromptPool, completions: Completions) -> None:
        """Takes prompts from ``pool`` until it is closed and sends completions, without ever blocking on the send.

        Every prompt taken gives exactly one completion. Cancelled, it returns within one decode step. It does not
        close ``completions``; the pipeline's generate stage does.
        """

    def snapshot(self) -> BackendSnapshot:
        """What it has done so far. Cheap, and safe to call from the event loop while a batch is being generated."""

"""What every backend offers the pipeline: ``prepare``, ``run``, ``limits``, ``snapshot``. Knows nothing about torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

from anyio.streams.memory import MemoryObjectSendStream

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


@dataclass(frozen=True, slots=True)
class BackendSnapshot:
    """What a backend has done so far; immutable, and two of them add up (several engines, one display)."""

    busy_seconds: float = 0.0
    """Time spent generating, the batch in progress included."""
    tokens: int = 0
    """Tokens generated for prompts (end-of-text not counted), those of the batch in progress included."""
    batches: int = 0
    """Batches begun; a batch that was split counts once for each part that was tried."""
    rows_running: int = 0
    """Prompts being generated now and not yet finished."""
    rows_filled: int = 0
    """Rows of all batches that held a prompt."""
    rows_offered: int = 0
    """Rows that all batches had room for; ``rows_filled / rows_offered`` is how well the batches were filled."""
    cells: int = 0
    """Prompt tokens computed, padding and dummy rows included."""
    padded_cells: int = 0
    """Those of ``cells`` that were padding or dummy rows."""
    out_of_memory: int = 0
    """Batches that did not fit into memory and were tried again in parts."""
    device_bytes: int = 0
    """Memory of accelerators that this process holds for it; 0 without one."""

    def __add__(self, other: BackendSnapshot) -> BackendSnapshot:
        names = (each.name for each in fields(self))
        return BackendSnapshot(**{name: getattr(self, name) + getattr(other, name) for name in names})


class Backend(Protocol):
    """A generator of texts. Opened by ``open_backend``, used by one pipeline."""

    limits: Limits
    notices: tuple[str, ...]
    """Sentences a user should read once (a missing chat template, a fallback)."""
    revision: str | None
    """The commit of a hub model that was loaded; None where there is none to know."""

    def prepare(self, messages: Sequence[Message], max_new_tokens: int) -> Prepared:
        """Renders and tokenises one prompt; called from worker threads, several at a time.

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

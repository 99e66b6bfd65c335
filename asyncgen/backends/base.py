"""What every backend offers (``prepare``, ``run``, ``cancel``, ``reader``, ``limits``, ``snapshot``), and what it is
given to work with. Knows nothing about torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from asyncgen.backends.streaming import Piece, Progress, Reader
from asyncgen.metrics import BackendSnapshot
from asyncgen.packing import PromptPool
from asyncgen.records import Completion, Given, Prepared, Prompt

__all__ = ["Backend", "BackendSnapshot", "Completions", "Generator", "Limits", "Pool", "nobody"]


class Pool(Protocol):
    """Where a backend gets its prompts: a run's ``PromptPool``, or the ``Desk`` of an engine. Its methods belong to the
    event loop. A prompt is known by its identity: two of the same index may be there, of different runs.
    """

    async def take(self, rows: int, *, tokens: int | None = None, spread: float = 0.0) -> tuple[Prompt, ...]:
        """The next batch, as soon as it is worth starting; empty means that the pool is closed. See
        ``packing.choose`` for the arguments.
        """

    async def take_some(self, rows: int) -> tuple[Prompt, ...]:
        """At most ``rows`` of what waits, as soon as anything does; empty means that the pool is closed."""

    def starve(self, takers: int) -> None:
        """Records that so many takers of ``take_some`` more (or fewer) have nothing to do."""

    def close(self) -> None:
        """Ends ``take`` and ``take_some``."""


class Completions(Protocol):
    """Where a backend's completions go: a stream with room for all of them, or the ``Desk`` of an engine."""

    def send_nowait(self, item: tuple[Completion, ...], /) -> None:
        """Takes completions. Belongs to the event loop."""


def nobody(prompt: Prompt, at: int, piece: Piece) -> None:
    """Is told of answers that grow where none is streamed."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a backend can hold."""

    context_length: int | None
    """Prompt and new tokens of one row, at most; None where only a server knows, which refuses what is too long."""
    rows: int
    """Rows generated at once."""


class Generator(Protocol):
    """What a run needs of a backend: a backend itself, or a share of one."""

    notices: tuple[str, ...]
    """Sentences a user should read once (a missing chat template, a fallback)."""
    engine: str
    """What generates, by its kind in the configuration: where that says ``auto``, what it became."""
    fallback: str
    """Why it is not the in-flight engine, where ``auto`` would have had that; else empty."""
    revision: str | None
    """The commit of a hub model that was loaded; None where there is none to know."""

    @property
    def limits(self) -> Limits:
        """What it can hold; the rows may become fewer when it begins to run."""

    def snapshot(self) -> BackendSnapshot:
        """What it has done so far. Cheap, and safe to call from the event loop while a batch is being generated."""

    def prepare(self, given: Given, max_new_tokens: int, shared: int = 0) -> Prepared:
        """Renders and tokenises one prompt, whose first ``shared`` messages the plan shares among prompts; called from
        worker threads, several at a time.

        Raises PromptTooLong if it and ``max_new_tokens`` exceed the context, PromptRefused if the model's chat
        template does not take such a conversation.
        """

    async def run(self, pool: PromptPool, completions: Completions) -> None:
        """Takes prompts from ``pool`` until it is closed and sends completions, without ever blocking on the send; see
        ``Backend.run``.
        """


class Backend(Generator, Protocol):
    """A generator of texts. Opened by ``open_backend``, run once at a time."""

    async def run(self, pool: Pool, completions: Completions, progress: Progress = nobody) -> None:
        """Takes prompts from ``pool`` until it is closed and sends completions, without ever blocking on the send.

        Every prompt taken gives exactly one completion, and before it, if it is streamed, its pieces to ``progress``.
        Cancelled, it returns within one decode step. It does not close ``completions``; whoever made them does.
        """

    def cancel(self, prompt: Prompt) -> None:
        """Ends the row of a prompt that was taken and has no completion yet, after the step in progress: it gets one
        with finish reason ``cancelled`` (or another, if it just ended). Of any other prompt nothing is remembered.
        Belongs to the event loop.
        """

    def reader(self, prompt: Prompt) -> Reader:
        """Makes the text of the answer to ``prompt`` from the pieces that ``progress`` is told."""

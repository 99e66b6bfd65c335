"""Between the event loop and the engine's thread: prompts one way, completions the other.

Neither side ever waits for the other while it has work: the thread asks for prompts before it needs them and looks
whether they have come; completions are left on the loop's doorstep. So a loop that is busy (judging, or with somebody
else's work) costs no decode step, and the thread costs the loop nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from threading import Event
from time import monotonic

import anyio

from asyncgen.backends.base import Completions, Pool
from asyncgen.backends.streaming import Piece, Progress
from asyncgen.errors import BackendFailed
from asyncgen.records import Completion, Prompt
from asyncgen.tasks import on_loop

__all__ = ["Exchange"]


class Exchange:
    """Made on the event loop; ``serve`` and ``cancel`` run there, ``ask``, ``collect`` and ``deliver`` belong to the
    thread.
    """

    def __init__(self, pool: Pool, completions: Completions, progress: Progress) -> None:
        self._pool, self._completions, self._progress = pool, completions, progress
        self._loop = asyncio.get_running_loop()
        self._wanted = 0
        self._asked = anyio.Event()
        self._given: deque[Prompt] = deque()
        self._news = Event()
        self._pending = False
        self._held: set[int] = set()  # ids of prompts taken whose completions were not sent; the loop's own
        self.cancelled: set[int] = set()
        """Ids of prompts whose rows are to be ended; changed on the loop only, so none stays behind."""
        self._closed = False
        self.over = False
        """Whether nobody wants even what is running."""
        self.failures: list[Exception] = []
        """Why it ended before its time, if it did."""

    async def serve(self) -> None:
        """Fetches what is asked for from the pool until that is closed. Cancelled, it ends the exchange."""
        try:
            while True:
                await self._asked.wait()
                self._asked = anyio.Event()
                prompts = await self._pool.take_some(self._wanted)
                if not prompts:
                    self._closed = True
                    return
                self._held.update(map(id, prompts))
                self._given.extend(prompts)
                self._pending = False
                self._news.set()
        finally:
            self.over |= not self._closed
            self._news.set()

    def cancel(self, prompt: Prompt) -> None:
        """Ends the row of a prompt that was taken; of any other nothing is remembered."""
        if id(prompt) in self._held:
            self.cancelled.add(id(prompt))
            self._news.set()

    def ask(self, prompts: int) -> None:
        """Asks for at most so many prompts, unless an earlier question is still open."""
        if not self._pending and prompts > 0:
            self._pending = True
            on_loop(self._loop, self._note, prompts)

    def collect(self, *, wait: bool) -> list[Prompt]:
        """What has come; with ``wait``, as soon as anything has, or nothing will."""
        if wait and not self._given and not self.ended:
            on_loop(self._loop, self._pool.starve, 1)
            while not self._given and not self.ended:
                self._news.wait()
                self._news.clear()
            on_loop(self._loop, self._pool.starve, -1)
        return [self._given.popleft() for _ in range(len(self._given))]

    def pause(self, seconds: float) -> None:
        """Waits so long; less, if there is somebody to let go of."""
        end = monotonic() + seconds
        while not (self.over or self.cancelled) and (left := end - monotonic()) > 0:
            self._news.wait(left)
            self._news.clear()

    def deliver(self, completions: tuple[Completion, ...]) -> None:
        """Hands completions over; if whoever received them is gone, nobody wants them."""
        if completions:
            on_loop(self._loop, self._send, completions)

    def tell(self, news: tuple[tuple[Prompt, int, Piece], ...]) -> None:
        """Tells how answers that are streamed grow."""
        if news:
            on_loop(self._loop, self._tell, news)

    @property
    def ended(self) -> bool:
        """Whether no prompt will come any more."""
        return (self._closed and not self._given) or self.over

    def _note(self, prompts: int) -> None:
        self._wanted = prompts
        self._asked.set()

    def _tell(self, news: tuple[tuple[Prompt, int, Piece], ...]) -> None:
        for prompt, at, piece in news:
            self._progress(prompt, at, piece)

    def _send(self, completions: tuple[Completion, ...]) -> None:
        ids = {id(completion.prompt) for completion in completions}
        self._held -= ids
        self.cancelled -= ids
        try:
            self._completions.send_nowait(completions)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # whoever received them is gone: the run is being torn down, and has its own error
        except anyio.WouldBlock as error:
            self.failures.append(BackendFailed("the stream of completions is too short for what was taken"))
            self.failures[-1].__cause__ = error
            self.over = True
            self._news.set()

"""An engine for those who cannot await: scripts without an event loop, and threads beside one."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine, Iterable
from contextlib import ExitStack, suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, Unpack

from anyio.from_thread import start_blocking_portal

from asyncgen.backends import Limits
from asyncgen.engine.asking import Asking, Question
from asyncgen.engine.mapping import Answers
from asyncgen.engine.streams import TextStream
from asyncgen.errors import BackendFailed, EngineClosed
from asyncgen.records import Completion

if TYPE_CHECKING:
    from asyncgen.engine.engine import Engine, EngineSnapshot

__all__ = ["BlockingEngine", "BlockingIterator", "BlockingStream"]

LOOK_SECONDS = 1.0
"""How often whoever waits looks whether the event loop is still there."""

_T = TypeVar("_T")
_Read = TypeVar("_Read", TextStream, Answers)


class BlockingEngine:
    """What an ``Engine`` does, by calls that block the thread they are made in. Got by ``Engine.blocking``.

    Of an engine that is open it may be used at once, by any number of threads. Else it is a context manager, which
    opens the engine on an event loop in a thread of its own::

        with asyncgen.Engine("gpt2").blocking() as engine:
            print(engine.generate("Once upon a time", max_new_tokens=40).text)

    Where an event loop runs, its calls would stop all that is on it: there they raise RuntimeError and say what to do.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        refuse_on_a_loop("async with Engine(...) as engine")
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal("asyncio", name="asyncgen.Engine"))
            stack.enter_context(portal.wrap_async_context_manager(self._engine))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def generate(self, prompt: Question, **asking: Unpack[Asking]) -> Completion:
        """See ``Engine.generate``. Interrupted, it frees the row."""
        return self.call(partial(self._engine.generate, prompt, **asking), "await engine.generate(...)")

    def stream(self, prompt: Question, **asking: Unpack[Asking]) -> BlockingStream:
        """See ``Engine.stream``; to be read with ``for``."""
        made = self.call(_made(lambda: self._engine.stream(prompt, **asking)), "engine.stream(...)")
        return BlockingStream(self, made)

    def map(
        self, prompts: Iterable[Question], *, ordered: bool = True, ahead: int | None = None, **asking: Unpack[Asking]
    ) -> BlockingIterator[Answers, Completion]:
        """See ``Engine.map``; to be read with ``for``. The prompts are taken on the engine's event loop."""
        made = self.call(
            _made(lambda: self._engine.map(prompts, ordered=ordered, ahead=ahead, **asking)), "engine.map(...)"
        )
        return BlockingIterator(self, made)

    @property
    def limits(self) -> Limits:
        """See ``Engine.limits``."""
        return self._engine.limits

    @property
    def notices(self) -> tuple[str, ...]:
        """See ``Engine.notices``."""
        return self._engine.notices

    def snapshot(self) -> EngineSnapshot:
        """See ``Engine.snapshot``."""
        return self._engine.snapshot()

    def call(self, function: Callable[[], Coroutine[Any, Any, _T]], instead: str) -> _T:
        """What the coroutine returns that ``function`` makes, run on the engine's event loop."""
        refuse_on_a_loop(instead)
        loop = self._engine.loop
        coroutine = function()
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        except RuntimeError as error:
            coroutine.close()
            raise EngineClosed("the engine's event loop is closed") from error
        try:
            while not concurrent.futures.wait([future], LOOK_SECONDS).done:
                if loop.is_closed():  # it ended in the moment in which it took this
                    future.cancel()
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise EngineClosed("the engine's event loop has ended") from error
        except BaseException:
            future.cancel()
            raise


class BlockingIterator(Generic[_Read, _T]):
    """What an engine's stream or map gives, to be read with ``for``; in a ``with`` block, leaving it ends the rest."""

    def __init__(self, engine: BlockingEngine, read: Any) -> None:
        self._engine, self._read = engine, read

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> _T:
        found: tuple[_T] | None = self._engine.call(partial(_step, self._read), "async for")
        if found is None:
            raise StopIteration
        return found[0]

    def close(self) -> None:
        """Ends the rest; an engine that has ended has ended it."""
        with suppress(BackendFailed, EngineClosed):
            self._engine.call(self._read.aclose, "await aclose()")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BlockingStream(BlockingIterator[TextStream, str]):
    """One answer's text, while it is made."""

    @property
    def completion(self) -> Completion:
        """See ``TextStream.completion``."""
        found: Completion = self._read.completion
        return found


def refuse_on_a_loop(instead: str) -> None:
    """Raises RuntimeError where an event loop runs: blocking it would stop all that is on it, the engine too."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(f"an event loop runs in this thread, and this call would block it; use `{instead}`")


def _made(make: Callable[[], _T]) -> Callable[[], Coroutine[Any, Any, _T]]:
    async def made() -> _T:
        return make()

    return made


async def _step(read: Any) -> tuple[Any] | None:
    try:
        return (await read.__anext__(),)
    except StopAsyncIteration:
        return None

"""Small habits around anyio's task groups, threads and callbacks that several parts need."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import anyio
import anyio.to_thread

__all__ = ["as_raised", "awake", "ends_this_task", "in_thread", "on_loop", "single_cause", "tell_nobody"]

_T = TypeVar("_T")

_LOOKS = 16
"""Looks at the clock in the time that is allowed."""
_LONGEST_PAUSE = 1.0
_STANDSTILL = 0.25
"""A look that comes so many seconds late says that the process, or its event loop, stood still."""


def tell_nobody(_: str) -> None:
    """What is told to nobody: for those who need no notices."""


@contextmanager
def single_cause() -> Iterator[None]:
    """Lets a single cause leave its exception groups, and the first of several that say the same; others leave
    together.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        cause, *others = _leaves(group)
        if any((type(other), str(other)) != (type(cause), str(cause)) for other in others):
            raise
        raise cause from cause.__cause__


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for inner in error.exceptions for leaf in _leaves(inner)]


@contextmanager
def as_raised() -> Iterator[None]:
    """Takes away the exception group that a task group puts around what its body raised, and nothing else."""
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from group.exceptions[0].__cause__


def ends_this_task(error: BaseException) -> bool:
    """Whether ``error`` ends the task from outside; code of a user's may raise the same for reasons of its own."""
    if not isinstance(error, asyncio.CancelledError | GeneratorExit):
        return False
    try:
        task = asyncio.current_task()
    except RuntimeError:  # a coroutine that is closed after its loop
        return True
    return task is None or (isinstance(error, asyncio.CancelledError) and task.cancelling() > 0)


def on_loop(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: object) -> None:
    """Calls ``function`` on ``loop`` without waiting for it, for which anyio has no word; from any thread, a finalizer
    too. A loop that is closed has nobody left to tell.
    """
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)


@contextmanager
def awake(seconds: float | None, late: Callable[[], object]) -> Iterator[None]:
    """Calls ``late`` if what is inside takes longer than ``seconds`` (None: never), leaving out the time in which
    everything stood still: a process that was stopped and goes on (Ctrl-Z, a container that is paused, a laptop asleep)
    finds each deadline by the clock exceeded, though nobody was slow.
    """
    if seconds is None:
        yield
        return
    loop = asyncio.get_running_loop()
    pause = min(_LONGEST_PAUSE, seconds / _LOOKS)
    left = seconds
    timer: asyncio.TimerHandle

    def look(began: float, step: float) -> None:
        nonlocal left, timer
        passed = loop.time() - began
        left -= passed if passed < step + _STANDSTILL else step
        if left > 0:
            timer = wait(min(pause, left))
        else:
            late()

    def wait(step: float) -> asyncio.TimerHandle:
        return loop.call_later(step, look, loop.time(), step)

    timer = wait(pause)
    try:
        yield
    finally:
        timer.cancel()


async def in_thread(function: Callable[..., _T], *arguments: object) -> _T:
    """What ``function`` returns, run in a worker thread; ends only when the thread is done, however it is cancelled.

    In a task of its own: there cancellation always comes by a scope, which ``from_thread.check_cancelled`` sees;
    asyncio's own ``Task.cancel`` would leave the thread running. Takes none of the application's thread tokens.
    """
    results: list[_T] = []

    async def work() -> None:
        results.append(await anyio.to_thread.run_sync(function, *arguments, limiter=anyio.CapacityLimiter(1)))

    with single_cause():
        async with anyio.create_task_group() as group:
            group.start_soon(work)
    return results[0]

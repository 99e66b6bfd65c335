"""Awaits code of the user's in a task apart, which is cancelled once, as asyncio promises, and at last left behind."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import anyio

__all__ = ["CLOSING_SECONDS", "wait_apart"]

CLOSING_SECONDS = 10.0
"""Time that code may take to end once it is cancelled."""

_log = logging.getLogger(__name__)
_left: set[asyncio.Task[None]] = set()  # asyncio itself keeps no task alive


async def wait_apart(
    begin: Callable[[], Awaitable[object]], name: str, given_up: Callable[[], object] = lambda: None
) -> object:
    """What the awaitable gives or raises. Cancelled, it says so to ``given_up`` and waits for the end of the task, but
    not for ever.
    """
    results: list[object] = []
    errors: list[BaseException] = []

    async def work() -> None:
        try:
            results.append(await begin())
        except BaseException as error:  # noqa: BLE001  # SystemExit too: it is raised where the call was made
            errors.append(error)

    task = asyncio.create_task(work(), name=f"asyncgen validator {name}")
    try:
        await asyncio.wait({task})
    finally:
        if not task.done():
            task.cancel()
            given_up()
            await _end(task, name)
    if errors:
        raise errors[0]
    return results[0]


async def _end(task: asyncio.Task[None], name: str) -> None:
    with anyio.CancelScope(shield=True):
        await asyncio.wait({task}, timeout=CLOSING_SECONDS)
    if not task.done():
        _log.info("a call of the check %r does not end when it is cancelled, and is left behind", name)
        _left.add(task)
        task.add_done_callback(_left.discard)

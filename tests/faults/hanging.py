"""The command line with a model that hangs: ``ASYNCGEN_HANG=KIND:N python -m tests.faults.hanging run ...`` stops for
ten minutes in the backend's N-th batch, in a thread that is waited for, as a model's is.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Sequence
from functools import partial

import anyio
import anyio.to_thread

from asyncgen.cli import main
from asyncgen.packing import PromptPool
from asyncgen.records import Prompt

KINDS = {"python": partial(time.sleep, 600), "c": partial(ctypes.CDLL(None).sleep, 600)}


def hang_in(kind: str, batch: int) -> None:
    """Lets ``take``, which the backend calls before each batch, hang."""
    take, taken = PromptPool.take, 0

    async def hanging_take(self: PromptPool, *arguments: int, **options: int) -> Sequence[Prompt]:
        nonlocal taken
        taken += 1
        if taken == batch:
            await anyio.to_thread.run_sync(KINDS[kind], limiter=anyio.CapacityLimiter(1))
        return await take(self, *arguments, **options)

    PromptPool.take = hanging_take  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    what, _, when = os.environ["ASYNCGEN_HANG"].partition(":")
    hang_in(what, int(when))
    main()

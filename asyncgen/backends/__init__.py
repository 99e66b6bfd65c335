"""What generates: echo, static, slots, openai, and their interface. Importing this loads no torch, transformers or
openai.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import perf_counter
from typing import TYPE_CHECKING

from anyio import CancelScope, from_thread

from asyncgen.backends.base import Backend, BackendSnapshot, Completions, Generator, Limits, Pool, nobody
from asyncgen.backends.echo import Echo
from asyncgen.backends.find import check_model, locate
from asyncgen.backends.hub import downloading
from asyncgen.backends.openai import open_server
from asyncgen.backends.streaming import Piece, Progress, Reader
from asyncgen.config import Config, EchoBackend, LocalModel, OpenAIBackend, SlotsBackend, StaticBackend
from asyncgen.errors import ModelError
from asyncgen.metrics import duration
from asyncgen.tasks import in_thread

if TYPE_CHECKING:
    from asyncgen.backends.loading import Loaded
    from asyncgen.backends.slots.backend import Slots
    from asyncgen.backends.static import Static

__all__ = [
    "Backend",
    "BackendSnapshot",
    "Completions",
    "Generator",
    "Limits",
    "Piece",
    "Pool",
    "Progress",
    "Reader",
    "check_model",
    "nobody",
    "open_backend",
]


@asynccontextmanager
async def open_backend(config: Config, notice: Callable[[str], object] = str) -> AsyncIterator[Backend]:
    """The backend that ``config`` names, its model loaded; on exit the model is freed. ``notice`` is told before a
    model is loaded, and what was loaded.

    Loading happens in a worker thread, so the event loop lives on; cancelled, it ends after the step in progress.
    Raises ModelError or ConfigError if the model cannot be used, ServerFailed if its server cannot. ``auto`` takes
    ``slots`` where the model allows it; where it does not, ``static``, and says why.
    """
    if isinstance(config.backend, EchoBackend):
        yield Echo(config, config.backend)
        return
    if isinstance(config.backend, OpenAIBackend):
        async with open_server(config, config.backend, notice) as served:
            yield served
        return
    began = perf_counter()
    notice(f"loading {config.model_name} ...")
    await in_thread(check_model, config)  # what cannot work is refused before the seconds that importing torch takes
    place = await in_thread(locate, config.model_name)
    async with downloading(place, config.backend.revision, notice) as cached_only:
        backend = await in_thread(_open_model, config, config.backend, cached_only)
    notice(f"loaded in {duration(perf_counter() - began)}: {backend.described}")
    try:
        yield backend
    finally:
        with CancelScope(shield=True):
            await in_thread(backend.close)


def _open_model(config: Config, options: LocalModel, cached_only: bool) -> Slots | Static:
    from asyncgen.backends.loading import load  # noqa: PLC0415  # imports torch and transformers
    from asyncgen.backends.memory import is_out_of_memory  # noqa: PLC0415

    from_thread.check_cancelled()
    loaded = load(config, options, cached_only=cached_only)
    try:
        return _engine(loaded, config, options)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(
            f"there is not enough memory to begin with {config.model_name!r}: {' '.join(str(error).split())}",
            hint="end what else uses it, lower generation.batch_size, or take a smaller model",
        ) from error


def _engine(loaded: Loaded, config: Config, options: LocalModel) -> Slots | Static:
    from asyncgen.backends.slots.backend import Slots  # noqa: PLC0415  # imports torch
    from asyncgen.backends.slots.probe import Unsupported  # noqa: PLC0415
    from asyncgen.backends.static import Static  # noqa: PLC0415

    if isinstance(options, StaticBackend):
        return Static(loaded, config)
    try:
        return Slots(loaded, config)
    except Unsupported as reason:
        if isinstance(options, SlotsBackend):
            raise ModelError(
                f"the slots backend cannot run {config.model_name!r}: {reason}",
                hint="set backend.kind to auto or static: static works for every model",
            ) from reason
        static = Static(loaded, config)
        static.fallback = str(reason)
        static.notices += (f"generating in batches (static), for the in-flight engine cannot run this model: {reason}",)
        return static

"""Models of the Hugging Face hub: one question before they are loaded, and how far their download is.

transformers asks the hub a dozen times for a model, and tries some of that six times where nobody answers: 50 s, and
two dozen warnings, for a model that is in the cache (seen with transformers 5.23 and huggingface_hub 2.4). So the hub
is asked once, and where it cannot be reached the cache has to do.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import anyio
from anyio import from_thread

from asyncgen.errors import ModelError
from asyncgen.metrics import byte_size, duration
from asyncgen.tasks import as_raised, in_thread

__all__ = ["Answer", "ask", "downloading"]

PATIENCE = 10.0
"""Seconds that the hub may take to answer."""
PAUSES = (1.0, 2.0)
"""Before it is asked again for a model of which nothing is in the cache."""
WORTH_TELLING = 50_000_000
"""Bytes of a download of which something is said."""
EVERY = 10.0
"""Seconds between two such lines."""
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_ERROR, _SERVER_ERROR = 400, 500


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of a hub model before it is loaded."""

    name: str
    unreachable: str = ""
    """Why the hub could not be asked; then nothing but the cache is to be looked at."""
    missing: int = 0
    """Bytes of weights that are not in the cache."""


def ask(name: str, revision: str | None = None) -> Answer:
    """Asks the hub for ``name``. Blocks for seconds at most. What is wrong with the name, the revision or the rights is
    left to loading, which says it better.

    Raises ModelError if the hub cannot be reached and nothing of the model is in the cache.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache  # noqa: PLC0415  # only for hub models

    if constants.HF_HUB_OFFLINE:
        return Answer(name)  # nobody is to be asked
    cached = isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
    why = ""
    for pause in (0.0,) if cached else (0.0, *PAUSES):
        sleep(pause)
        _look_for_cancellation()
        try:
            told = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=PATIENCE)
        except Exception as error:  # noqa: BLE001  # of httpx or httpx2, which is huggingface_hub's choice
            why = _unreachable(error)
            if not why:
                return Answer(name)
        else:
            return Answer(name, missing=_missing(name, told))
    if cached:
        return Answer(name, why)
    raise ModelError(
        f"the hub model {name!r} is not in the cache {str(constants.HF_HUB_CACHE)!r}, and the hub "
        f"({constants.ENDPOINT}) cannot be reached: {why}",
        hint="check the name and the network; docs/troubleshooting.md says how to bring a model to where there is none",
    )


@asynccontextmanager
async def downloading(place: Path | str, revision: str | None, notice: Callable[[str], object]) -> AsyncIterator[bool]:
    """Around the loading of a model: asks the hub if ``place`` is one of its, and tells ``notice`` what is downloaded
    and how far that is. Gives whether only what is in the cache is to be loaded. Raises what ``ask`` does.
    """
    if isinstance(place, Path):
        yield False
        return
    answer = await in_thread(ask, place, revision)
    if answer.unreachable:
        notice(f"the hub cannot be reached ({answer.unreachable}): {place} is taken from the cache")
    with as_raised():
        async with anyio.create_task_group() as tasks:
            if answer.missing >= WORTH_TELLING:
                tasks.start_soon(_follow, answer, notice)
            yield bool(answer.unreachable)
            tasks.cancel_scope.cancel()


def _unreachable(error: Exception) -> str:
    """Why nobody answered; empty if somebody did."""
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    if isinstance(error, HfHubHTTPError):
        status: int = getattr(error.response, "status_code", _ERROR)
        return f"it answers {status}" if status >= _SERVER_ERROR else ""
    if isinstance(error, OSError) or type(error).__module__.startswith("httpx"):
        return " ".join(str(error).split()) or type(error).__name__
    return ""


def _missing(name: str, told: Any) -> int:
    """Bytes of the weights that transformers will fetch: one file, or all of several."""
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415

    sizes = {file.rfilename: file.size or 0 for file in told.siblings or () if _WEIGHTS.fullmatch(str(file.rfilename))}
    wanted: Sequence[str] = [each for each in sizes if each == "model.safetensors"] or [*sizes]
    return sum(
        sizes[each] for each in wanted if not isinstance(try_to_load_from_cache(name, each, revision=told.sha), str)
    )


def _look_for_cancellation() -> None:
    with suppress(RuntimeError):  # in no worker thread
        from_thread.check_cancelled()


async def _follow(answer: Answer, notice: Callable[[str], object]) -> None:
    """Tells what has come, until cancelled."""
    from huggingface_hub import constants  # noqa: PLC0415

    folder = Path(constants.HF_HUB_CACHE) / f"models--{answer.name.replace('/', '--')}" / "blobs"
    total = byte_size(answer.missing)
    notice(f"downloading {answer.name}: {total}, into {constants.HF_HUB_CACHE}")
    before, began = await in_thread(_bytes_in, folder), perf_counter()
    while True:
        await anyio.sleep(EVERY)
        came = await in_thread(_bytes_in, folder) - before
        if came >= answer.missing:
            continue
        rate, left = came / (perf_counter() - began), ""
        if came > answer.missing // 100:  # before that it would be a guess
            left = f", {byte_size(round(rate))}/s, about {duration((answer.missing - came) / rate)} left"
        notice(f"downloading {answer.name}: {byte_size(came)} of {total}{left}")


def _bytes_in(folder: Path) -> int:
    """What the files of a folder hold, those that are still being written too."""
    total = 0
    with suppress(OSError):
        for file in folder.iterdir():
            with suppress(OSError):  # it was finished, and so renamed
                total += file.stat().st_size
    return total

"""Opens the backend: finds out whether the server is there, lets us in and has the model, before anything is asked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING

import anyio

from asyncgen.backends.find import api_key, check_model
from asyncgen.config import Config, OpenAIBackend
from asyncgen.errors import ConfigError, ModelError, ServerFailed
from asyncgen.tasks import in_thread

if TYPE_CHECKING:
    from asyncgen.backends.openai.backend import Served
    from asyncgen.backends.openai.client import Client

__all__ = ["open_server"]

_PAUSES = (0.2, 0.4, 0.8, 1.6, 2.0)
"""Seconds between tries to connect: a server that is being started may need them."""
_CLOSING_SECONDS = 2.0
_SHOWN, _LOOKED_AT = 100, 1000
"""Characters of a model's name, and models of a server's list, for hints."""


@asynccontextmanager
async def open_server(config: Config, options: OpenAIBackend, notice: Callable[[str], object]) -> AsyncIterator[Served]:
    """The backend, after a look at the server. Raises ModelError, ConfigError or ServerFailed."""
    check_model(config)
    client, backend = await in_thread(_make, config, options, api_key(config), notice)
    try:
        notice(f"asking {options.base_url} for {config.model_name} ...")
        models, why_not = await _models(client, options, notice)
        _check_has_model(models, config.model_name, options.base_url, client.hide)
        there = f"does not tell its models ({why_not})" if why_not else "is there"
        notice(f"{options.base_url} {there}: at most {backend.limits.rows} requests at once")
        yield backend
    finally:
        with anyio.move_on_after(_CLOSING_SECONDS, shield=True):
            await client.close()


def _make(
    config: Config, options: OpenAIBackend, key: str | None, notice: Callable[[str], object]
) -> tuple[Client, Served]:
    from asyncgen.backends.openai.backend import AUTO_ROWS, Served  # noqa: PLC0415  # imports openai
    from asyncgen.backends.openai.client import Client  # noqa: PLC0415  # the same

    size = config.generation.batch_size
    rows = AUTO_ROWS if size == "auto" else size
    try:
        client = Client(options, key, rows)
    except ValueError as error:
        raise ConfigError(f"backend.base_url: found no URL of a server: {error}") from error
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"no connection can be made to {options.base_url}: {error}",
            hint="look at the environment: ALL_PROXY, HTTPS_PROXY, HTTP_PROXY, SSL_CERT_FILE, SSLKEYLOGFILE",
        ) from error
    return client, Served(config, options, client, rows, notice)


async def _models(client: Client, options: OpenAIBackend, notice: Callable[[str], object]) -> tuple[bytes, str]:
    """What the server says of its models; nothing if it has nothing to say of them, and why."""
    from asyncgen.backends.openai.failures import TryFailed  # noqa: PLC0415  # only here it is loaded already

    for pause in (*_PAUSES, None):
        try:
            return await client.models(), ""
        except TryFailed as error:
            failure = error.failure
        if failure.reached and failure.let_in:
            return b"", failure.message
        if failure.reached or pause is None:
            break
        if pause == _PAUSES[0]:
            notice(f"{options.base_url} is not there yet ({failure.message}); it is tried for {sum(_PAUSES):g} s")
        await anyio.sleep(pause)
    raise ServerFailed(f"{options.base_url}: {failure.message}", hint=failure.hint)


def _check_has_model(models: bytes, name: str, url: str, hide: Callable[[str], str] = str) -> None:
    """Raises ModelError if there is a list of models, and it does not hold this one."""
    try:
        listed = json.loads(models)["data"]
        names = [each["id"] for each in listed if isinstance(each["id"], str)]
    except (ValueError, LookupError, TypeError, RecursionError):
        return
    if not names or name in names or f"{name}:latest" in names:  # Ollama's way to say that none is named
        return
    known = [hide(each)[:_SHOWN] for each in names[:_LOOKED_AT]]
    close = get_close_matches(name, known, 3, cutoff=0.3) or known[:3]
    raise ModelError(
        f"model not found: {url} has no {name!r}",
        hint=f"it has {len(names)}, among them {', '.join(map(repr, close))}; model_name is the name there",
    )

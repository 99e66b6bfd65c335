"""``serve``: the application under uvicorn, from a configuration to the last answer."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import anyio
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from asyncgen.config import Config, Server
from asyncgen.engine import Engine
from asyncgen.errors import ConfigError
from asyncgen.server.app import create_app, model_id
from asyncgen.tasks import single_cause, tell_nobody

__all__ = ["serve"]

STALLED_SECONDS = 60.0
"""Time that a client may leave the end of an answer, or of its own request's head, in the air."""
LAST_SECONDS = 2.0
"""Time that clients get to read that there will be no answer."""
_BACKLOG = 2048


async def serve(
    config: Config,
    *,
    stop: anyio.Event,
    notice: Callable[[str], object] = tell_nobody,
    begin: Callable[[], object] | None = None,
) -> None:
    """Answers as the ``server`` section of ``config`` says, until ``stop`` is set: then nobody is let in any more, and
    answers that are begun are finished, for ``drain_timeout`` seconds at most. Cancelled, it ends at once.

    ``notice`` is told, on the event loop, sentences that a person should read once; the last before there are answers
    names the address. ``begin`` is called when clients are let in. Raises ConfigError or ModelError; BackendFailed if
    the model fails.
    """
    key = _key(config.server)
    with _listening(config.server) as listener, single_cause():
        async with Engine(config, max_requests=config.server.max_requests, when_full="raise", notice=notice) as engine:
            for text in engine.notices:
                notice(text)
            app = create_app(engine, key=key)
            server = _server(app)
            listener.listen(_BACKLOG)
            notice(f"serving {model_id(config)} at {_address(listener)}/v1")
            if begin is not None:
                begin()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_end_with_model, app, engine)
                tasks.start_soon(_close_when_told, stop, app, server, engine)
                await server.serve([listener])
                tasks.cancel_scope.cancel()


async def _end_with_model(app: Starlette, engine: Engine) -> None:
    """Raises why the engine has ended, if it does so by itself."""
    why = await engine.ended()
    if not app.state.closing:
        raise why


async def _close_when_told(stop: anyio.Event, app: Starlette, server: _Server, engine: Engine) -> None:
    await stop.wait()
    app.state.closing = True
    server.should_exit = True
    await anyio.sleep(engine.config.drain_timeout)
    await engine.aclose(drain=False)  # whoever still waits is told so
    await anyio.sleep(LAST_SECONDS)
    for connection in tuple(server.server_state.connections):
        connection.transport.abort()


def _server(app: Starlette) -> _Server:
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        backlog=_BACKLOG,
        proxy_headers=False,
        server_header=False,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    """Leaves signals to whoever runs the program."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """See ``uvicorn.Server``."""
        return nullcontext()


class _Protocol(H11Protocol):
    """Gives up connections on which nothing happens that should: they would be held for ever."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See ``asyncio.Protocol``."""
        super().connection_made(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self._expect_nothing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        waits = self._timer is not None
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._expect_nothing()  # the request's head is there, and its body has a time of its own
        elif not waits:
            self._expect()

    def pause_writing(self) -> None:
        """See ``asyncio.Protocol``."""
        super().pause_writing()
        self._expect()

    def resume_writing(self) -> None:
        """See ``asyncio.Protocol``."""
        super().resume_writing()
        self._expect_nothing()

    def _expect(self) -> None:
        self._expect_nothing()
        self._timer = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def _expect_nothing(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _key(server: Server) -> str | None:
    if server.api_key_env is None:
        return None
    key = os.environ.get(server.api_key_env, "").strip()
    if not key:
        raise ConfigError(
            f"server.api_key_env: the environment variable {server.api_key_env} is not set, or empty",
            hint=f"export {server.api_key_env}=... with the key that clients are to send",
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(
            f"server.api_key_env: the key in {server.api_key_env} holds a character that no header can carry",
            hint="letters, digits and punctuation of ASCII",
        )
    return key


@contextmanager
def _listening(server: Server) -> Iterator[socket.socket]:
    """A socket with the address; until the model is there, clients are not let in."""
    where = f"{server.host}:{server.port}"
    try:
        found = socket.getaddrinfo(
            server.host.strip("[]"), server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"server.host: {where} is no address to listen at: {error.strerror or error}") from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise ConfigError(
                f"server.port: {where} cannot be listened at: {error.strerror}",
                hint="end what listens there, or take another port; 0 takes one that is free",
            ) from None
        listener.setblocking(False)
        yield listener


def _address(listener: socket.socket) -> str:
    host, port, *_ = listener.getsockname()
    name: Any = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}"

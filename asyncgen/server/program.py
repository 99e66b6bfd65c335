"""``serve``: the application under uvicorn, from a configuration to the last answer."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import anyio
import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from asyncgen.config import Config, Server
from asyncgen.engine import Engine
from asyncgen.errors import ConfigError, EngineClosed
from asyncgen.server.app import create_app
from asyncgen.server.refusals import Refusal
from asyncgen.tasks import single_cause, tell_nobody

__all__ = ["serve"]

STALLED_SECONDS = 60.0
"""Time that a client may leave the end of an answer, or of its own request's head, in the air."""
LAST_SECONDS = 2.0
"""Time that clients get to read that there will be no answer."""
_BACKLOG = 2048
_AT_A_TIME = 64
"""Connections that are taken in one turn of the loop."""
_MOST_EARLY = 2**16
"""Bytes that a client may send before the request in front of them is answered."""


async def serve(
    config: Config,
    *,
    stop: anyio.Event,
    notice: Callable[[str], object] = tell_nobody,
    begin: Callable[[str], object] = tell_nobody,
) -> None:
    """Answers as the ``server`` section of ``config`` says, until ``stop`` is set: then nobody is let in any more, and
    answers that are begun are finished, for ``drain_timeout`` seconds at most. Cancelled, it ends at once.

    ``notice`` is told, on the event loop, sentences that a person should read once, and ``begin`` the address
    (``http://127.0.0.1:8000``) when clients are let in. Raises ConfigError or ModelError; BackendFailed if the model
    fails.
    """
    key = _key(config.server)
    most = config.server.max_stories
    with _listening(config.server) as listener, single_cause():
        async with Engine(config, max_requests=most, when_full="raise", notice=notice) as engine:
            for text in engine.notices:
                notice(text)
            app = create_app(engine, key=key)
            server = _server(app)
            begin(_address(listener))
            failures: list[Exception] = []
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_close_with_model, app, server, engine, failures)
                tasks.start_soon(_close_when_told, stop, app, server, engine, notice)
                try:
                    await server.serve([listener])
                finally:
                    await server.end()
                tasks.cancel_scope.cancel()
            for failure in failures:
                raise failure


async def _close_with_model(app: Starlette, server: _Server, engine: Engine, failures: list[Exception]) -> None:
    """When the model fails, whoever waits is told so, and nobody is let in any more."""
    why = await engine.ended()
    if not isinstance(why, EngineClosed):
        failures.append(why)
        app.state.closing = server.should_exit = True
        await anyio.sleep(LAST_SECONDS)
        server.abort()


async def _close_when_told(
    stop: anyio.Event, app: Starlette, server: _Server, engine: Engine, notice: Callable[[str], object]
) -> None:
    await stop.wait()
    app.state.closing = server.should_exit = True
    await anyio.sleep(engine.config.drain_timeout)
    if left := engine.snapshot().requests:
        notice(f"{left} stories were not finished within {engine.config.drain_timeout:g} s; their clients are told so")
    await engine.aclose(drain=False)
    await anyio.sleep(LAST_SECONDS)
    server.abort()


def _server(app: Starlette) -> _Server:
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        backlog=_AT_A_TIME,
        proxy_headers=False,
        server_header=False,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    """Leaves signals to whoever runs the program, and nothing behind when it is cancelled."""

    servers: list[asyncio.Server] = []  # noqa: RUF012  # uvicorn's, which has none before it has begun

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """See ``uvicorn.Server``."""
        return nullcontext()

    def abort(self) -> None:
        """Cuts all connections."""
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()

    async def end(self) -> None:
        """Closes what is open yet, and waits for what works for it. After an end in peace there is nothing to do."""
        with anyio.CancelScope(shield=True):
            for each in self.servers:
                each.close()
            self.abort()  # which ends what works for a connection
            if self.server_state.tasks:
                await asyncio.wait(self.server_state.tasks, timeout=LAST_SECONDS)


class _Protocol(H11Protocol):
    """Gives up connections on which nothing happens that should, for they would be held for ever: a request's head that
    does not come to its end, and an answer that is not read.
    """

    _head: asyncio.TimerHandle | None = None
    """Runs while a head is awaited."""
    _reading: asyncio.TimerHandle | None = None
    """Runs while the client has something to read that is not on its way yet."""
    _unread = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See ``asyncio.Protocol``."""
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            transport.abort()
        else:
            self._head = self.loop.call_later(STALLED_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        for timer in (self._head, self._reading):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        if not self._works and not self.conn.trailing_data[0]:
            data = data.lstrip(b"\r\n")  # RFC 9112, 2.2: some clients end a body so
            if not data:
                return
        try:
            super().data_received(data)
        except h11.LocalProtocolError:
            return  # more came after a request that was to be the last one
        if self._works:
            if self._head is not None:
                self._head.cancel()  # the head is there, and its body has a time of its own
                self._head = None
            self._keep_listening()
        elif self._head is None:
            self._head = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """See uvicorn, which does not look whether somebody is about to answer."""
        if self._works and not self.cycle.response_started:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        elif self._works or self.conn.our_state is not h11.IDLE:
            self.transport.abort()
            return
        body = Refusal(400, "invalid_request", msg).body
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(f"{head}connection: close\r\n\r\n".encode() + body)
        self.transport.close()

    @property
    def _works(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _keep_listening(self) -> None:
        """What comes behind a request waits, for which uvicorn stops reading; then it would not hear of a hang-up."""
        if len(self.conn.trailing_data[0]) > _MOST_EARLY:
            self.transport.abort()
        elif self.conn.their_state is h11.DONE:
            self.flow.resume_reading()

    def pause_writing(self) -> None:
        """See ``asyncio.Protocol``."""
        super().pause_writing()
        self._see_that_it_is_read()

    def on_response_complete(self) -> None:
        """See uvicorn."""
        super().on_response_complete()
        self._see_that_it_is_read()

    def _see_that_it_is_read(self) -> None:
        """Looks now and then whether what waits becomes less."""
        unread = self.transport.get_write_buffer_size()
        if self._reading is None and unread:
            self._unread = unread
            self._reading = self.loop.call_later(STALLED_SECONDS, self._look)

    def _look(self) -> None:
        self._reading = None
        if self.transport.get_write_buffer_size() < self._unread:
            self._see_that_it_is_read()
        else:
            self.transport.abort()


def most_connections() -> int:
    """Connections that are held at once: so many that the process can still open files, and take more to refuse them.
    Without that, asyncio would say for each in each turn of the loop that it cannot be taken.
    """
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, descriptors - 3 * _AT_A_TIME)


def _key(server: Server) -> str | None:
    if server.api_key_env is None:
        return None
    key = os.environ.get(server.api_key_env, "").strip()
    if not key:
        raise ConfigError(
            f"server.api_key_env: the environment variable {server.api_key_env} is not set, or empty",
            key="server.api_key_env",
            hint=f"export {server.api_key_env}=... with the key that clients are to send",
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(
            f"server.api_key_env: the key in {server.api_key_env} holds a character that no header can carry",
            key="server.api_key_env",
            hint="letters, digits and punctuation of ASCII",
        )
    return key


@contextmanager
def _listening(server: Server) -> Iterator[socket.socket]:
    """A socket with the address, at which clients may knock; they wait until the model is there."""
    where = f"{server.host}:{server.port}"
    try:
        found = socket.getaddrinfo(
            server.host.strip("[]"), server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"server.host: {where} is no address to listen at: {why}", key="server.host") from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(_BACKLOG)  # only now is the address ours
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise ConfigError(
                    f"server.host: {server.host} is no address of this machine", key="server.host"
                ) from None
            raise ConfigError(
                f"server.port: {where} cannot be listened at: {error.strerror}",
                key="server.port",
                hint="end what listens there, or take another port; 0 takes one that is free",
            ) from None
        listener.setblocking(False)
        yield listener


def _address(listener: socket.socket) -> str:
    host, port, *_ = listener.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

"""The connection to a server: the official client, with a bound on everything. Made in a thread, for importing the
package openai takes a second; used on the event loop.

Whatever goes wrong is a ``TryFailed``, raised while no other exception is handled: tracebacks would show what the
others hold. Nothing is sent but what is needed here: no key meant for somebody else (``OPENAI_API_KEY``,
``OPENAI_CUSTOM_HEADERS`` ...), and nothing about this machine.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import anyio
import httpx2
import openai

from asyncgen.backends.openai.events import Events
from asyncgen.backends.openai.failures import Failure, TryFailed, away, cut, invalid, of_status, too_late
from asyncgen.backends.openai.secrecy import Hiding
from asyncgen.config import OpenAIBackend, is_loopback
from asyncgen.tasks import awake

__all__ = ["MOST_BYTES", "Client"]

_T = TypeVar("_T")

MOST_BYTES = 64 << 20
"""Bytes of one answer: a server that never stops sending must not fill the memory."""
CONNECT_SECONDS = 10.0
"""For a connection, and for what takes a server no work."""
LAST_SECONDS = 2.0
"""For what follows the end of an answer."""
_SPARE_CONNECTIONS = 2
_IDLE_SECONDS = 3.0
"""After which a connection is closed: sooner than servers do it (uvicorn after 5), or requests would meet their end."""
_SAID = 300
"""Characters that are kept of what others say."""
_SENT = {"host", "accept", "connection", "user-agent", "content-type", "content-length"}


class Client:
    """Asks one server. ``close`` ends it."""

    def __init__(self, options: OpenAIBackend, key: str | None, rows: int) -> None:
        """Raises ValueError for a URL that is none after all."""
        self.hide = Hiding(key)
        self._key, self._timeout = key, options.timeout
        self._quick = min(CONNECT_SECONDS, options.timeout)
        connections = rows + _SPARE_CONNECTIONS
        self._http = httpx2.AsyncClient(
            timeout=httpx2.Timeout(None, connect=0.8 * self._quick),  # so that it comes before our own
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # none are kept
            trust_env=not is_loopback(urlsplit(options.base_url).hostname or ""),  # no proxy for this machine
            limits=httpx2.Limits(
                max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=_IDLE_SECONDS
            ),
            event_hooks={"request": [self._leave_what_is_needed], "response": [_bound]},
        )
        try:
            self._client = openai.AsyncOpenAI(
                api_key="none", base_url=options.base_url, max_retries=0, timeout=None, http_client=self._http
            )
        except httpx2.InvalidURL as error:
            raise ValueError(str(error)) from None

    async def post(self, path: str, body: dict[str, Any]) -> bytes:
        """The JSON that comes back, within ``timeout``. Raises TryFailed."""
        return await self._carefully(self._post(path, body))

    async def stream(self, path: str, body: dict[str, Any], take: Callable[[bytes], bool]) -> None:
        """Calls ``take`` with each event of the stream that comes back, each within ``timeout``; once it has returned
        true, what still comes is waited for a moment only. Raises TryFailed.
        """
        await self._carefully(self._stream(path, body, take))

    async def models(self) -> bytes:
        """What the server says of its models. Raises TryFailed."""
        return await self._carefully(self._models())

    async def close(self) -> None:
        """Ends all connections."""
        await self._client.close()

    async def _post(self, path: str, body: dict[str, Any]) -> bytes:
        with _in_time(self._timeout):
            response = await self._sent(path, body)
            try:
                self._check_type(response, "application/json")
                return await response.aread()
            finally:
                await _close(response)

    async def _stream(self, path: str, body: dict[str, Any], take: Callable[[bytes], bool]) -> None:
        seconds = self._timeout
        with _in_time(self._timeout):
            response = await self._sent(path, body)
        try:
            self._check_type(response, "text/event-stream")
            events, chunks = Events(), response.aiter_bytes()
            while True:
                with _in_time(seconds):
                    ready = await _next_of(events, chunks)
                for event in ready:
                    if take(event):
                        seconds = min(LAST_SECONDS, self._timeout)
                if events.ended or not ready:
                    return
        finally:
            await _close(response)

    async def _models(self) -> bytes:
        with _in_time(self._quick):
            return (await self._client.get("/models", cast_to=httpx2.Response)).content

    async def _sent(self, path: str, body: dict[str, Any]) -> httpx2.Response:
        """The beginning of what comes back; the rest is still to be read."""
        stream_class = openai.AsyncStream[Any]
        got = await self._client.post(path, cast_to=httpx2.Response, body=body, stream=True, stream_cls=stream_class)
        return cast("httpx2.Response", got)  # what ``cast_to`` asks for, which outweighs the class of streams

    async def _carefully(self, work: Awaitable[_T]) -> _T:
        try:
            return await work
        except TryFailed as error:
            failure = error.failure
        except openai.APIStatusError as error:
            headers = {name.lower(): value for name, value in error.response.headers.items()}
            has_key = self._key is not None
            failure = of_status(error.status_code, error.response.text, headers, has_key=has_key, hide=self.hide)
        except (openai.OpenAIError, httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            failure = self._of_connection(error.__cause__ if isinstance(error, openai.OpenAIError) else error)
        except Exception as error:  # noqa: BLE001  # whatever a server can do to the libraries between
            failure = invalid(f"it cannot be read ({type(error).__name__})")
        raise TryFailed(failure)

    def _of_connection(self, error: BaseException | None) -> Failure:
        what = self.hide(_innermost(error))[:_SAID]
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError):
            return away(what)
        return cut(what)

    def _check_type(self, response: httpx2.Response, expected: str) -> None:
        found = self.hide(response.headers.get("content-type", "nothing")).partition(";")[0].strip()
        if found.lower() != expected:
            raise TryFailed(invalid(f"it is of the type {found[:_SAID]!r} instead of {expected}"))

    async def _leave_what_is_needed(self, request: httpx2.Request) -> None:
        for name in set(request.headers) - _SENT:
            del request.headers[name]
        request.headers["accept-encoding"] = "identity"
        if self._key is not None:
            request.headers["authorization"] = f"Bearer {self._key}"


class _Bounded(httpx2.AsyncByteStream):
    """The bytes of an answer, as long as they are not too many."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        async for chunk in self._stream:
            read += len(chunk)
            if read > MOST_BYTES:
                raise TryFailed(invalid(f"it is longer than {MOST_BYTES >> 20} MiB"))
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _bound(response: httpx2.Response) -> None:
    response.encoding = "utf-8"  # whatever it says: JSON and events have no other
    if response.headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
        raise TryFailed(invalid("it is compressed, which was not asked for"))
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = _Bounded(response.stream)


async def _next_of(events: Events, chunks: AsyncIterator[bytes]) -> list[bytes]:
    """The next events; none if there are no more."""
    while True:
        chunk = await anext(chunks, None)
        if chunk is None:
            return events.rest()
        if ready := events.add(chunk):
            return ready
        if events.ended:
            return []


async def _close(response: httpx2.Response) -> None:
    with anyio.CancelScope(shield=True):
        await response.aclose()


@contextmanager
def _in_time(seconds: float) -> Iterator[None]:
    with anyio.CancelScope() as scope, awake(seconds, scope.cancel):
        yield
    if scope.cancelled_caught:
        raise TryFailed(too_late(seconds))


def _innermost(error: BaseException | None) -> str:
    """What the system said, below all that was wrapped around it."""
    said = ""
    while error is not None:
        said = str(error) or said or type(error).__name__
        if isinstance(error, ConnectionError) and error.errno:
            said = os.strerror(error.errno)
        following = error.__cause__ or error.__context__
        if isinstance(following, BaseExceptionGroup):
            following = following.exceptions[0]
        error = following
    return " ".join(said.split())

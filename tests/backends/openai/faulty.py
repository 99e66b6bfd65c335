"""A server that speaks OpenAI's protocol on loopback, and does on command what servers do wrong.

It is written against sockets, for what it does wrong no framework would let it do. Its answers are functions of what is
asked and of the seed, so that a run that met faults can be compared with one that did not.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from asyncgen.backends.echo_story import write

__all__ = ["FAULTS", "TEMPLATE", "Faulty", "Request", "text_for"]

MODEL = "story-teller"
TEMPLATE = "Tell of {word1}, {word2} and {word3}. {additional_condition}"
_WORDS = re.compile(r"Tell of (\S+), (\S+) and (\S+)\.")

PASSING = (
    *("429", "429 after 0", "500", "503", "504", "408", "cut", "cut at once", "no json", "no list", "html", "null"),
    *("wrong type", "no finish"),
)
"""What mends itself when it is tried again, whatever it is tried for."""
FAULTS = (*PASSING, "ok", "no usage")


@dataclass
class Request:
    """What came in."""

    number: int
    """From 1, those for models not counted."""
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    tries: int
    """How often the same was asked before."""


Choose = Callable[[Request], str]


def text_for(body: dict[str, Any]) -> str:
    """The story; if another attempt asks with another seed, another one."""
    asked = json.dumps(body.get("messages", body.get("prompt")))
    found = _WORDS.search(asked)
    return write(zlib.crc32(asked.encode()) ^ int(body.get("seed", 0)), found.groups() if found else ())


@dataclass
class Faulty:
    """Runs in a thread of its own from ``with`` on; ``choose`` says what is to be done about each request."""

    choose: Choose = lambda _: "ok"
    models: bytes | int = json.dumps({"object": "list", "data": [{"id": MODEL}]}).encode()
    """What is said of the models: JSON, or a status."""
    most: int | None = None
    """Requests at once that it takes; for more it says 429."""
    seen: list[Request] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    """Answered at once, at most; those it did not take left out."""
    left: int = 0
    """Connections that were closed before their answer was there."""
    port: int = 0
    finish: str = "stop"
    release: threading.Event = field(default_factory=threading.Event)
    """Ends what hangs."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Listens, on the port that it had before if it had one."""
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(10)

    def stop(self) -> None:
        """Refuses connections, and cuts those there are."""
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen(ready))
        while left := asyncio.all_tasks(self._loop):  # with those that are still accepting a connection
            for task in self._answering:
                task.cancel()
            self._loop.run_until_complete(asyncio.wait(left))
        for transport in self._transports:  # a task that was cancelled before it began closed nothing
            transport.abort()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _listen(self, ready: threading.Event) -> None:
        self._end, self._five = asyncio.Event(), asyncio.Event()
        self._transports: set[asyncio.WriteTransport] = set()
        self._answering: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._end.wait()
        for listening in server.sockets:  # what is accepted while it closes, asyncio 3.11 leaves open
            self._loop.remove_reader(listening.fileno())
        await asyncio.sleep(0)
        server.close()
        for transport in self._transports:
            transport.abort()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._transports.add(writer.transport)
        self._answering.add(asyncio.ensure_future(self._answer_all(reader, writer)))

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answered(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    async def _answered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answers one request. Returns whether the connection stays."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = first.split(" ")
        if method == "GET":
            status, content = (self.models, b"{}") if isinstance(self.models, int) else (200, self.models)
            await _send(writer, status, content)
            return True
        parsed = json.loads(body)
        tries = sum(each.body == parsed for each in self.seen)
        request = Request(len(self.seen) + 1, path, headers, parsed, tries)
        self.seen.append(request)
        if self.most is not None and self.in_flight >= self.most:
            await _send(writer, 429, _error("slow down"))
            return True
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        watching = asyncio.ensure_future(reader.read(1))
        answering = asyncio.ensure_future(self._do(self.choose(request), request, writer))
        try:
            await asyncio.wait({watching, answering}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                return answering.result()
        except ConnectionError:  # it was left while something was written
            pass
        finally:
            self.in_flight -= 1
            watching.cancel()
            answering.cancel()
            await asyncio.gather(watching, answering, return_exceptions=True)
        self.left += 1
        return False

    async def _do(self, fault: str, request: Request, writer: asyncio.StreamWriter) -> bool:
        """What one of the names does: a status (``503``), one with a header (``429 after 3``), or what it says."""
        status, _, after = fault.partition(" after ")
        if status.isdecimal():
            key = request.headers.get("authorization", "").removeprefix("Bearer ")
            said = f"no: {key}" if key else f"no, request {request.number}" if status == "401" else "no"
            code = "insufficient_quota" if self.finish == "quota" else "none"
            await _send(writer, int(status), _error(said, code), {"retry-after": after} if after else {})
            return True
        await asyncio.sleep(0.002)
        if fault == "hang":
            await asyncio.to_thread(self.release.wait)
        if self.most_in_flight >= 5:
            self._five.set()
        if fault == "together":
            await self._five.wait()
        if request.body.get("stream"):
            return await self._stream(fault, request, writer)
        return await self._whole(fault, request, writer)

    async def _whole(self, fault: str, request: Request, writer: asyncio.StreamWriter) -> bool:
        content = json.dumps(self._answer(fault, request)).encode()
        match fault:
            case "cut at once":
                return False
            case "cut":
                await _send(writer, 200, content, length=len(content) + 99)
                return False
            case "no json":
                content = content[:-9]
            case "no list":
                content = b"[]"
            case "html":
                await _send(writer, 200, b"<html>welcome</html>", {"content-type": "text/html"})
                return True
            case "wrong type":
                await _send(writer, 200, content, {"content-type": "text/plain"})
                return True
            case "endless":
                await _send(writer, 200, b"", {"transfer-encoding": "chunked"}, length=None)
                chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
                while True:
                    writer.write(chunk)
                    await writer.drain()
        await _send(writer, 200, content)
        return True

    def _answer(self, fault: str, request: Request) -> dict[str, Any]:
        text, tokens, finish = self._said(fault, request)
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        words = re.findall(r"\s*\S+", text)
        if request.path.endswith("/chat/completions"):
            choice["message"] = {"role": "assistant", "content": None if fault == "null" else text}
            if request.body.get("logprobs") is True:
                choice["logprobs"] = {"content": [{"token": word, "logprob": -0.5, "bytes": None} for word in words]}
        else:
            choice["text"] = None if fault == "null" else text
            if request.body.get("logprobs") == 0:
                choice["logprobs"] = {"tokens": words, "token_logprobs": [-0.5] * len(words)}
        if fault == "no finish":
            choice["finish_reason"] = None
        usage = {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}
        return {"id": "x", "choices": [choice]} | ({} if fault == "no usage" else {"usage": usage})

    def _said(self, fault: str, request: Request) -> tuple[str, int, str]:
        text = text_for(request.body)
        if fault == "echo":
            text = f"{text} {request.headers.get('authorization', '')}"
        words = text.split(" ")
        most = request.body.get("max_tokens", request.body.get("max_completion_tokens", 9999))
        finish = self.finish if len(words) <= most else "length"
        finish = fault if fault in ("content_filter", "tool_calls", "eos_token", "stop_sequence") else finish
        return " ".join(words[:most]), len(words[:most]), finish

    async def _stream(self, fault: str, request: Request, writer: asyncio.StreamWriter) -> bool:
        text, tokens, finish = self._said(fault, request)
        kind = "text/html" if fault in ("html", "wrong type") else "text/event-stream; charset=utf-8"
        await _send(writer, 200, b"", {"content-type": kind, "transfer-encoding": "chunked"}, length=None)
        if fault == "cut at once":
            return False
        chat = request.path.endswith("/chat/completions")
        await _chunk(writer, b": hello\n\n")
        pieces = re.findall(r"\s*\S+", text)
        for number, piece in enumerate(pieces):
            choice: dict[str, Any] = {"delta": {"content": piece}} if chat else {"text": piece}
            await _chunk(writer, _event({"choices": [choice | {"index": 0, "finish_reason": None}]}))
            if fault == "no json":
                await _chunk(writer, b"data: {\n\n")
            if fault == "cut" and number == 3:
                return False
            if fault == "hang after a piece":
                await asyncio.to_thread(self.release.wait)
        if fault != "no finish":
            end: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
            await _chunk(writer, _event({"choices": [end | {"index": 0, "finish_reason": finish}]}))
        if fault != "no usage":
            await _chunk(writer, _event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": tokens}}))
        await _chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        return True


async def _send(
    writer: asyncio.StreamWriter,
    status: int,
    content: bytes,
    headers: dict[str, str] | None = None,
    length: int | None = -1,
) -> None:
    fields = {"content-type": "application/json"} | (headers or {})
    if length is not None:
        fields["content-length"] = str(len(content) if length < 0 else length)
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    writer.write(f"HTTP/1.1 {status} Something\r\n{lines}\r\n".encode("latin-1") + content)
    await writer.drain()


async def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    await writer.drain()


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


def _error(message: str, code: str = "none") -> bytes:
    return json.dumps({"error": {"message": message, "type": "none", "code": code}}).encode()

"""Many clients at once, each on a connection of its own, with as little between them and the socket as can be."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.server.serving import CHAT

__all__ = ["Reader", "answer_of", "ask", "opened", "whole"]

Reader = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def opened(url: str, question: dict[str, Any], *, buffer: int | None = None) -> AsyncIterator[Reader]:
    """A connection on which ``question`` was asked; ``buffer`` is how many bytes wait on this side, about."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.socket()
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=connection, limit=buffer or 2**16)
    body = json.dumps(question).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    try:
        yield reader, writer
    finally:
        writer.close()


def answer_of(raw: bytes) -> tuple[str, str]:
    """Text and finish reason of a stream; what is not whole raises."""
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), raw[:300]
    data = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        data += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
        if size == b"0":
            break
    events = data.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""], "cut off"
    text, reason = "", ""
    for event in events[:-2]:
        [choice] = json.loads(event.removeprefix("data: "))["choices"]
        text += choice["delta"].get("content", "")
        reason = choice["finish_reason"] or reason
    return text, reason


async def whole(url: str, question: dict[str, Any]) -> tuple[str, str]:
    """The same of a client that reads at once what comes."""
    async with opened(url, question) as (reader, _):
        return answer_of(await reader.read())


async def ask(url: str, question: dict[str, Any]) -> Any:
    """An answer that comes as one."""
    async with opened(url, question) as (reader, _):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    return json.loads(body)

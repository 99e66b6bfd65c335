"""Hundreds of clients at once: every answer whole, whoever else reads slowly, hangs up or asks for too much."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncgen import Completion, Engine
from asyncgen.backends.echo_story import write
from tests.server.crowd import ask, opened, whole
from tests.server.serving import CHAT, ECHO_SERVER, HELLO, SMALL_BUFFERS, Served, memory, serving

CLIENTS = 500
ROOM = ("--set", "server.max_stories=2000", "--set", "generation.max_new_tokens=200")


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pace = ("--batch-size", "100", "--set", "backend.seconds_per_batch=0.3")
    with serving(tmp_path_factory.mktemp("echo"), *ECHO_SERVER, *pace, *ROOM, before=SMALL_BUFFERS) as served:
        yield served


def question(seed: int, **asking: Any) -> dict[str, Any]:
    return {"model": "bedtime-tiny", "messages": HELLO, "seed": seed, "stream": True} | asking


async def crowd(served: Served, first: int, count: int = CLIENTS) -> None:
    """So many clients at once, each of which gets its story."""
    answers = await asyncio.gather(*(whole(served.url, question(first + number)) for number in range(count)))
    assert answers == [(write(first + number, ()), "stop") for number in range(count)]


def test_500_streaming_clients_and_the_memory_stays_flat(echo: Served) -> None:
    asyncio.run(crowd(echo, 0))
    held = [memory(echo.program)]
    for turn in range(1, 3):
        asyncio.run(crowd(echo, turn * CLIENTS))
        held.append(memory(echo.program))
    seen = echo.idle()
    assert seen['asyncgen_stories_total{finish_reason="stop"}'] == 3 * CLIENTS
    assert held[-1] - held[1] < 8 * 2**20, f"resident bytes after each turn: {held}"
    assert seen["process_open_fds"] < 50


def test_who_reads_slowly_harms_nobody(echo: Served) -> None:
    """Some ask for more than buffers hold and read nothing while others get their stories; then they read all of it."""
    many = 100

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            slow: list[bytes] = []
            go = anyio.Event()

            async def dawdle(seed: int) -> None:
                async with opened(echo.url, question(seed, n=many), buffer=4096) as (reader, _):
                    first = await reader.read(100)
                    await go.wait()
                    slow.append(first + await reader.read())

            before = await anyio.to_thread.run_sync(echo.idle)
            for seed in range(8):
                tasks.start_soon(dawdle, seed)
            await crowd(echo, 10_000, 300)
            seen = await anyio.to_thread.run_sync(echo.idle)  # the model is done with those that are not read too
            asked = f'asyncgen_http_requests_total{{path="{CHAT}",status="200"}}'
            assert seen[asked] - before[asked] == 300, "none of them is through"
            go.set()
        assert len(slow) == 8
        for raw in slow:
            texts = [""] * many
            for event in raw.partition(b"\r\n\r\n")[2].decode().split("data: ")[1:]:
                data = event.split("\n\n")[0]
                for choice in json.loads(data)["choices"] if data != "[DONE]" else ():
                    texts[choice["index"]] += choice["delta"].get("content", "")
            assert b"data: [DONE]" in raw
            assert all(text.endswith((".", "!", "?")) for text in texts)

    asyncio.run(main())


def test_who_hangs_up_frees_what_it_had(echo: Served) -> None:
    before = echo.idle()["asyncgen_cancelled_stories_total"]

    async def main() -> None:
        async def leave(seed: int) -> None:
            async with opened(echo.url, question(seed, n=3, stream=bool(seed % 2))) as (reader, writer):
                if seed % 2:
                    await reader.read(200)
                else:
                    await writer.drain()
                if not seed % 3:
                    writer.transport.abort()

        async with anyio.create_task_group() as tasks:
            for seed in range(200):
                tasks.start_soon(leave, seed)
            await crowd(echo, 20_000, 100)

    asyncio.run(main())
    after = echo.idle()
    assert after["asyncgen_cancelled_stories_total"] > before
    asyncio.run(crowd(echo, 30_000, 20))


def test_64_streaming_clients_on_the_bundled_model(tmp_path: Path) -> None:
    async def alone() -> list[Completion]:
        async with Engine(generation={"batch_size": 64}) as engine:
            answers = [engine.generate(HELLO, seed=seed, max_new_tokens=60) for seed in range(64)]
            return list(await asyncio.gather(*answers))

    async def main(served: Served) -> None:
        asked = [question(seed, max_tokens=60) for seed in range(64)]
        async with anyio.create_task_group() as tasks:

            async def leave(seed: int) -> None:
                async with opened(served.url, question(seed, n=2)) as (reader, _):
                    await reader.read(300)

            for seed in range(100, 116):
                tasks.start_soon(leave, seed)
            answers = await asyncio.gather(*(whole(served.url, each) for each in asked))
        assert answers == expected
        one = await ask(served.url, asked[5] | {"stream": False})
        assert (one["choices"][0]["message"]["content"], one["choices"][0]["finish_reason"]) == expected[5]

    expected = [(each.text, each.finish_reason) for each in asyncio.run(alone())]
    assert len({text for text, _ in expected}) == 64
    with serving(tmp_path, "--port", "0", "--batch-size", "64") as served:
        asyncio.run(main(served))
        seen = served.idle()
        assert seen["asyncgen_slots"] == 64
        assert seen["asyncgen_cancelled_stories_total"] > 0
        assert served.end() == 0

"""The service of ``examples/`` under uvicorn and many clients at once, beside ``open_pipeline`` on the same prompts.

    python -m benchmarks.serving             # 200 clients, three rounds of both, a few minutes
    python -m benchmarks.serving --write     # and keeps it in benchmarks/results/

A round is ``open_pipeline``, and on the same conversations with as many rows the service on the bundled model, once
with half of the clients reading streams and once with none, and on ``echo``, each in processes of their own. The ratios
are the service's tokens a second over the pipeline's; the clients, and a write and a read for each piece of a stream,
share the machine with the model. Clients ask one story after another and look whether each is the one that the same
seed gives alone. In the server a task of its own looks how late the event loop is, and blockbuster whether anything of
ours blocks it. At the end every client hangs up in the middle of a story, and SIGTERM ends the server.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import anyio

import asyncgen
from benchmarks.environment import ROOT, describe, save

TOKENS = 120
"""Longest story."""
ROWS = 64
STEP = 0.005
"""Seconds between two looks at the loop."""
WORDS = ("moon", "boat", "soup", "owl", "hat", "river", "bread", "star", "fox", "bell", "snow", "kite")


def wish(number: int) -> dict[str, Any]:
    """What story ``number`` is asked with."""
    words = [WORDS[(number * step) % len(WORDS)] for step in (1, 5, 7)]
    return {"words": words, "seed": number, "max_new_tokens": TOKENS}


@dataclass(frozen=True, slots=True)
class Load:
    """What the clients saw."""

    stories: int
    wrong: int
    seconds: float
    tokens: int
    hung_up: int
    """Clients that hung up in mid-story."""
    freed: int
    """Of these, requests that are over soon after, with no row left running."""
    lag_p50: float
    """Seconds that the server's loop was late, at half of the looks."""
    lag_p99: float
    lag_max: float
    blocking: list[str]
    """Calls of ours that blocked the server's loop."""
    exit_code: int

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all clients' stories a second."""
        return self.tokens / self.seconds


# ---- the server's process


def serve(port: int) -> None:
    """Uvicorn with the service, watched; its last line is a JSON object of what was seen."""
    import uvicorn
    from blockbuster import BlockBuster, BlockingError

    from examples import service

    seen: dict[str, Any] = {"late": [], "blocking": []}
    lifespan = service.app.router.lifespan_context

    @asynccontextmanager
    async def watched(app: Any) -> AsyncIterator[Any]:
        async with anyio.create_task_group() as tasks, lifespan(app) as state:
            tasks.start_soon(partial(look, seen["late"]))
            yield state
            tasks.cancel_scope.cancel()

    async def look(late: list[float]) -> None:
        while True:
            began = monotonic()
            await anyio.sleep(STEP)
            late.append(monotonic() - began - STEP)

    service.app.router.lifespan_context = watched
    detector = BlockBuster(["asyncgen", "examples"])
    detector.activate()
    # Connections are kept: one that the server closes at the moment in which a client uses it again is an error.
    config = uvicorn.Config(service.app, port=port, log_level="error", backlog=2048, timeout_keep_alive=600)
    server = uvicorn.Server(config)
    signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]  # of older ones
    try:
        server.run()
    except BlockingError as error:
        seen["blocking"].append(str(error))
    late = sorted(seen["late"]) or [0.0]
    print(
        json.dumps(
            {
                "lag_p50": late[len(late) // 2],
                "lag_p99": late[int(len(late) * 0.99)],
                "lag_max": late[-1],
                "blocking": seen["blocking"],
            }
        )
    )


@contextmanager
def server(model: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The server in a process of its own, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serving", "--serve", str(port)],
        cwd=ROOT,
        env=os.environ | {"MODEL": model, "ROWS": str(ROWS)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield f"http://127.0.0.1:{port}", program
    finally:
        if program.poll() is None:
            program.kill()
        program.wait()


# ---- the clients


async def load(address: str, clients: int, each: int, expected: list[str], streams: bool) -> dict[str, Any]:
    """Every client asks ``each`` stories, half of them by streams if there are to be any; then each hangs up in the
    middle of one.
    """
    import httpx2 as httpx

    wrong = 0
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits, trust_env=False) as client:
        await until_it_serves(client)
        before = (await client.get("/state")).json()

        async def ask(who: int) -> None:
            nonlocal wrong
            for number in range(who * each, (who + 1) * each):
                if who % 2 or not streams:
                    text = (await client.post("/story", json=wish(number))).text
                else:
                    async with client.stream("POST", "/story/stream", json=wish(number)) as answer:
                        text = "".join([piece async for piece in answer.aiter_text()])
                wrong += text != expected[number]

        async def hang_up(who: int) -> None:
            long = wish(who) | {"max_new_tokens": 400, "seed": 10_000 + who}
            async with client.stream("POST", "/story/stream", json=long) as answer:
                async for _ in answer.aiter_text():
                    return

        began = monotonic()
        await all_at_once(ask, clients)
        seconds = monotonic() - began
        after = (await client.get("/state")).json()
        await all_at_once(hang_up, clients)
        with anyio.fail_after(60):
            while (last := (await client.get("/state")).json())["requests"] or last["rows_running"]:  # noqa: ASYNC110  # of another process
                await anyio.sleep(0.05)
    return {
        "stories": clients * each,
        "wrong": wrong,
        "seconds": seconds,
        "tokens": after["tokens"] - before["tokens"],
        "hung_up": clients,
        "freed": last["cancelled"] + last["finished"] - after["finished"] - after["cancelled"],
    }


async def all_at_once(function: Any, count: int) -> None:
    """Calls ``function`` with 0, 1 ... at the same time."""
    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(function, number)


async def until_it_serves(client: Any) -> None:
    """Waits until the server answers."""
    import httpx2 as httpx

    with anyio.fail_after(120):
        while True:
            try:
                await client.get("/state")
            except httpx.ConnectError:
                await anyio.sleep(0.1)
            else:
                return


def measure(model: str, clients: int, each: int, expected: list[str], *, streams: bool = True) -> Load:
    """One server and its clients."""
    with server(model) as (address, program):
        seen = anyio.run(load, address, clients, each, expected, streams)
        program.send_signal(signal.SIGTERM)
        told = json.loads((program.communicate(timeout=60)[0] or "{}").splitlines()[-1])
    return Load(**seen, **told, exit_code=program.returncode)


# ---- what it is compared with


async def alone(model: str, count: int) -> list[str]:
    """What each story is, asked without a server."""
    from examples.service import Wish, asking, conversation

    settings: dict[str, Any] = {"backend": {"kind": "echo"}} if model == "echo" else {}
    async with asyncgen.Engine(model, generation={"batch_size": ROWS}, **settings) as engine:
        wishes = [Wish(**wish(number)) for number in range(count)]
        texts = [""] * count

        async def ask(number: int) -> None:
            chosen = wishes[number]
            texts[number] = (await engine.generate(conversation(chosen), **asking(chosen))).text

        await all_at_once(ask, count)
        return texts


def pipeline(count: int) -> None:
    """``open_pipeline`` on the same conversations; prints tokens a second."""
    from examples.service import Wish, conversation

    async def main() -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "prompts.jsonl"
            lines = [json.dumps({"messages": conversation(Wish(**wish(number)))}) for number in range(count)]
            path.write_text("\n".join(lines) + "\n")
            config = asyncgen.Config.model_validate(
                {
                    "num_stories": count,
                    "sources": [{"kind": "jsonl", "path": str(path)}],
                    "generation": {"batch_size": ROWS, "max_new_tokens": TOKENS},
                    "validation": {"enabled": False},
                }
            )
            async with asyncgen.open_pipeline(config) as stories:
                async for _ in stories:
                    pass
                print(json.dumps({"tokens_per_second": stories.snapshot().tokens_per_second}))

    anyio.run(main)


def measured_pipeline(count: int) -> float:
    """Tokens a second of ``open_pipeline`` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.serving", "--pipeline", str(count)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["tokens_per_second"])


def main() -> None:
    """Measures, and says what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--each", type=int, default=2, help="stories of each client")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="keep the results in benchmarks/results/")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--pipeline", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve)
    if options.pipeline:
        return pipeline(options.pipeline)
    count = options.clients * options.each
    workload = f"{options.clients} clients, {options.each} stories each, at most {TOKENS} tokens, {ROWS} rows"
    environment = describe(workload)
    print(json.dumps(environment, indent=2))
    expected = {model: anyio.run(alone, model, count) for model in ("bedtime-tiny", "echo")}
    rounds = []
    for number in range(options.rounds):
        tokens = measured_pipeline(count)
        ask = partial(measure, clients=options.clients, each=options.each)
        plain = ask("bedtime-tiny", expected=expected["bedtime-tiny"], streams=False)
        served = ask("bedtime-tiny", expected=expected["bedtime-tiny"])
        echo = ask("echo", expected=expected["echo"])
        ratios = {"ratio": served.tokens_per_second / tokens, "ratio without streams": plain.tokens_per_second / tokens}
        rounds.append(ratios | {"pipeline": tokens, "service": served, "without streams": plain, "echo": echo})
        print(
            f"round {number + 1}: {ratios['ratio']:.2f} of open_pipeline's {tokens:.0f} tokens/s, "
            f"{ratios['ratio without streams']:.2f} without streams"
        )
        for name, each in (("bedtime-tiny", served), ("without streams", plain), ("echo", echo)):
            print(
                f"  {name}: {each.stories} stories, {each.wrong} wrong, {each.stories / each.seconds:.1f} stories/s, "
                f"{each.tokens_per_second:.0f} tokens/s; loop late {each.lag_p50 * 1000:.1f} ms (p50), "
                f"{each.lag_p99 * 1000:.1f} ms (p99), {each.lag_max * 1000:.0f} ms (max); "
                f"blocking {each.blocking or 0}; {each.freed} of {each.hung_up} who hung up freed; "
                f"exit code {each.exit_code}"
            )
    median = {
        name: statistics.median(float(each[name]) for each in rounds)  # type: ignore[arg-type]  # they are numbers
        for name in ("ratio", "ratio without streams")
    }
    print(f"medians: {median['ratio']:.2f}, without streams {median['ratio without streams']:.2f}")
    if options.write:
        found = [
            {name: value if isinstance(value, float) else _plain(value) for name, value in each.items()}
            for each in rounds
        ]
        print(f"kept in {save('serving', environment, {'medians': median, 'rounds': found})}")
    return None


def _plain(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


if __name__ == "__main__":
    main()

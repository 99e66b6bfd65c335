"""``Engine.blocking``: for scripts, and for threads beside the engine's event loop; on an event loop it refuses."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from asyncgen.errors import BackendFailed, EngineClosed, PromptTooLong
from tests.engine.opened import HELLO, LONG, before_each_pass, engine_for, is_idle, question
from tests.programs import environment

pytestmark = pytest.mark.usefixtures("no_thread_of_ours_is_left")


def test_a_script_needs_no_event_loop(llama: Path) -> None:
    with engine_for(llama).blocking() as engine:
        whole = engine.generate(HELLO, seed=1)
        stream = engine.stream(HELLO, seed=1)
        assert "".join(stream) == whole.text == stream.completion.text
        assert [each.prompt.index for each in engine.map([question(n) for n in range(9)])] == list(range(9))
        with engine.map(question(n) for n in range(10**6)) as answers:
            assert next(iter(answers)).tokens
        with engine.stream(HELLO, seed=LONG, max_new_tokens=450) as stream:
            assert next(stream)
        with pytest.raises(PromptTooLong):
            engine.generate(HELLO, max_new_tokens=5000)
        with pytest.raises(TypeError, match="did you mean 'seed'"):
            engine.stream(HELLO, sed=1)  # type: ignore[call-arg]  # that is the point
        assert engine.snapshot().finished >= 11
    with pytest.raises(EngineClosed):
        engine.generate(HELLO)


def test_threads_share_an_engine_of_a_loop(llama: Path) -> None:
    async def main() -> None:
        async with engine_for(llama) as engine:
            blocking = engine.blocking()
            alone = [(await engine.generate(question(n), seed=n)).text for n in range(12)]

            def work() -> list[str]:
                with ThreadPoolExecutor(6) as pool:
                    return list(pool.map(lambda n: blocking.generate(question(n), seed=n).text, range(12)))

            assert await asyncio.to_thread(work) == alone
            await is_idle(engine)

    asyncio.run(main())


def test_on_an_event_loop_it_refuses_and_says_what_to_do(llama: Path) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"would block it; use `async with Engine\(...\) as engine`"):
            engine_for(llama).blocking().__enter__()
        async with engine_for(llama) as engine:
            blocking = engine.blocking()
            with pytest.raises(RuntimeError, match=r"use `await engine.generate\(...\)`"):
                blocking.generate(HELLO)
            with pytest.raises(RuntimeError, match=r"use `engine.stream\(...\)`"):
                blocking.stream(HELLO)
            with pytest.raises(RuntimeError, match=r"use `engine.map\(...\)`"):
                blocking.map(["x"])

    asyncio.run(main())


def test_a_thread_that_waits_is_told_when_the_engine_closes(llama: Path) -> None:
    errors: list[BaseException] = []

    async def main() -> None:
        engine = await engine_for(llama, rows=1).start()
        blocking = engine.blocking()

        def work() -> None:
            try:
                blocking.generate(HELLO, seed=LONG, max_new_tokens=450)
            except EngineClosed as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        while engine.snapshot().requests < 3:  # noqa: ASYNC110  # asked in other threads
            await asyncio.sleep(0.001)
        await engine.aclose(drain=False)
        for thread in threads:
            await asyncio.to_thread(thread.join)

    asyncio.run(main())
    assert len(errors) == 3


PROGRAM = """
import sys
from asyncgen import Engine
settings = {"backend": {"kind": "slots", "device": "cpu"}, "generation": {"batch_size": 1, "max_new_tokens": 9}}
with Engine(sys.argv[1], **settings).blocking() as engine:
    print("open", flush=True)
    try:
        while True:
            engine.generate("x" * 9, seed=1, max_new_tokens=490, temperature=0.0, repetition_penalty=3.0)
    except KeyboardInterrupt:
        while engine.snapshot().requests:
            pass
        print("interrupted, and", engine.generate("once more", seed=1, max_new_tokens=3).finish_reason, flush=True)
"""


def test_interrupted_it_frees_the_row_and_may_be_used_again(llama: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(llama)], env=environment(), stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "open\n"
        time.sleep(0.1)
        os.kill(program.pid, signal.SIGINT)
        said = program.stdout.read()
    assert program.returncode == 0
    assert said in ("interrupted, and length\n", "interrupted, and stop\n")


def test_when_the_model_fails_whoever_blocks_is_told_why(llama: Path) -> None:
    def fails() -> None:
        raise OSError("cable out")

    with engine_for(llama).blocking() as blocking:
        before_each_pass(blocking._engine, fails)
        with pytest.raises(BackendFailed, match="cable out"), blocking.stream(HELLO) as stream:
            next(stream)
        with pytest.raises(BackendFailed, match="cable out"):
            blocking.generate(HELLO)

"""One engine under requests and runs at once, and several engines in one process."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

import asyncgen
from asyncgen import Engine
from asyncgen.config import Config
from asyncgen.engine import TextStream
from asyncgen.errors import BackendFailed, ConfigError, EngineClosed
from tests.backends.helpers import make_model
from tests.embedded import config_for
from tests.engine.opened import HELLO, LONG, before_each_pass, engine_for, is_idle, nothing_left, question
from tests.programs import records

pytestmark = pytest.mark.usefixtures("no_thread_of_ours_is_left")

KINDS = ("slots", "static", "echo")


def run_config(model: Path, folder: Path, kind: str, **changes: Any) -> Config:
    backend = {"kind": "echo"} if kind == "echo" else {"kind": kind, "device": "cpu"}
    generation = {"batch_size": 4, "max_new_tokens": 24, "temperature": 0.9}
    return config_for(model, folder, backend=backend, generation=generation | changes.pop("generation", {}), **changes)


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Room for the template of a run."""
    return make_model(tmp_path_factory.mktemp("roomy"), "llama", context=2048)


def test_a_run_does_not_count_what_others_had_made_before_it_came(tmp_path: Path) -> None:
    """Its pace, its time left and its manifest would be of another world."""

    async def main() -> None:
        engine = engine_for("", kind="echo", rows=8, backend={"seconds_per_batch": 0.05})
        async with engine:
            async for _ in engine.map([f"question {number}" for number in range(80)]):
                pass
            before = engine.snapshot()
            assert before.generated > 0
            backend = engine.config.backend.model_dump()
            config = config_for(Path("bedtime-tiny"), tmp_path, num_stories=20, backend=backend)
            async with asyncgen.open_pipeline(config, engine=engine) as stories:
                assert len([story async for story in stories]) == 20
                seen = stories.snapshot()
            assert 0 < seen.busy_seconds <= seen.seconds + 0.1
            assert seen.generated == engine.snapshot().generated - before.generated
            assert seen.batches == engine.snapshot().batches - before.batches

    anyio.run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_runs_and_requests_on_one_engine_are_as_each_alone(roomy: Path, tmp_path: Path, kind: str) -> None:
    configs = [
        run_config(
            roomy, tmp_path, kind, seed=seed, generation={"temperature": 0.5 + seed, "stop": ["e"] if seed else []}
        )
        for seed in range(2)
    ]

    async def stories(config: Config, engine: Engine | None = None) -> list[str]:
        async with asyncgen.open_pipeline(config, engine=engine) as made:
            return [story.content async for story in made]

    async def main() -> None:
        expected = [await stories(config) for config in configs]
        found: dict[int, list[str]] = {}
        answers: list[str] = []

        async def run(number: int, engine: Engine) -> None:
            found[number] = await stories(configs[number], engine)

        async with nothing_left(Engine(configs[0])) as engine:
            alone = (await engine.generate(HELLO, seed=4)).text
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run, 0, engine)
                tasks.start_soon(run, 1, engine)
                answers += [(await engine.generate(HELLO, seed=4)).text for _ in range(12)]
            report = await asyncgen.run(configs[1], engine=engine)
        assert [found[0], found[1]] == expected
        assert set(answers) == {alone}
        assert report.complete
        assert [record["content"] for record in records(tmp_path / "stories.jsonl")] == expected[1]

    anyio.run(main)


def test_requests_go_before_a_run(roomy: Path, tmp_path: Path) -> None:
    """A run that has always something waiting does not keep a request from the next free row."""

    async def main() -> None:
        config = run_config(roomy, tmp_path, "slots", num_stories=None, generation={"batch_size": 2})
        async with Engine(config) as engine, asyncgen.open_pipeline(config, engine=engine) as stories:
            assert await anext(aiter(stories))
            for number in range(10):
                before = engine.snapshot().rows_filled
                await engine.generate(question(number), max_new_tokens=2)
                assert engine.snapshot().rows_filled - before <= 6, "it waited for the run"

    anyio.run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_left_gives_its_rows_back(roomy: Path, tmp_path: Path, kind: str) -> None:
    async def main() -> None:
        config = run_config(roomy, tmp_path, kind, num_stories=None)
        async with nothing_left(Engine(config)) as engine:
            for _ in range(3):
                async with asyncgen.open_pipeline(config, engine=engine) as stories:
                    async for _story in stories:
                        break
                await is_idle(engine)
                assert (await engine.generate(HELLO)).finish_reason in ("stop", "length")
            assert engine._core is not None
            assert not engine._core.desk._lanes

    anyio.run(main)


def test_another_model_than_the_runs_is_refused(roomy: Path, llama: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with engine_for(llama) as engine:
            with pytest.raises(ConfigError, match=r"model_name: found .* the engine that is given has"):
                async with asyncgen.open_pipeline(run_config(roomy, tmp_path, "slots"), engine=engine):
                    pass
            with pytest.raises(ConfigError, match="backend: found"):
                await asyncgen.run(run_config(llama, tmp_path, "static"), engine=engine)
        with pytest.raises(EngineClosed):
            await asyncgen.run(run_config(llama, tmp_path, "slots"), engine=engine)
        assert not (tmp_path / "stories.jsonl").exists() or not records(tmp_path / "stories.jsonl")

    anyio.run(main)


def test_two_engines_share_no_state(llama: Path, gpt2: Path) -> None:
    async def main() -> None:
        async def all_of(engine: Engine) -> list[str]:
            return [each.text async for each in engine.map([question(n) for n in range(12)], seed=3)]

        alone = []
        for model in (llama, gpt2):
            async with engine_for(model) as engine:
                alone.append(await all_of(engine))
        both: dict[int, list[str]] = {}

        async def collect(place: int, engine: Engine) -> None:
            both[place] = await all_of(engine)

        async with engine_for(llama) as one, engine_for(gpt2) as other:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(collect, 0, one)
                tasks.start_soon(collect, 1, other)
            assert [both[0], both[1]] == alone
            assert (one.snapshot().finished, other.snapshot().finished) == (12, 12)
            await one.aclose()
            assert await all_of(other) == alone[1], "the other goes on"

    anyio.run(main)


def test_engines_of_two_event_loops_in_two_threads(llama: Path) -> None:
    found: list[list[str]] = []

    async def main() -> None:
        async with engine_for(llama) as engine:
            found.append([each.text async for each in engine.map([question(n) for n in range(8)], seed=3)])

    threads = [threading.Thread(target=anyio.run, args=(main,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 2
    assert found[0] == found[1]


def test_a_call_from_another_loop_says_what_to_do(llama: Path) -> None:
    engine = engine_for(llama)

    async def elsewhere(stream: TextStream) -> None:
        for call in (engine.generate(HELLO), anext(stream), engine.aclose()):
            with pytest.raises(RuntimeError, match=r"another event loop; call `engine.blocking\(\)`"):
                await call

    async def main() -> None:
        async with engine:
            await anyio.to_thread.run_sync(anyio.run, elsewhere, engine.stream(HELLO))
            assert (await engine.generate(HELLO)).finish_reason in ("stop", "length")

    anyio.run(main)


def test_one_configuration_with_a_relative_model_serves_engine_and_run(
    roomy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(roomy.parent)
    config = run_config(Path(f"./{roomy.name}"), tmp_path, "slots", num_stories=2)

    async def main() -> None:
        async with Engine(config) as engine:
            assert (await asyncgen.run(config, engine=engine)).complete
            absolute = run_config(roomy, tmp_path / "other", "slots", num_stories=2)
            assert (await asyncgen.run(absolute, engine=engine)).complete

    anyio.run(main)


@pytest.mark.parametrize("what", ["run", "pipeline"])
def test_a_run_whose_engine_is_closed_gets_one_plain_error(what: str, tmp_path: Path) -> None:
    """Whether it finds out while it prepares prompts, while it waits for completions, or both."""

    async def once(turns: int) -> None:
        config = run_config(tmp_path, tmp_path / f"{turns}", "echo", num_stories=100_000)
        engine = await Engine(config).start()

        async def use() -> None:
            if what == "run":
                await asyncgen.run(config, engine=engine)
            else:
                async with asyncgen.open_pipeline(config, engine=engine) as stories:
                    async for _ in stories:
                        pass

        task = asyncio.create_task(use())
        await asyncio.sleep(0.01 + turns / 500)
        await engine.aclose(drain=False)
        with pytest.raises(EngineClosed):
            await task

    for turns in range(12):
        asyncio.run(once(turns))


@pytest.mark.parametrize("after", [0, 5])
def test_a_model_that_fails_tells_everybody_why(roomy: Path, tmp_path: Path, after: int) -> None:
    calls = 0

    def fails() -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise IndexError("index out of range in self")

    errors: list[Exception] = []

    async def caught(function: Any) -> None:
        with pytest.raises(BackendFailed, match="the model failed: IndexError: index out of range") as error:
            await function()
        errors.append(error.value)

    async def main() -> None:
        config = run_config(roomy, tmp_path, "slots")
        async with Engine(config, max_requests=6) as engine:
            before_each_pass(engine, fails)

            async def ask() -> None:
                await engine.generate(HELLO, seed=LONG)

            async def read() -> None:
                async for _ in engine.stream(HELLO, seed=LONG):
                    pass

            async def read_all() -> None:
                async for _ in engine.map([HELLO] * 50, ahead=2):
                    pass

            async def run() -> None:
                await asyncgen.run(config, engine=engine)

            with anyio.fail_after(30):
                async with anyio.create_task_group() as tasks:
                    for function in (*[ask] * 10, read, read_all, run):
                        tasks.start_soon(caught, function)
                await caught(ask)  # and whoever comes later
            assert engine.snapshot().requests == 0
        assert len(set(map(id, errors))) == len(errors) == 14, "an error of one's own each"
        assert all(isinstance(error.__cause__, IndexError) for error in errors)

    anyio.run(main)

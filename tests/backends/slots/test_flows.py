"""The slots backend in the whole flow: the same records whatever runs beside them, and nobody who is slow stalls it."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
import torch

from asyncgen.backends import open_backend
from asyncgen.backends.slots.backend import Slots
from asyncgen.config import Config
from asyncgen.packing import PromptPool, Window
from asyncgen.pipeline import Flow
from asyncgen.prompts import open_source
from asyncgen.records import Completion, Message, Prompt, Story
from asyncgen.resources import bundled_model
from asyncgen.stream import open_pipeline
from asyncgen.validators import open_validators
from tests.backends.helpers import config_for, make_model
from tests.programs import asyncgen, records, start
from tests.programs import environment as _environment
from tests.trials import Trials

pytestmark = pytest.mark.usefixtures("no_thread_of_ours_is_left")

bundled = pytest.mark.skipif(
    not (bundled_model() / "model.safetensors").exists(), reason="the bundled model is not trained yet"
)


LENIENT = {
    "min_words": 0, "max_words": 10_000, "min_quality": 0, "require_words": False, "require_ending": False,
    "reject_repeats": False,
}  # fmt: skip


def stories(rows: int, **changes: Any) -> Config:
    settings: dict[str, Any] = {
        "backend": {"kind": "slots", "device": "cpu"},
        "generation": {"batch_size": rows, "max_new_tokens": 48, "top_p": 0.95},
        "validation": {"enabled": False},
        "num_stories": 14,
    }
    return Config.model_validate(settings | changes)


def written(story: Story) -> tuple[object, ...]:
    return story.index, story.content, story.metadata


@bundled
@pytest.mark.anyio
async def test_stories_are_the_same_at_any_number_of_slots_and_resumed() -> None:
    found = {}
    for rows in (4, 5, 32):
        async with open_pipeline(stories(rows)) as stream:
            found[rows] = [written(story) async for story in stream]
    assert len(found[4]) == 14
    assert found[4] == found[5] == found[32]
    kept = [str(content) for _, content, _ in found[4][:5]]
    async with open_pipeline(stories(7), start=5, kept=kept) as stream:
        assert [written(story) async for story in stream] == found[4][5:]


@bundled
@pytest.mark.anyio
async def test_examples_that_change_with_every_prompt_change_no_text() -> None:
    found = []
    for rows in (4, 16):
        config = stories(rows, k_shot_count=1, k_shot_rotate=1)
        async with open_pipeline(config) as stream:
            found.append([written(story) async for story in stream])
    assert found[0] == found[1]


@bundled
@pytest.mark.timeout(300)
def test_a_run_that_is_killed_is_resumed_to_the_same_records(tmp_path: Path) -> None:
    options = ("backend.kind=slots", "validation.enabled=false", "generation.max_new_tokens=60", "window=16")
    arguments = (
        *(part for option in options for part in ("--set", option)),
        "--num-stories",
        "18",
        "--batch-size",
        "5",
    )
    whole = asyncgen("run", *arguments, "--output-path", "whole.jsonl", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    killed = tmp_path / "killed.jsonl"
    run = start("run", *arguments, "--output-path", "killed.jsonl", cwd=tmp_path)
    while run.poll() is None and not (killed.exists() and killed.stat().st_size):
        anyio.run(anyio.sleep, 0.01)
    run.kill()
    run.communicate(timeout=60)
    assert 0 < len(killed.read_bytes().splitlines()) < 18
    # Resumed with other slots and one thread: speed may change, records may not.
    again = asyncgen(
        "run", *arguments, "--batch-size", "9", "--output-path", "killed.jsonl",
        cwd=tmp_path, env=_environment(OMP_NUM_THREADS="1"),
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    for name in ("{}.jsonl", "{}.rejected.jsonl"):
        assert records(tmp_path / name.format("killed")) == records(tmp_path / name.format("whole"))


def test_judging_that_waits_stalls_no_row(tmp_path: Path) -> None:
    """Until the window is full: nothing is judged before everything that fits into it is generated."""
    (tmp_path / "checks.py").write_text(
        "import anyio\ngo = anyio.Event()\n\nasync def check(completion):\n    await go.wait()\n"
    )
    model = make_model(tmp_path / "model", tie_word_embeddings=False)
    config = config_for(model, backend={"kind": "slots"}, batch_size=4, max_new_tokens=8, temperature=1.0).model_copy(
        update={"num_stories": 60, "window": 24, "use_k_shot": False, "max_attempts": 1}
    )
    config = Config.model_validate(
        config.model_dump() | {"validation": LENIENT | {"functions": [{"function": f"{tmp_path}/checks.py:check"}]}}
    )

    async def main() -> None:
        found: list[object] = []

        async def sink(group: Any) -> None:
            await anyio.lowlevel.checkpoint()
            found.extend(group)

        async with open_source(config) as source, open_backend(config) as backend:
            flow = Flow(config, source, backend, open_validators(config))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(flow.run, sink)
                with anyio.fail_after(60):
                    while flow.backend.snapshot().rows_filled < 24 or flow.backend.snapshot().rows_running:  # noqa: ASYNC110  # another thread's
                        await anyio.sleep(0.001)
                await anyio.sleep(0.05)
                assert flow.backend.snapshot().rows_filled == 24
                assert not found
                tasks.cancel_scope.cancel()

    anyio.run(main)


@pytest.mark.timeout(600)
def test_memory_is_constant_through_thousands_of_generations(tmp_path: Path, trials: Trials) -> None:
    """The first three tenths are for what is set up only once; in the rest nothing may come to stay."""
    each_turn = trials(200, 1000)
    model = make_model(tmp_path, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_key_value_heads=1)
    config = config_for(model, backend={"kind": "slots"}, batch_size=64, max_new_tokens=2, temperature=1.0)
    process = psutil.Process()

    async def main() -> None:
        async with open_backend(config) as backend:
            assert isinstance(backend, Slots)
            examples = [
                [Message(role="user", content=f"example {i}"), Message(role="assistant", content="yes")]
                for i in range(5)
            ]
            prompts = []
            for i in range(70):
                messages = (*examples[i % 5], Message(role="user", content="x" * (i % 13)))
                prompts.append(Prompt(i, messages, max_new_tokens=1 + i % 2, prepared=backend.prepare(messages, 2, 2)))
            pool = PromptPool(Window(20_000, goal=None))
            send, receive = anyio.create_memory_object_stream[tuple[Completion, ...]](20_000)
            sizes: list[tuple[int, int]] = []
            with send, receive:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(backend.run, pool, send)
                    for turn in range(10):
                        pool.put(
                            Prompt(each_turn * turn + i, each.messages, i, each.max_new_tokens, prepared=each.prepared)
                            for i in range(each_turn)
                            for each in (prompts[i % 70],)
                        )
                        count = 0
                        with anyio.fail_after(60):
                            while count < each_turn:
                                count += len(await receive.receive())
                        gc.collect()
                        # By type: to ask for an object's class wakes those that warn.
                        tensors = sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())
                        sizes.append((tensors, process.memory_info().rss))
                        assert backend._exchange is not None
                        assert not backend._exchange._held
                        assert not backend._exchange._given
                    pool.close()
            counts = [tensors for tensors, _ in sizes[2:]]
            assert max(counts) - min(counts) < 0.03 * each_turn, counts
            assert sizes[-1][1] - sizes[2][1] < 2e6 + 18e3 * each_turn, sizes
            assert backend.snapshot().rows_filled == 10 * each_turn

    anyio.run(main)

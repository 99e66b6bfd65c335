"""The echo backend: its texts pass the default validators, repeat when told to, and depend on the prompt alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from time import perf_counter
from types import MappingProxyType
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncgen import seeds
from asyncgen.backends import open_backend
from asyncgen.backends.echo_story import write
from asyncgen.config import Config, Validation
from asyncgen.packing import PromptPool, Window
from asyncgen.records import Completion, Prompt
from asyncgen.resources import data_file
from asyncgen.validators import Judge
from tests.backends.helpers import complete

WORDS = {"word1": "moon", "word2": "dance", "word3": "happy"}


def echo(backend: Mapping[str, Any] = MappingProxyType({}), **generation: Any) -> Config:
    return Config.model_validate({"backend": {"kind": "echo"} | dict(backend), "generation": generation})


def prompt(index: int, *, run_seed: int = 0, attempt: int = 1, **options: Any) -> Prompt:
    given = {"selected_words": WORDS} | options
    return Prompt(index, (), seed=seeds.sampling_seed(run_seed, index, attempt), attempt=attempt, **given)


def run(config: Config, prompts: Sequence[Prompt]) -> list[Completion]:
    async def main() -> list[Completion]:
        async with open_backend(config) as backend:
            return await complete(backend, prompts)

    return anyio.run(main)


def vocabulary() -> list[str]:
    lines = data_file("vocabulary.txt").read_text(encoding="utf-8").split()
    assert len(lines) > 100
    return lines


def test_its_texts_pass_the_default_validators() -> None:
    words = vocabulary()
    shots = tuple(
        message["content"]
        for message in json.loads(data_file("example_conversation.txt").read_text(encoding="utf-8"))
        if message["role"] == "assistant"
    )
    prompts = [
        prompt(i, selected_words={f"word{k + 1}": words[(3 * i + k) % len(words)] for k in range(3)}, shots=shots)
        for i in range(600)
    ]
    for completion in run(echo(), prompts):
        verdict = Judge(Validation())(completion)
        assert verdict.accepted, (verdict.reasons, completion.text)
        assert 60 <= verdict.word_count <= 140
        assert completion.finish_reason == "stop"


@given(st.integers(0, 2**63 - 1), st.lists(st.sampled_from(["moon", "sun", "cat", "dog"]), max_size=3, unique=True))
def test_the_text_is_a_function_of_seed_and_words(seed: int, words: list[str]) -> None:
    text = write(seed, words)
    assert text == write(seed, words)
    assert 60 <= len(text.split()) <= 140
    assert all(f'"{word}"' in text for word in words)


def test_further_words_share_a_sentence() -> None:
    assert "They also remembered owl and bee." in write(1, ["a", "b", "c", "owl", "bee"])


@pytest.mark.parametrize("words", [{}, WORDS])
def test_texts_of_different_indices_differ(words: dict[str, str]) -> None:
    texts = [c.text for c in run(echo(), [prompt(i, selected_words=words) for i in range(2000)])]
    assert len(set(texts)) == len(texts)
    assert len({write(seed, ()) for seed in range(2000)}) == 2000, "neighbouring seeds too"


def test_another_attempt_is_another_text() -> None:
    [first], [second] = run(echo(), [prompt(3)]), run(echo(), [prompt(3, attempt=2)])
    assert first.text != second.text


def test_neither_order_nor_batch_size_matter() -> None:
    prompts = [prompt(i) for i in range(50)]
    expected = [c.text for c in run(echo(batch_size=1), prompts)]
    assert [c.text for c in run(echo(batch_size=16), prompts[::-1])] == expected


def test_distinct_texts_repeat() -> None:
    texts = {c.text for c in run(echo({"distinct": 7}), [prompt(i, selected_words={}) for i in range(300)])}
    assert len(texts) == 7


def test_a_share_of_the_texts_is_too_short() -> None:
    found = run(echo({"bad_share": 0.25}), [prompt(i) for i in range(2000)])
    judge = Judge(Validation())
    bad = [c for c in found if not judge(c).accepted]
    assert 420 < len(bad) < 580
    assert all(reason.startswith("too short") for c in bad for reason in judge(c).reasons[:1])
    again = run(echo({"bad_share": 0.25}), [prompt(c.prompt.index, attempt=2) for c in bad])
    assert sum(judge(c).accepted for c in again) > len(bad) / 2, "drawn anew for each attempt"
    assert len(run(echo({"bad_share": 1.0}), [prompt(0)])[0].text.split()) < 30


def test_limits_of_tokens_and_stop_strings_hold() -> None:
    [cut] = run(echo(), [prompt(1, max_new_tokens=20)])
    assert (len(cut.text.split()), cut.tokens, cut.finish_reason) == (20, 20, "length")
    [stopped] = run(echo(stop=["child"]), [prompt(1)])
    assert stopped.finish_reason == "stop"
    assert "child" not in stopped.text


def test_words_are_counted_as_tokens() -> None:
    async def main() -> None:
        async with open_backend(echo({"context_length": 10})) as backend:
            assert backend.limits.rows == 8
            assert backend.prepare([{"role": "user", "content": "one two\nthree"}], 7).length == 3
        async with open_backend(echo(batch_size="auto")) as backend:
            assert backend.limits.rows == 32

    anyio.run(main)


def test_a_batch_takes_as_long_as_told_and_can_be_cancelled() -> None:
    async def main() -> None:
        async with open_backend(echo({"seconds_per_batch": 0.05}, batch_size=2)) as backend:
            began = perf_counter()
            found = await complete(backend, [prompt(i) for i in range(4)])
            assert perf_counter() - began >= 0.1
            assert all(c.seconds >= 0.05 for c in found)
            after = backend.snapshot()
            assert after.busy_seconds >= 0.1
            assert after.generated == sum(c.tokens for c in found)
            assert (after.rows_filled, after.rows_offered, after.batches) == (4, 4, 2)
        async with open_backend(echo({"seconds_per_batch": 60})) as backend:
            with anyio.move_on_after(0.05):
                await complete(backend, [prompt(0)])
            assert backend.snapshot().rows_running == 0

    anyio.run(main)


def test_it_yields_to_the_loop_between_batches() -> None:
    async def main() -> None:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await anyio.lowlevel.checkpoint()
                turns += 1

        async with open_backend(echo(batch_size=1)) as backend, anyio.create_task_group() as tasks:
            tasks.start_soon(count)
            await complete(backend, [prompt(i) for i in range(200)])
            assert turns >= 200
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_when_nobody_receives_any_more_it_ends_without_an_error() -> None:
    async def main() -> None:
        async with open_backend(echo()) as backend:
            window = Window(1, goal=None)
            pool = PromptPool(window)
            window.plan(1)
            pool.put([prompt(0)])
            window.end()
            send, receive = anyio.create_memory_object_stream[tuple[Completion, ...]](1)
            receive.close()
            with send, anyio.fail_after(5):
                await backend.run(pool, send)

    anyio.run(main)

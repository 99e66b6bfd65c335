"""``Engine.generate``: what a backend makes of a prompt alone, for whoever asks, with every kind of backend."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import asyncgen
from asyncgen import Engine
from asyncgen.backends import open_backend
from asyncgen.errors import CompletionFailed, ConfigError, EngineClosed, EngineFull, PromptRefused, PromptTooLong
from asyncgen.records import Completion, Prompt, Sampling
from tests.backends.helpers import SPECIALS, complete, config_for, make_model
from tests.engine.opened import HELLO, LONG, engine_for, is_idle, nothing_left, question

pytestmark = pytest.mark.usefixtures("no_thread_of_ours_is_left")

KINDS = ("slots", "static", "echo")
SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 1.3, "top_k": 7},
    {"top_p": 0.7, "logprobs": True},
    {"min_p": 0.05, "repetition_penalty": 1.2},
    {"max_new_tokens": 3, "logprobs": True},
    {"stop": ["e", "qq"]},
]


async def alone(directory: Path, kind: str, prompts: list[Prompt]) -> list[Completion]:
    """What a backend makes of prompts, one after the other."""
    async with open_backend(engine_for(directory, kind=kind).config) as backend:
        found = []
        for prompt in prompts:
            ready = prompt.with_prepared(backend.prepare(prompt.asked, prompt.max_new_tokens, prompt.shared))
            found += await complete(backend, [ready])
        return found


def said(completion: Completion) -> tuple[object, ...]:
    return completion.text, completion.tokens, completion.finish_reason, completion.logprobs, completion.token_texts


@pytest.mark.parametrize("kind", KINDS)
def test_many_at_once_with_mixed_parameters_say_what_each_says_alone(llama: Path, kind: str) -> None:
    rng = random.Random(kind)
    wanted = [(question(n, rng.choice((1, 4, 9))), rng.choice(SAMPLINGS), rng.getrandbits(63)) for n in range(24)]
    found: dict[int, Completion] = {}

    async def main() -> None:
        async def ask(engine: Engine, number: int) -> None:
            messages, sampling, seed = wanted[number]
            found[number] = await engine.generate(messages, seed=seed, priority=rng.randrange(3), **sampling)

        async with nothing_left(engine_for(llama, kind=kind)) as engine, anyio.create_task_group() as tasks:
            for number in range(len(wanted)):
                tasks.start_soon(ask, engine, number)
        expected = await alone(llama, kind, [found[number].prompt for number in range(len(wanted))])
        for number, completion in enumerate(expected):
            assert said(found[number]) == said(completion), wanted[number]
            assert found[number].prompt.seed == wanted[number][2]

    anyio.run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_and_token_ids_are_gone_on_from(llama: Path, kind: str) -> None:
    async def main() -> None:
        async with nothing_left(engine_for(llama, kind=kind)) as engine:
            assert engine._core is not None
            rendered = await engine.generate(HELLO, seed=5)
            assert rendered.prompt.messages == tuple(HELLO)
            ids = rendered.prompt.prepared.token_ids or (1, 2, 3)
            again = await engine.generate(ids, seed=5)
            assert again.prompt.given == ids
            if kind != "echo":
                assert said(again) == said(rendered)
            text = await engine.generate("the moon", seed=5)
            same = await engine.generate(engine._core.backend.prepare("the moon", 1).token_ids or "the moon", seed=5)
            assert said(text) == said(same)

    anyio.run(main)


def test_without_a_seed_one_is_drawn_and_told(llama: Path) -> None:
    async def main() -> None:
        async with nothing_left(engine_for(llama)) as engine:
            one, other = [await engine.generate(HELLO, temperature=1.0) for _ in range(2)]
            assert one.prompt.seed != other.prompt.seed
            assert one.text != other.text
            assert (await engine.generate(HELLO, temperature=1.0, seed=one.prompt.seed)).text == one.text

    anyio.run(main)


def test_a_conversation_that_shares_its_beginning_says_the_same(llama: Path) -> None:
    async def main() -> None:
        talk: list[Any] = [{"role": "system", "content": "Be kind and quiet. " * 3}, *HELLO]
        async with nothing_left(engine_for(llama)) as engine:
            plain = await engine.generate(talk, seed=1)
            assert engine.snapshot().prefix_misses == 0
            shared = [await engine.generate(talk, seed=1, shared=1) for _ in range(3)]
            seen = engine.snapshot()
            assert (seen.prefix_misses, seen.prefix_hits) == (1, 2)
            assert {each.text for each in shared} == {plain.text}

    anyio.run(main)


BAD: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    ("", {}, ValueError, "empty text"),
    (None, {}, TypeError, "NoneType"),
    ({"role": "user", "content": "x"}, {}, TypeError, "expected a text, token ids, or messages"),
    ([], {}, ValueError, "at least one message"),
    (["hello"], {}, TypeError, r"messages\[0\]: found str"),
    ([1, 2, "x"], {}, TypeError, r"prompt\[2\]: found str, expected token ids throughout"),
    (np.ones((2, 2), int), {}, TypeError, r"prompt\[0\]: found ndarray"),
    ([{"role": "user"}], {}, TypeError, r"messages\[0\].content: found NoneType"),
    ([{"role": "User", "content": "x"}], {}, ValueError, "'User', expected one of system, user, assistant"),
    ([{"role": "user", "content": "x", "name": "y"}], {}, ValueError, "the key 'name'"),
    ("x", {"temprature": 1}, TypeError, "unknown argument 'temprature'; did you mean 'temperature'"),
    ("x", {"wombat": 1}, TypeError, "unknown argument 'wombat'; there are temperature"),
    ("x", {"temperature": -1}, ValueError, r"temperature: found -1\.0, expected 0 or more"),
    ("x", {"temperature": math.nan}, ValueError, "temperature: found nan"),
    ("x", {"temperature": "hot"}, TypeError, "temperature: found 'hot', expected a number"),
    ("x", {"top_p": 0}, ValueError, r"top_p: found 0\.0, expected above 0"),
    ("x", {"top_k": 1.5}, TypeError, "top_k: found 1.5, expected a whole number"),
    ("x", {"max_new_tokens": 0}, ValueError, "max_new_tokens: found 0, expected at least 1"),
    ("x", {"max_new_tokens": True}, TypeError, "max_new_tokens: found True"),
    ("x", {"seed": -1}, ValueError, "seed: found -1"),
    ("x", {"seed": 2**63}, ValueError, "seed: found"),
    ("x", {"stop": [""]}, ValueError, "stop: found ''"),
    ("x", {"stop": 5}, ValueError, "stop: found 5"),
    ("x", {"shared": 1}, ValueError, "shared: found 1"),
    ("x", {"priority": 1.0}, TypeError, "priority: found 1.0"),
    ("x", {"timeout": -1}, ValueError, "timeout: found -1"),
    ("x", {"timeout": math.nan}, ValueError, "timeout: found nan"),
    ("x", {"timeout": 10**400}, ValueError, "timeout: found a number of 401 digits, which is too large"),
    ("x", {"temperature": 10**400}, ValueError, "temperature: found a number of 401 digits"),
    ("x", {"stop": "\ud800"}, ValueError, r"stop: found '\\ud800' at 0, which is half of a character"),
    ("x\ud800", {}, ValueError, r"prompt: found '\\ud800' at 1"),
    ([{"role": "user", "content": "\udfff"}], {}, ValueError, r"messages\[0\].content: found '\\udfff' at 0"),
    (b"x", {}, TypeError, "prompt: found bytes"),
    ("x", {"when_full": "shout"}, ValueError, "when_full: found 'shout'"),
]


def test_what_means_nothing_is_refused_by_name() -> None:
    async def main() -> None:
        async with engine_for("", kind="echo") as engine:
            for prompt, asking, kind, message in BAD:
                with pytest.raises(kind, match=message):
                    await engine.generate(prompt, **asking)
                with pytest.raises(kind, match=message):
                    engine.stream(prompt, **asking)
            assert engine.snapshot().requests == 0

    anyio.run(main)


def test_prompts_that_do_not_fit_or_are_refused(llama: Path) -> None:
    async def main() -> None:
        async with nothing_left(engine_for(llama)) as engine:
            with pytest.raises(PromptTooLong, match="context of 512 tokens"):
                await engine.generate(question(0, 200), max_new_tokens=100)
            with pytest.raises(PromptTooLong):
                await engine.generate(HELLO, max_new_tokens=5000)
            with pytest.raises(PromptRefused, match="999 is no token of the model, which knows 0 to 260"):
                await engine.generate([1, 999])
            with pytest.raises(PromptRefused, match="-1 is no token"):
                await engine.generate([-1, 5])
            assert (await engine.generate(HELLO)).finish_reason in ("stop", "length")
            assert engine.snapshot().failed == 4

    anyio.run(main)


@pytest.mark.parametrize("kind", ["slots", "static"])
def test_an_answer_that_cannot_be_made_is_an_error_and_harms_nobody(tmp_path: Path, kind: str) -> None:
    model = make_model(tmp_path, "llama", nan_token=len(SPECIALS))

    async def main() -> None:
        async with nothing_left(engine_for(model, kind=kind)) as engine:
            good = await engine.generate([20, 30, 40], seed=1)
            with pytest.raises(CompletionFailed, match="logits not finite") as caught:
                await engine.generate([len(SPECIALS)], seed=1)
            assert caught.value.completion.finish_reason == "error"
            del caught  # its traceback holds the request
            assert said(await engine.generate([20, 30, 40], seed=1)) == said(good)

    anyio.run(main)


def test_configurations_of_an_engine(llama: Path) -> None:
    engine = Engine(str(llama), backend={"device": "cpu"}, generation={"batch_size": 3, "stop": ["x"]})
    assert engine.config.generation.batch_size == 3
    with pytest.raises(ConfigError, match=r"Engine\(...\).*generation.batch_siz.*") as caught:
        Engine("x", generation={"batch_siz": 3})
    assert "did you mean" in str(caught.value)
    with pytest.raises(TypeError, match="generation: a configuration is given already"):
        Engine(asyncgen.Config(), generation={"batch_size": 3})
    with pytest.raises(ValueError, match="max_requests: found 0"):
        Engine(max_requests=0)
    with pytest.raises(ValueError, match="when_full: found 'never'"):
        Engine(when_full="never")  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize("kind", KINDS)
def test_before_and_after_it_says_that_it_is_closed(llama: Path, kind: str) -> None:
    async def main() -> None:
        engine = engine_for(llama, kind=kind)
        with pytest.raises(EngineClosed, match="not open"):
            await engine.generate("x")
        assert engine.snapshot().requests == 0
        async with engine:
            await engine.generate("x")
        for _ in range(2):
            with pytest.raises(EngineClosed, match="is closed"):
                await engine.generate("x")
            with pytest.raises(EngineClosed):
                await anext(aiter(engine.stream("x")))
            with pytest.raises(EngineClosed):
                await anext(aiter(engine.map(["x"])))
            await engine.aclose()
        with pytest.raises(RuntimeError, match="started once"):
            await engine.start()

    anyio.run(main)


def test_a_full_engine_waits_or_raises_and_the_urgent_come_in_first() -> None:
    async def main() -> None:
        order: list[int] = []
        slow = engine_for("", kind="echo", rows=1, backend={"seconds_per_batch": 0.01}, max_requests=2)

        async def ask(number: int, priority: int) -> None:
            await slow.generate("x", priority=priority)
            order.append(number)

        async with nothing_left(slow), anyio.create_task_group() as tasks:
            for number, priority in enumerate((0, 0, 0, 1, 0, 5, 5)):
                tasks.start_soon(ask, number, priority)
                await anyio.lowlevel.checkpoint()
            await anyio.sleep(0.005)
            assert (slow.snapshot().requests, slow.snapshot().at_the_gate) == (2, 5)
            with pytest.raises(EngineFull, match="at most 2 may"):
                await slow.generate("x", when_full="raise")
        assert order == [0, 1, 5, 6, 3, 2, 4]

    anyio.run(main)


def test_a_timeout_ends_the_row_or_the_waiting(llama: Path) -> None:
    async def main() -> None:
        async with nothing_left(engine_for(llama, rows=1)) as engine:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: engine.generate(HELLO, max_new_tokens=400, seed=LONG))
                with pytest.raises(TimeoutError, match=r"no answer within 0\.02 s"):
                    await engine.generate(HELLO, timeout=0.02)
                with pytest.raises(TimeoutError, match="no answer within 0 s"):
                    await engine.generate(HELLO, timeout=0)
                tasks.cancel_scope.cancel()
            await is_idle(engine)
            assert engine.snapshot().cancelled == 3

    anyio.run(main)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(1, 4)), min_size=1, max_size=12))
def test_of_those_who_wait_the_most_urgent_go_first(asked: list[tuple[int, int]]) -> None:
    """One row, held until all wait: then by priority, and among equals in the order in which they came."""
    order: list[int] = []

    async def main() -> None:
        engine = engine_for("", kind="echo", rows=1, backend={"seconds_per_batch": 0.003})

        async def ask(number: int, priority: int, words: int) -> None:
            await engine.generate("x " * words, priority=priority)
            order.append(number)

        async with engine, anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: engine.generate("first"))
            while not engine.snapshot().rows_running:  # a batch is no event
                await anyio.lowlevel.checkpoint()
            for number, (priority, words) in enumerate(asked):
                tasks.start_soon(ask, number, priority, words)

    anyio.run(main)
    assert order == sorted(range(len(asked)), key=lambda number: (-asked[number][0], number))


def test_what_is_known_of_an_engine_is_known_everywhere(llama: Path) -> None:
    engine = engine_for(llama)
    with pytest.raises(EngineClosed, match="not open"):
        _ = engine.limits
    with engine.blocking() as blocking:
        assert engine.limits == blocking.limits
        assert engine.limits.rows == 4
        assert engine.notices == blocking.notices


def test_token_ids_may_be_an_array(llama: Path) -> None:
    async def main() -> None:
        async with engine_for(llama) as engine:
            plain = await engine.generate([20, 30, 40], seed=1)
            assert said(await engine.generate(np.array([20, 30, 40]), seed=1)) == said(plain)  # type: ignore[arg-type]  # as good as

    anyio.run(main)


def test_sampling_is_the_configurations_unless_it_is_said(llama: Path) -> None:
    async def main() -> None:
        generation = {"temperature": 0.3, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1}
        async with engine_for(llama, generation=generation | {"stop": ["\0"]}) as engine:
            made = (await engine.generate(HELLO)).prompt
            assert made.sampling == Sampling(0.3, 5, 0.9, 0.1, 1.1)
            assert (made.max_new_tokens, made.stop) == (24, ("\0",))
            made = (await engine.generate(HELLO, top_k=0, stop="a", max_new_tokens=2, logprobs=True)).prompt
            assert made.sampling == Sampling(0.3, 0, 0.9, 0.1, 1.1, logprobs=True)
            assert (made.max_new_tokens, made.stop) == (2, ("a",))

    anyio.run(main)


def test_notices_reach_whoever_wants_them(gpt2: Path) -> None:
    told: list[str] = []

    async def main() -> None:
        async with Engine(config_for(gpt2), notice=told.append) as engine:
            assert any("no chat template" in each for each in engine.notices)
            assert engine.limits.context_length == 512

    anyio.run(main)
    assert told[0].startswith("loading ")


def test_none_is_what_is_left_out() -> None:
    async def main() -> None:
        async with engine_for("", kind="echo") as engine:
            nothing: dict[str, Any] = dict.fromkeys(
                ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens", "stop", "logprobs")
            )
            expected = await engine.generate("tell", seed=3)
            found = await engine.generate(
                "tell", seed=3, shared=None, priority=None, timeout=None, when_full=None, **nothing
            )
            assert found.text == expected.text
            assert (await engine.generate("tell", seed=None)).text
            with pytest.raises(TypeError, match="logprobs: found 'no', expected True or False"):
                await engine.generate("tell", logprobs="no")  # type: ignore[arg-type]

    anyio.run(main)

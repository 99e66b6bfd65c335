"""An engine with a server behind it: streams, texts to go on from, log-probabilities, and what nobody wants."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import asyncgen
from asyncgen.errors import CompletionFailed
from asyncgen.records import Message
from tests.backends.openai.faulty import Faulty, Request, text_for
from tests.backends.openai.helpers import engine_settings

pytestmark = pytest.mark.anyio

ASKED = [Message(role="user", content="Tell of a moon, a hat and a cat.")]
KEY = "sk-canary-0123456789"


@asynccontextmanager
async def opened(server: Faulty, rows: int = 8, **backend: object) -> AsyncIterator[asyncgen.Engine]:
    with server:
        async with asyncgen.Engine(engine_settings(server, rows=rows, **backend)) as engine:
            yield engine


async def until(true: object) -> None:
    """Waits until it is: what another thread does has no event on this loop."""
    assert callable(true)
    with anyio.fail_after(20):
        while not true():  # noqa: ASYNC110  # as the docstring says
            await anyio.sleep(0.002)


@pytest.mark.parametrize("question", [ASKED, "Tell of a, b and c.", (1, 2, 3)])
@pytest.mark.parametrize("fault", ["ok", "no usage"])
async def test_pieces_make_the_text_whatever_is_asked(question: object, fault: str) -> None:
    async with opened(Faulty(lambda _: fault)) as engine:
        whole = await engine.generate(question, seed=3)  # type: ignore[arg-type]  # of three types, each of which will do
        async with engine.stream(question, seed=3) as pieces:  # type: ignore[arg-type]  # the same
            joined = "".join([piece async for piece in pieces])
        assert joined == pieces.completion.text == whole.text
        assert pieces.completion.tokens == whole.tokens
        assert (whole.tokens > 0) == (fault == "ok")
        assert engine.limits.context_length is None


async def test_what_is_asked_for_reaches_the_server() -> None:
    server = Faulty()
    async with opened(server, seed_bits=32) as engine:
        await engine.generate("on", seed=2**40 + 5, temperature=0.1, top_p=0.5, max_new_tokens=7, stop="slept")
        assert [server.seen[0].body[name] for name in ("seed", "temperature", "top_p", "max_tokens", "stop")] == [
            *(5, 0.1, 0.5, 7, ["slept"])
        ]
        assert server.seen[0].path == "/v1/completions"
        assert "authorization" not in server.seen[0].headers


async def test_log_probabilities_come_with_their_tokens() -> None:
    async with opened(Faulty()) as engine:
        for question in (ASKED, "on"):
            completion = await engine.generate(question, logprobs=True)
            assert "".join(completion.token_texts) == completion.text
            assert completion.logprobs == (-0.5,) * len(completion.token_texts)


async def test_stop_texts_end_an_answer_also_where_the_server_does_not_know_them() -> None:
    async with opened(Faulty()) as engine:
        whole = await engine.generate(ASKED, seed=1)
        before, _, _ = whole.text.partition(". ")
        cut = await engine.generate(ASKED, seed=1, stop=". ")
        async with engine.stream(ASKED, seed=1, stop=". ") as pieces:
            joined = "".join([piece async for piece in pieces])
        assert before == cut.text == joined == pieces.completion.text
        assert cut.finish_reason == "stop"


@pytest.mark.parametrize("fault", ["cut", "no json"])
async def test_a_stream_that_breaks_off_is_no_answer_and_is_not_begun_again(fault: str) -> None:
    server = Faulty(lambda _: fault)
    async with opened(server) as engine:
        got: list[str] = []
        with pytest.raises(CompletionFailed, match=r"server: after \d+ characters: "):
            async for piece in engine.stream(ASKED):
                got.append(piece)  # noqa: PERF401  # what came before the error counts
        assert "".join(got) == text_for(server.seen[0].body)[: len("".join(got))] != ""
        assert len(server.seen) == 1


@pytest.mark.parametrize("fault", ["500", "429", "cut at once", "html"])
async def test_a_stream_that_has_not_begun_is(fault: str) -> None:
    server = Faulty(lambda request: fault if request.number == 1 else "ok")
    async with opened(server) as engine:
        async with engine.stream(ASKED) as pieces:
            joined = "".join([piece async for piece in pieces])
        assert joined == text_for(server.seen[0].body)
        assert len(server.seen) == 2


async def test_a_stream_without_a_reason_for_its_end_is_cut() -> None:
    async with opened(Faulty(lambda _: "no finish")) as engine:
        with pytest.raises(CompletionFailed, match="without a finish reason"):
            async for _ in engine.stream(ASKED):
                pass


@pytest.mark.parametrize("streamed", [False, True])
async def test_whoever_leaves_closes_the_connection_and_nobody_else_notices(streamed: bool) -> None:
    server = Faulty(lambda request: "hang after a piece" if request.body.get("stream") else "hang")
    async with opened(server, rows=2) as engine:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def ask() -> None:
                    if streamed:
                        async for _ in engine.stream(ASKED):
                            pass
                    else:
                        await engine.generate(ASKED)

                tasks.start_soon(ask)
                await until(lambda: server.in_flight == 1)
                scope.cancel()
        await until(lambda: server.left == 1)
        await until(lambda: engine.snapshot().requests == 0)
        server.choose = lambda _: "ok"
        assert (await engine.generate(ASKED)).text
        assert engine.snapshot().rows_running == 0
        server.release.set()


async def test_what_waits_to_be_tried_again_can_be_left_too() -> None:
    server = Faulty(lambda _: "503 after 20")
    async with opened(server) as engine:
        with pytest.raises(TimeoutError):
            await engine.generate(ASKED, timeout=0.2)
        await until(lambda: engine.snapshot().requests == 0)
        assert engine.snapshot().cancelled == 1


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["ok", "500", "429", "cut", "hang", "html"]), st.booleans()), max_size=24))
def test_everybody_gets_one_outcome(script: list[tuple[str, bool]]) -> None:
    """Some leave, some are answered at a later try; the engine ends with nothing left."""

    async def main() -> None:
        async with opened(server, rows=3, timeout=0.5) as engine, anyio.create_task_group() as tasks:

            async def ask(number: int, leave: bool) -> None:
                with anyio.move_on_after(0.02 if leave else None):
                    outcomes[number] = (await engine.generate(ASKED, seed=number)).text

            for number, (_, leave) in enumerate(script):
                tasks.start_soon(ask, number, leave)
            await until(lambda: all(leave or n in outcomes for n, (_, leave) in enumerate(script)))
            tasks.cancel_scope.cancel()

    def choose(request: Request) -> str:
        return script[request.number - 1][0] if request.number <= len(script) else "ok"

    outcomes: dict[int, str] = {}
    server = Faulty(choose)
    try:
        anyio.run(_with_timeout, main)
    finally:
        server.release.set()
    for number, (_, leave) in enumerate(script):
        assert leave or outcomes[number]


async def _with_timeout(main: object) -> None:
    assert callable(main)
    with anyio.fail_after(60):
        await main()


async def test_a_key_that_an_answer_holds_goes_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", KEY)
    server = Faulty(lambda _: "echo")
    async with opened(server, api_key_env="THE_KEY", max_retries=0) as engine:
        with pytest.raises(CompletionFailed) as caught:
            await engine.generate(ASKED)
        assert KEY not in str(caught.value)
        got: list[str] = []
        with pytest.raises(CompletionFailed) as caught:
            async for piece in engine.stream(ASKED):
                got.append(piece)  # noqa: PERF401  # what came before the error counts
        assert KEY not in str(caught.value) + "".join(got)
        assert server.seen[0].headers["authorization"] == f"Bearer {KEY}"


async def test_only_what_is_needed_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key that is meant for somebody else, whatever the official client reads of the environment."""
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"Authorization: Bearer {KEY}\nX-Api-Key: {KEY}")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    server = Faulty()
    async with opened(server) as engine:
        await engine.generate(ASKED)
    assert set(server.seen[0].headers) == {
        *("host", "accept", "accept-encoding", "connection", "user-agent", "content-type", "content-length"),
    }

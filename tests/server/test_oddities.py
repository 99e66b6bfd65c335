"""What was once found wrong by people who wished the server ill."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2 as httpx
import pytest

from asyncgen import Engine
from asyncgen.config_file import load_config
from asyncgen.engine import checked
from asyncgen.engine.asking import understood
from asyncgen.errors import BackendFailed, EngineClosed
from asyncgen.server import create_app, serve
from tests.programs import asyncgen
from tests.server.serving import CHAT, ECHO_SERVER, HELLO, TEXT, Served, serving

QUESTION: dict[str, Any] = {"model": "bedtime-tiny", "messages": HELLO, "seed": 1}
BROKEN = """
from asyncgen.server.answers import TextStyle
def fails(*_): raise RuntimeError("a fault of ours")
TextStyle.whole = fails
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = ("--set", "backend.context_length=2000")
    with serving(tmp_path_factory.mktemp("echo"), *ECHO_SERVER, *settings, before=BROKEN) as found:
        yield found


def raw(served: Served, *parts: bytes, pause: float = 0.0) -> bytes:
    """What comes back for bytes that are sent in these parts."""
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 30) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        found = b""
        try:
            while more := connection.recv(65_536):
                found += more
        except ConnectionError:
            pass
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_of_several_bad_prompts_one_is_named(served: Served, stream: bool) -> None:
    with served.http() as client:
        question = {"model": "bedtime-tiny", "prompt": ["a", "word " * 2100, "word " * 3000], "stream": stream, "n": 2}
        refused = client.post(TEXT, json=question)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt[1]")


def test_a_fault_of_ours_is_a_500_with_a_number_and_the_connection_lives(served: Served) -> None:
    with served.http() as client:
        for _ in range(3):
            failed = client.post(TEXT, json={"model": "bedtime-tiny", "prompt": "a"})
            assert (failed.status_code, failed.json()["error"]["code"]) == (500, "internal_error")
            assert "fault" not in failed.text
            while not any(failed.headers["x-request-id"] in line for line in served.said):
                time.sleep(0.01)  # it is on its way
        assert served.metrics()[f'asyncgen_http_requests_total{{path="{TEXT}",status="500"}}'] == 3
        while served.said.count("RuntimeError: a fault of ours") < 3:
            time.sleep(0.01)
        assert client.post(CHAT, json=QUESTION).status_code == 200


def test_large_questions_that_mean_nothing_are_refused_at_their_first_fault(served: Served) -> None:
    message = {"role": "user", "content": ""}
    with served.http() as client:
        many = client.post(CHAT, json=QUESTION | {"messages": [{}] * 20_000})
        assert many.json()["error"]["param"] == "messages[0].role"
        many = client.post(CHAT, json=QUESTION | {"messages": [message] * 2400})
        assert many.status_code == 200
        assert client.post(CHAT, json=QUESTION | {"messages": [message] * 5000}).status_code == 413
        ids = client.post(TEXT, json={"model": "bedtime-tiny", "prompt": [1] * 9000})
        assert (ids.json()["error"]["code"], ids.json()["error"]["param"]) == ("context_length_exceeded", "prompt")
        with_text = client.post(TEXT, json={"model": "bedtime-tiny", "prompt": [1, "a"]})
        assert with_text.json()["error"]["param"] == "prompt[1]"


def test_a_question_that_was_looked_at_is_not_looked_at_again() -> None:
    defaults = load_config().generation
    for question in (HELLO, [1, 2, 3]):
        once = checked(question)
        assert understood(once, {}, defaults, "wait").prompt.asked is once
        assert understood(question, {}, defaults, "wait").prompt.asked == once
    with pytest.raises(ValueError, match="role"):
        checked([{"role": "x", "content": ""}])


def test_who_hangs_up_after_a_byte_too_many_frees_its_row(tmp_path: Path) -> None:
    with serving(tmp_path, *ECHO_SERVER, "--set", "backend.seconds_per_batch=1000") as stuck:
        host, port = stuck.url.removeprefix("http://").split(":")
        body = b'{"model": "bedtime-tiny", "messages": [{"role": "user", "content": "a"}]}'
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        with socket.create_connection((host, int(port)), 30) as connection:
            connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body + b"\r\nGET")
            stuck.wait(lambda seen: seen["asyncgen_slots_used"] == 1)
        assert stuck.idle()["asyncgen_cancelled_stories_total"] == 1


def test_what_breaks_off_within_a_request_is_no_fault_of_ours(served: Served) -> None:
    chunked = "host: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    for path in ("/nothing", "/health", CHAT, "/v1/models"):
        for pause in (0.0, 0.1):
            answer = raw(served, f"POST {path} HTTP/1.1\r\n{chunked}".encode(), b"zz\r\n", pause=pause)
            assert answer.startswith(b"HTTP/1.1 4") or not answer
    closing = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    assert raw(served, closing + b"GET /health HTTP/1.1\r\n").count(b"200 OK") == 1
    kept = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
    assert raw(served, kept, b"\r\n", closing, pause=0.1).count(b"200 OK") == 2, "an empty line means nothing"
    assert raw(served, kept + kept + closing).count(b"200 OK") == 3
    assert not [line for line in served.said if "Exception in ASGI" in line or "Protocol" in line]


@pytest.mark.parametrize(
    "accept",
    ["text/plain; version=abc", "application/openmetrics-text; version=abc", "application/openmetrics-text;;,=;=", ""],
)
def test_any_accept_header_gets_metrics(served: Served, accept: str) -> None:
    with served.http() as client:
        answer = client.get("/metrics", headers={"accept": accept})
    assert answer.status_code == 200
    assert "abc" not in answer.headers["content-type"]


def test_no_path_leads_elsewhere(served: Served) -> None:
    with served.http(follow_redirects=False) as client:
        for path in (f"{CHAT}/", "/metrics/", "//health", "/v1"):
            assert client.get(path).status_code == 404, path


def test_only_one_server_has_a_port_while_it_loads(tmp_path: Path) -> None:
    with serving(tmp_path, *ECHO_SERVER) as first:
        second = asyncgen("serve", "--port", first.url.rpartition(":")[2], "--set", "backend.kind=echo", cwd=tmp_path)
    assert second.returncode == 2
    assert "cannot be listened at" in second.stderr


def test_more_connections_than_descriptors_are_refused_in_silence(tmp_path: Path) -> None:
    before = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (320, 320))"
    with serving(tmp_path, *ECHO_SERVER, before=before) as few:
        host, port = few.url.removeprefix("http://").split(":")
        crowd = [socket.create_connection((host, int(port)), 30) for _ in range(500)]
        for connection in crowd:
            connection.close()
        for _ in range(600):
            try:
                with few.http() as client:
                    assert client.get("/health").status_code == 200
                break
            except httpx.HTTPError:  # it has not seen yet that they are gone
                time.sleep(0.05)
        else:
            raise AssertionError("it does not recover")
        assert few.end() == 0
    assert len(few.said) < 10, few.said[:20]


def test_a_client_of_completions_gets_them_in_pieces(tmp_path: Path) -> None:
    with serving(tmp_path, *ECHO_SERVER) as sound, sound.client() as client:
        asking: dict[str, Any] = {"model": "bedtime-tiny", "prompt": ["a", "b"], "n": 2, "seed": 3, "max_tokens": 9}
        whole = client.completions.create(**asking, logprobs=0)
        texts, logprobs = [""] * 4, [0] * 4
        for chunk in client.completions.create(
            **asking, logprobs=0, stream=True, stream_options={"include_usage": True}
        ):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
                logprobs[choice.index] += len(choice.logprobs.tokens) if choice.logprobs else 0
        assert texts == [choice.text for choice in whole.choices]
        assert logprobs == [9] * 4
        assert chunk.usage == whole.usage


def test_the_application_in_a_program_of_ones_own() -> None:
    async def main() -> None:
        async with Engine(backend={"kind": "echo"}, when_full="raise") as engine:
            app = create_app(engine, key="secret")
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://any.example") as client:
                assert (await client.get("/v1/models")).status_code == 401
                client.headers["authorization"] = "Bearer secret"
                assert (await client.post(CHAT, json=QUESTION)).status_code == 200
                app.state.closing = True
                assert (await client.get("/health")).status_code == 503
                app.state.closing = False
                await engine.aclose()
                assert (await client.get("/health")).json()["error"]["code"] == "unavailable"

    anyio.run(main)


def test_a_server_that_is_cancelled_leaves_nothing_behind() -> None:
    async def main() -> None:
        before = asyncio.all_tasks()
        config = load_config(None, ["server.port=0", "backend.kind=echo", "backend.seconds_per_batch=1000"])
        address: list[str] = []
        async with anyio.create_task_group() as tasks:
            ready = anyio.Event()

            def begin(where: str) -> None:
                address.append(where)
                ready.set()

            async def run() -> None:
                await serve(config, stop=anyio.Event(), begin=begin)

            tasks.start_soon(run)
            await ready.wait()
            async with httpx.AsyncClient(base_url=address[0], trust_env=False, timeout=30) as client:
                waiting = asyncio.create_task(client.post(CHAT, json=QUESTION))
                while "asyncgen_slots_used 1.0" not in (await client.get("/metrics")).text:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
                tasks.cancel_scope.cancel()
                with anyio.CancelScope(shield=True), pytest.raises(httpx.HTTPError):
                    await waiting
        host, port = address[0].removeprefix("http://").split(":")
        with pytest.raises(OSError):  # noqa: PT011  # refused
            await asyncio.open_connection(host, int(port))
        for _ in range(100):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == before

    asyncio.run(main())


def test_an_engine_tells_why_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with Engine(backend={"kind": "echo"}) as engine:
            engine.check()
            ended = asyncio.create_task(engine.ended())
            await asyncio.sleep(0)
            assert not ended.done()
        assert isinstance(await ended, EngineClosed)
        with pytest.raises(EngineClosed):
            engine.check()
        async with Engine(backend={"kind": "echo"}) as failing:
            monkeypatch.setattr("asyncgen.backends.echo.Echo._complete", None)
            with pytest.raises(BackendFailed):
                await failing.generate("x")
            assert isinstance(await failing.ended(), BackendFailed)
            with pytest.raises(BackendFailed):
                failing.check()

    asyncio.run(main())

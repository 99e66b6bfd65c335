"""How a server begins and ends: by signals, by its model, by the address that it cannot have."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest

from tests.programs import ECHO, ROOT, asyncgen, environment, without_torch
from tests.server.serving import CHAT, ECHO_SERVER, HELLO, MODEL_SERVER, SMALL_BUFFERS, Served, events, serving

QUESTION: dict[str, Any] = {"model": "bedtime-tiny", "messages": HELLO, "seed": 1}
SLOW = ("--set", "backend.seconds_per_batch=1.5")
STUCK = ("--set", "backend.seconds_per_batch=1000", "--set", "drain_timeout=0.5")


def refused(served: Served) -> bool:
    try:
        with served.http() as client:
            return bool(client.get("/health").status_code == 503)
    except httpx.HTTPError:
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_is_begun_finish(tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path, *ECHO_SERVER, *SLOW) as served, served.http() as client, ThreadPoolExecutor(2) as threads:

        def streamed() -> list[Any]:
            with client.stream("POST", CHAT, json=QUESTION | {"stream": True}) as answer:
                return events(answer.iter_lines())

        whole = threads.submit(client.post, CHAT, json=QUESTION)
        pieces = threads.submit(streamed)
        served.wait(lambda seen: seen["asyncgen_slots_used"] > 0 and seen["asyncgen_stories_open"] >= 2)
        served.program.send_signal(number)
        while not refused(served):
            time.sleep(0.02)
        expected = whole.result().json()["choices"][0]["message"]["content"]
        told = pieces.result()
        assert told[-1] == "[DONE]"
        assert "".join(each["choices"][0]["delta"].get("content", "") for each in told[:-1]) == expected
        assert served.program.wait(60) == 0
    assert any("stopping: finishing what was begun" in line for line in served.said)
    assert not [line for line in served.said if "Traceback" in line]


def test_what_takes_too_long_is_told_so(tmp_path: Path) -> None:
    with serving(tmp_path, *ECHO_SERVER, *STUCK) as served, ThreadPoolExecutor(1) as threads:
        with served.http() as client:
            whole = threads.submit(client.post, CHAT, json=QUESTION)
            served.wait(lambda seen: seen["asyncgen_slots_used"] > 0)
            assert served.end() == 0
            answer = whole.result()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert not [line for line in served.said if "Traceback" in line]


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_that_is_cut_short_says_so(tmp_path: Path, n: int) -> None:
    """On the bundled model: pieces have come, and then no end but an error, which the official client raises."""
    no_end = {"max_tokens": 1900, "temperature": 100.0, "stream": True, "n": n}
    limits = ("--set", "drain_timeout=0.2", "--set", "server.timeout=1")
    with serving(tmp_path, *MODEL_SERVER, *limits) as served, served.client() as client:
        late = client.chat.completions.create(**QUESTION, **no_end)  # type: ignore[call-overload]
        with pytest.raises(openai.APIError, match="no answer within 1 s"):
            list(late)
        chunks = iter(client.chat.completions.create(**QUESTION, **no_end))  # type: ignore[call-overload]
        for _ in range(n + 1):
            next(chunks)
        served.program.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="the server is closing"):
            list(chunks)
        assert served.program.wait(60) == 0
    assert f"{n} stories were not finished within 0.2 s; their clients are told so" in served.said
    assert not [line for line in served.said if "Traceback" in line]


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    patient = ("--set", "backend.seconds_per_batch=1000", "--set", "drain_timeout=1000")
    server = serving(tmp_path, *ECHO_SERVER, *patient)
    with server as served, ThreadPoolExecutor(1) as threads, served.http() as client:
        cut = threads.submit(client.post, CHAT, json=QUESTION)
        served.wait(lambda seen: seen["asyncgen_slots_used"] > 0)
        served.program.send_signal(signal.SIGTERM)
        while not refused(served):
            time.sleep(0.02)
        assert served.end(signal.SIGTERM) == 128 + signal.SIGTERM
        with suppress(httpx.HTTPError):  # of a connection that was gone first
            assert cut.result().status_code >= 500
    assert not [line for line in served.said if "Traceback" in line]


FAILING = """
from asyncgen.backends.echo import Echo
complete, calls = Echo._complete, []
def fails(self, prompt):
    calls.append(prompt)
    if len(calls) > 1:
        raise RuntimeError("the card fell out")
    return complete(self, prompt)
Echo._complete = fails
"""


def test_when_the_model_fails_the_server_ends_and_says_why(tmp_path: Path) -> None:
    with serving(tmp_path, *ECHO_SERVER, before=FAILING) as served, served.http() as client:
        assert client.post(CHAT, json=QUESTION).status_code == 200
        failed = client.post(CHAT, json=QUESTION)
        assert (failed.status_code, failed.json()["error"]["code"]) == (503, "unavailable")
        assert "card" not in failed.text, "what went wrong inside is not for clients"
        assert served.program.wait(60) == 1
    assert "asyncgen: error: the card fell out" in served.said


FAILING_LATE = """
from asyncgen.backends.echo import Echo
async def fails(self, streamed, progress):
    import anyio
    await anyio.sleep(1.5)
    raise RuntimeError("the card fell out")
Echo._pass_time = fails
"""


def test_also_when_it_fails_while_the_server_is_closing(tmp_path: Path) -> None:
    server = serving(tmp_path, *ECHO_SERVER, before=FAILING_LATE)
    with server as served, ThreadPoolExecutor(1) as threads, served.http() as client:
        waiting = threads.submit(client.post, CHAT, json=QUESTION)
        served.wait(lambda seen: seen["asyncgen_slots_used"] > 0)
        assert served.end() == 1
        assert waiting.result().status_code == 503
    assert "asyncgen: error: the card fell out" in served.said


def test_bad_settings_are_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "served.yaml").write_text("server:\n  port: 0\n  api_key_env: NOT_THERE\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        wrong = {
            (
                "--port",
                str(port),
            ): f"--port {port}: server.port: 127.0.0.1:{port} cannot be listened at: Address already",
            ("served.yaml",): "served.yaml:3: server.api_key_env: the environment variable NOT_THERE is not set",
            ("--host", "0.0.0.0"): "host '0.0.0.0' lets other machines in: name a key",
            ("--host", "no.such.host.invalid", "--set", "server.api_key_env=HOME"): "is no address to listen at",
            ("--set", "server.api_key_env=SPACED", "--port", "0"): "holds a character that no header can carry",
            ("--set", "server.prot=1"): "did you mean 'port'",
            ("--port", "many"): "should be a valid integer",
            ("--model-name", "./nothing", "--port", "0"): "model not found",
        }
        for arguments, message in wrong.items():
            env = without_torch(tmp_path) | {"SPACED": "two words"}
            done = asyncgen("serve", *arguments, cwd=tmp_path, env=env)
            assert done.returncode == 2, (arguments, done.stderr)
            assert message in " ".join(done.stderr.split()), (arguments, done.stderr)
            assert "Traceback" not in done.stderr


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
sys.modules["prometheus_client"] = None
sys.argv = ["asyncgen", "serve", *{ECHO!r}]
from asyncgen.__main__ import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "asyncgen serve needs the package prometheus_client" in done.stderr
    assert "'.[serve]'" in done.stderr


def test_connections_on_which_nothing_happens_are_given_up(tmp_path: Path) -> None:
    """Half a head, a head that is fed byte by byte, an answer that is not read, also if more is asked meanwhile, and
    the end of one that is not.
    """
    before = f"{SMALL_BUFFERS}\nprogram.STALLED_SECONDS = 0.5"
    body = json.dumps(QUESTION | {"stream": True, "n": 100}).encode()
    rest = json.dumps(QUESTION | {"n": 16}).encode()

    def asking(content: bytes) -> bytes:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content

    with serving(tmp_path, *ECHO_SERVER, before=before) as served, ExitStack() as stack:
        before_them = served.metrics()
        host, port = served.url.removeprefix("http://").split(":")

        def connected() -> socket.socket:
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(60)
            connection.connect((host, int(port)))
            return connection

        silent, dripping, deaf, prodding, dozing = (connected() for _ in range(5))
        deaf.sendall(asking(body))
        prodding.sendall(asking(body))
        dozing.sendall(asking(rest).replace(b"localhost", b"localhost\r\nconnection: close"))
        silent.sendall(b"GET /health HTT")
        assert silent.recv(100) == b""
        with pytest.raises(OSError):  # noqa: PT011  # reset, or a broken pipe
            for byte in b"GET /health HTTP/1.1\r\nx-long: " + b"x" * 3000:
                dripping.sendall(bytes([byte]))
                time.sleep(0.02)
        with suppress(OSError):
            prodding.sendall(b"GET /health HTTP/1.1\r\n")
        served.wait(lambda seen: seen["process_open_fds"] <= before_them["process_open_fds"])
        assert served.metrics()[f'asyncgen_http_requests_total{{path="{CHAT}",status="200"}}'] == 3
        assert served.end() == 0
    assert not [line for line in served.said if "Traceback" in line]

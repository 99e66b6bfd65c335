"""How a server begins and ends: by signals, by its model, by the address that it cannot have."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest

from tests.programs import ECHO, ROOT, asyncgen, environment, without_torch
from tests.server.serving import CHAT, ECHO_SERVER, HELLO, MODEL_SERVER, Served, events, serving

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
        served.wait(lambda seen: seen["asyncgen_slots_used"] > 0 and seen["asyncgen_requests"] >= 2)
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


def test_a_stream_that_is_cut_short_says_so(tmp_path: Path) -> None:
    """On the bundled model: pieces have come, and then no end but an error, which the official client raises."""
    no_end = {"extra_body": {"min_p": 0.0}, "max_tokens": 1900, "temperature": 100.0, "stream": True}
    with serving(tmp_path, *MODEL_SERVER, "--set", "drain_timeout=0.2") as served, served.client() as client:
        stream = client.chat.completions.create(**QUESTION, **no_end)  # type: ignore[call-overload]
        chunks = iter(stream)
        next(chunks)
        next(chunks)
        served.program.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="the server is closing"):
            list(chunks)
        assert served.program.wait(60) == 0
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
import sys
from asyncgen.backends.echo import Echo
complete, calls = Echo._complete, []
def fails(self, prompt):
    calls.append(prompt)
    if len(calls) > 1:
        raise RuntimeError("the card fell out")
    return complete(self, prompt)
Echo._complete = fails
from asyncgen.__main__ import main
main()
"""


def test_when_the_model_fails_the_server_ends_and_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FAILING, "serve", *ECHO_SERVER]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True) as program:
        assert program.stderr is not None
        url = next(line for line in program.stderr if "serving" in line).split()[-1]
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            assert client.post("/chat/completions", json=QUESTION).status_code == 200
            failed = client.post("/chat/completions", json=QUESTION)
        assert (failed.status_code, failed.json()["error"]["code"]) == (503, "unavailable")
        assert "card" not in failed.text, "what went wrong inside is not for clients"
        assert program.wait(60) == 1
        assert "asyncgen: error: the card fell out" in program.stderr.read()


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
    """Half a head, a head that is fed byte by byte, and an answer that nobody reads."""
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from asyncgen.server import program
program.STALLED_SECONDS = 0.5
sys.argv = ["asyncgen", "serve", *{ECHO_SERVER!r}, "--set", "generation.max_new_tokens=200"]
from asyncgen.__main__ import main
main()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        url = next(line for line in server.stderr if "serving" in line).split()[-1]
        address = url.removeprefix("http://").removesuffix("/v1").split(":")
        where = (address[0], int(address[1]))
        silent, dripping, deaf = (
            socket.create_connection(where, 30),
            socket.create_connection(where, 30),
            socket.socket(),
        )
        with silent, dripping, deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(where)
            body = json.dumps(QUESTION | {"stream": True, "n": 100}).encode()
            head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            deaf.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            silent.sendall(b"GET /health HTT")
            assert silent.recv(100) == b""
            for byte in b"GET /health HTTP/1.1\r\nx-long: " + b"x" * 1000:
                try:
                    dripping.sendall(bytes([byte]))
                except OSError:
                    break
                time.sleep(0.02)
            else:
                raise AssertionError("a head that does not end is waited for")
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
                for _ in range(600):
                    seen = client.get(f"{url.removesuffix('/v1')}/metrics").text
                    if f'asyncgen_http_requests_total{{path="{CHAT}",status="200"}} 1.0' in seen:
                        break
                    time.sleep(0.05)
                else:
                    raise AssertionError(seen)
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
        assert "Traceback" not in server.stderr.read()

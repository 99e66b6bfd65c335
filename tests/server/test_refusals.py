"""What is refused before it costs anything: too much, too long, malformed, by the wrong name, without a key."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.programs import environment
from tests.server.serving import CHAT, ECHO_SERVER, HELLO, TEXT, Served, serving

QUESTION: dict[str, Any] = {"model": "bedtime-tiny", "messages": HELLO, "max_tokens": 5}
KIND = "content-type: application/json\r\n"
KEY = "sk-canary-5f3a"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    limits = ("--set", "server.max_body_bytes=20000", "--set", "server.max_stories=4")
    with serving(tmp_path_factory.mktemp("open"), *ECHO_SERVER, *limits) as found:
        yield found


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    env = environment(SERVER_KEY=KEY)
    arguments = ("--set", "server.api_key_env=SERVER_KEY", "--host", "0.0.0.0")
    with serving(tmp_path_factory.mktemp("keyed"), *ECHO_SERVER, *arguments, env=env) as found:
        found.url = found.url.replace("0.0.0.0", "127.0.0.1")
        yield found


def code_of(answer: Any) -> tuple[int, str]:
    """Status and code; the body is always the one that clients know."""
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("rate_limit_error" if answer.status_code == 429 else "invalid_request_error")
    return answer.status_code, error["code"]


def test_nothing_of_it_reaches_the_model(served: Served) -> None:
    half = b'{"model": "bedtime-tiny", "messages": [{"role": "user", "content": "\\ud800"}]}'
    deep = b'{"model": ' + b"[" * 9000 + b"]" * 9000 + b"}"
    kind = {"content-type": "application/json"}

    def chunks() -> Iterator[bytes]:
        for _ in range(50):
            yield b" " * 1000

    with served.http() as client:
        before = served.metrics()
        refused = {
            "too large": client.post(CHAT, json=QUESTION | {"stop": "x" * 30_000}),
            "too large, in pieces": client.post(CHAT, content=chunks(), headers=kind),
            "no json": client.post(CHAT, content=b"{", headers=kind),
            "empty": client.post(CHAT, content=b"", headers=kind),
            "half a character": client.post(CHAT, content=half, headers=kind),
            "deep": client.post(CHAT, content=deep, headers=kind),
            "not utf-8": client.post(CHAT, content=b'{"model": "\xff"}', headers=kind),
            "a list": client.post(CHAT, json=[QUESTION]),
            "another type": client.post(CHAT, content=json.dumps(QUESTION), headers={"content-type": "text/plain"}),
            "a number of 5,000 digits": client.post(
                CHAT, content=b'{"model": "bedtime-tiny", "seed": ' + b"9" * 5000 + b"}", headers=kind
            ),
            "NaN": client.post(TEXT, content=b'{"model": "bedtime-tiny", "prompt": "x", "top_p": NaN}', headers=kind),
            "too many": client.post(CHAT, json=QUESTION | {"n": 5}),
            "no such path": client.get("/v1/nothing"),
            "no such method": client.get(CHAT),
        }
        found = {what: code_of(answer) for what, answer in refused.items()}
        after = served.idle()
    assert found == {
        "too large": (413, "request_too_large"),
        "too large, in pieces": (413, "request_too_large"),
        "no json": (400, "invalid_json"),
        "empty": (400, "invalid_json"),
        "half a character": (400, "invalid_json"),
        "deep": (400, "invalid_json"),
        "not utf-8": (400, "invalid_json"),
        "a list": (400, "invalid_value"),
        "another type": (415, "unsupported_media_type"),
        "a number of 5,000 digits": (400, "invalid_json"),
        "NaN": (400, "invalid_value"),
        "too many": (400, "invalid_value"),
        "no such path": (404, "not_found"),
        "no such method": (405, "method_not_allowed"),
    }
    assert refused["no such method"].headers["allow"] == "POST"
    for name in ("asyncgen_generated_tokens_total", "asyncgen_busy_seconds_total", "asyncgen_prompt_tokens_total"):
        assert after[name] == before[name]
    with served.http() as client:
        assert client.post(CHAT, json=QUESTION).status_code == 200


def test_who_is_too_many_is_told_to_come_back(tmp_path: Path) -> None:
    slow = ("--set", "backend.seconds_per_batch=1000", "--set", "server.max_stories=2", "--set", "server.timeout=2")
    with serving(tmp_path, *ECHO_SERVER, *slow) as served, served.http() as client:
        with client.stream("POST", CHAT, json=QUESTION | {"n": 2, "stream": True}):
            refused = client.post(CHAT, json=QUESTION)
            assert code_of(refused) == (429, "too_many_requests")
            assert refused.headers["retry-after"] == "1"
            refused = client.post(CHAT, json=QUESTION | {"stream": True})
            assert code_of(refused) == (429, "too_many_requests"), "before the stream begins there is a status"
        served.idle()
        late = client.post(CHAT, json=QUESTION)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        assert late.json()["error"]["message"] == "no answer within 2 s"
        served.idle()


def test_without_a_key_only_names_of_this_machine(served: Served) -> None:
    with served.http() as client:
        for host in ("localhost", "127.0.0.1:99", "LOCALHOST:8000", "[::1]:8000", "127.3.4.5"):
            assert client.get("/v1/models", headers={"host": host}).status_code == 200, host
        for host in ("attacker.example", "localhost.attacker.example", "127.0.0.1.nip.example", "8.8.8.8", "", "::1"):
            refused = client.post(CHAT, json=QUESTION, headers={"host": host})
            assert code_of(refused) == (403, "host_not_allowed"), host
        preflight = client.options(CHAT, headers={"origin": "http://attacker.example"})
        assert preflight.status_code == 405
        assert not [name for name in preflight.headers if name.startswith("access-control")]


def test_with_a_key_everything_but_health_wants_it(keyed: Served) -> None:
    with keyed.http() as client:
        before = keyed.program.pid
        for headers in (
            {},
            {"authorization": ""},
            {"authorization": "Bearer"},
            {"authorization": f"Bearer {KEY}x"},
            {"authorization": f"Basic {KEY}"},
            {"authorization": KEY},
            {"api-key": KEY},
        ):
            for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
                refused = client.get(path, headers=headers)
                assert code_of(refused) == (401, "invalid_api_key"), (headers, path)
                assert refused.headers["www-authenticate"] == "Bearer"
                assert KEY not in refused.text
            assert code_of(client.post(CHAT, json=QUESTION, headers=headers)) == (401, "invalid_api_key")
        assert client.get("/health", headers={"host": "any.example"}).json() == {"status": "ok"}
        good = {"authorization": f"bearer {KEY}", "host": "any.example"}
        assert client.post(CHAT, json=QUESTION, headers=good).status_code == 200
        assert client.get("/openapi.json", headers=good).json()["security"] == [{"key": []}]
        assert KEY not in client.get("/metrics", headers=good).text
    with keyed.client(api_key=KEY) as official:
        assert official.models.list().data
    assert before == keyed.program.pid
    assert KEY not in "\n".join(keyed.said)


@pytest.mark.parametrize(
    "raw",
    [
        f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\n{KIND}content-length: 99999\r\n\r\n".encode(),
        b"\x00\xff\xfe garbage\r\n\r\n",
        b"GET / HTTP/x.y\r\n\r\n",
        b"POST /v1/models\r\n\r\n",
        b"G" * 200_000,
    ],
)
def test_what_is_no_http_ends_its_connection_only(served: Served, raw: bytes) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 20) as connection:
        try:
            connection.sendall(raw)
            answer = connection.recv(4096)
        except ConnectionError:  # it had heard enough
            answer = b"HTTP/1.1 400"
        assert answer.startswith(b"HTTP/1.1 4")
    with served.http() as client:
        assert client.get("/health").status_code == 200

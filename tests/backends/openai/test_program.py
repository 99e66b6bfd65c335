"""``asyncgen run`` against a server: exit codes, kills, what is shown, and the key, which is nowhere."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends.openai.faulty import MODEL, Faulty
from tests.backends.openai.helpers import write_config
from tests.programs import ROOT, asyncgen, environment, records, start, without_torch

CANARY = "sk-canaryCANARY0123456789"
VARIABLES = ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "THE_KEY")


def leaks(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]


def test_a_run_that_is_killed_goes_on_to_the_same_stories(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    killed, whole = tmp_path, tmp_path / "whole"
    with Faulty() as server:
        done = asyncgen("run", write_config(whole, server), cwd=whole)
        assert done.returncode == 0, done.stderr
        before = len(server.seen)
        server.choose = lambda request: "hang" if request.number > before + 17 else "ok"
        process = start("run", write_config(killed, server, timeout=20.0), cwd=killed)
        while len(server.seen) < before + 18:
            assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        server.release.set()
        server.choose = lambda request: "503" if request.number % 4 == 0 and not request.tries else "ok"
        server.seen.clear()
        done = asyncgen("run", "c.yaml", cwd=killed)
        assert done.returncode == 0, done.stderr
    assert "requests, " in done.stderr
    assert "of them again; " in done.stderr
    assert records(killed / "stories.jsonl") == records(whole / "stories.jsonl")
    last = json.loads((killed / "stories.run.json").read_text())["facts"]["last session"]
    assert last["requests"] == len(server.seen)
    assert last["requests tried again"] > 0
    assert last["prompt tokens"] % 7 == 0 < last["prompt tokens"]


@pytest.mark.parametrize(
    ("choose", "models", "code", "said"),
    [
        ("401", None, 69, "status 401"),
        ("404", None, 69, "model_name"),
        ("503", None, 69, "no answer from http://127.0.0.1:"),
        ("ok", 403, 69, "status 403"),
        ("ok", b'{"data": [{"id": "story-telling"}]}', 2, "'story-telling'"),
    ],
)
@pytest.mark.parametrize("key", [None, "THE_KEY"])
def test_how_a_run_ends_that_cannot_go_on(
    tmp_path: Path, choose: str, models: bytes | int | None, code: int, said: str, key: str | None
) -> None:
    server = Faulty(lambda request: "ok" if request.number <= 12 and models is None else choose)
    server.models = server.models if models is None else models
    env = environment(**dict.fromkeys(VARIABLES, CANARY))
    with server:
        quick = {"timeout": 0.2, "patience": 0.7, "api_key_env": key}
        arguments = ("run", write_config(tmp_path, server, **quick), "--log-level", "debug", "--log-file", "log.txt")
        done = asyncgen(*arguments, cwd=tmp_path, env=env)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert CANARY not in done.stdout + done.stderr
    assert leaks(tmp_path) == []
    assert not records(tmp_path / "stories.rejected.jsonl") if models is None else True
    sent = {request.headers.get("authorization") for request in server.seen}
    assert sent <= {None if key is None else f"Bearer {CANARY}"}


@pytest.mark.parametrize("fault", ["echo", "400", "500"])
def test_the_key_is_in_no_artefact(tmp_path: Path, fault: str) -> None:
    """The server tells it in errors and in answers."""
    server = Faulty(lambda request: fault if request.number % 3 == 0 else "ok")
    env = environment(**dict.fromkeys(VARIABLES, CANARY))
    with server:
        path = write_config(
            tmp_path, server, {"num_stories": 12}, api_key_env="THE_KEY", extra_body={"x_token": CANARY}
        )
        done = asyncgen("run", path, "--log-level", "debug", "--log-file", "log.txt", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "(hidden)" in (tmp_path / "stories.run.json").read_text(), "what extra_body has of that kind is hidden too"
    assert all(request.headers["authorization"] == f"Bearer {CANARY}" for request in server.seen)
    assert CANARY not in done.stdout + done.stderr
    assert leaks(tmp_path) == ["c.yaml"], "where this test wrote it"


def test_a_key_that_is_not_there_is_found_before_anything_starts(tmp_path: Path) -> None:
    with Faulty() as server:
        path = write_config(tmp_path, server, api_key_env="NOT_SET")
        for command in ("run", "check"):
            for value in ("", "two words", "schlüssel", "line\nbreak", None):
                env = environment() if value is None else environment(NOT_SET=value)
                done = asyncgen(command, path, cwd=tmp_path, env=env)
                assert done.returncode == 2, done.stderr
                assert "c.yaml:2: backend.api_key_env: the environment variable NOT_SET " in done.stderr
                assert not value or value not in done.stderr
        assert not server.seen
    assert sorted(each.name for each in tmp_path.iterdir()) == ["c.yaml"]


def test_check_and_preview_ask_nobody(tmp_path: Path) -> None:
    server = Faulty()
    server.start()
    server.stop()
    env = without_torch(tmp_path) | {"THE_KEY": CANARY}
    path = write_config(tmp_path, server, {"model_name": "./some/where:x"}, api_key_env="THE_KEY")
    done = asyncgen("check", path, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "model     ./some/where:x (openai)\n" in done.stdout
    assert f"at {server.url}, with the key in THE_KEY; not asked" in done.stdout
    assert "tokens    about " in done.stdout
    assert CANARY not in done.stdout + done.stderr
    assert asyncgen("preview", path, "-n", "1", cwd=tmp_path, env=env).returncode == 0
    far = ("--set", "backend.base_url=http://example.com/v1")
    assert "unencrypted" in asyncgen("check", path, *far, cwd=tmp_path, env=env).stdout
    local = asyncgen("check", path, "--set", "backend.base_url=https://example.com/v1", cwd=tmp_path, env=env)
    assert "unencrypted" not in local.stdout


@pytest.mark.parametrize("command", ["run", "check"])
def test_without_the_package_it_says_how_to_get_it(tmp_path: Path, command: str) -> None:
    program = """
import sys
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "openai" else real(name, *more)
from asyncgen.cli import main
main()
"""
    with Faulty() as server:
        path = write_config(tmp_path, server)
        done = subprocess.run(
            [sys.executable, "-c", program, command, path],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2, done.stderr
    assert "the backend openai needs the package openai" in done.stderr
    assert "'.[openai]'" in done.stderr


def test_a_name_at_a_server_is_never_a_path(tmp_path: Path) -> None:
    """Not even if a folder of that name is there."""
    (tmp_path / MODEL).mkdir()
    (tmp_path / "bedtime-tiny").mkdir()
    for name in (MODEL, "./x/y", "/models/llama", "bedtime-tiny"):
        server = Faulty(models=json.dumps({"data": [{"id": name}]}).encode())
        with server:
            changes = {"num_stories": 2, "output_path": f"{len(name)}.jsonl"}
            done = asyncgen("run", write_config(tmp_path, server, changes), "--model-name", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert {request.body["model"] for request in server.seen} == {name}
        resolved = json.loads((tmp_path / f"{len(name)}.run.json").read_text())
        assert resolved["fingerprint"]["model_name"] == name


def test_another_kind_is_refused_and_another_place_is_noted(tmp_path: Path) -> None:
    with Faulty() as server, Faulty() as other:
        path = write_config(tmp_path, server, {"num_stories": 3})
        assert asyncgen("run", path, cwd=tmp_path).returncode == 0
        done = asyncgen("run", path, "--num-stories", "4", "--set", "backend={kind: echo}", cwd=tmp_path)
        assert (done.returncode, 'backend.kind: was "openai", now "echo"' in done.stderr) == (2, True), done.stderr
        done = asyncgen("run", path, "--num-stories", "4", "--set", f"backend.base_url={other.url}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "backend.base_url: was " in done.stderr


def test_importing_the_backends_does_not_import_the_client() -> None:
    program = (
        "import sys, asyncgen.backends, asyncgen.cli; sys.exit('openai' in sys.modules or 'httpx2' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment(), check=False).returncode == 0

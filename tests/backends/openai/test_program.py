"""``asyncgen run`` against a server: exit codes, kills, what is shown, and the key, which is nowhere."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

import asyncgen
from asyncgen.backends.find import api_key
from asyncgen.config_file import load_config
from tests.backends.openai.faulty import MODEL, Faulty
from tests.backends.openai.helpers import config_for, settings_for, write_config
from tests.programs import ROOT, environment, records, start, without_torch
from tests.programs import asyncgen as program

CANARY = "sk-canaryCANARY0123456789"
VARIABLES = ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "THE_KEY")


def leaks(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]


def test_a_run_that_is_killed_goes_on_to_the_same_stories(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    killed, whole = tmp_path, tmp_path / "whole"
    with Faulty() as server:
        done = program("run", write_config(whole, server), cwd=whole)
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
        done = program("run", "c.yaml", cwd=killed)
        assert done.returncode == 0, done.stderr
    assert "requests, " in done.stderr
    assert "of them again; " in done.stderr
    assert records(killed / "stories.jsonl") == records(whole / "stories.jsonl")
    last = json.loads((killed / "stories.run.json").read_text())["facts"]["last session"]
    assert last["requests"] == len(server.seen)
    assert last["requests tried again"] > 0
    assert last["prompt tokens"] % 7 == 0 < last["prompt tokens"]


@pytest.mark.parametrize(
    ("choose", "models", "code", "said", "key"),
    [
        ("401", None, 69, "api_key_env", None),
        ("401", None, 69, "status 401", "THE_KEY"),
        ("503", None, 69, "no answer from http://127.0.0.1:", "THE_KEY"),
        ("ok", 403, 69, "status 403", "THE_KEY"),
        ("ok", b'{"data": [{"id": "story-telling"}]}', 2, "'story-telling'", None),
    ],
)
def test_how_a_run_ends_that_cannot_go_on(
    tmp_path: Path, choose: str, models: bytes | int | None, code: int, said: str, key: str | None
) -> None:
    server = Faulty(lambda request: "ok" if request.number <= 12 and models is None else choose)
    server.models = server.models if models is None else models
    env = environment(**dict.fromkeys(VARIABLES, CANARY))
    with server:
        quick: dict[str, Any] = {"timeout": 0.2, "patience": 0.7, "api_key_env": key}
        arguments = ("run", write_config(tmp_path, server, **quick), "--log-level", "debug", "--log-file", "log.txt")
        done = program(*arguments, cwd=tmp_path, env=env)
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
        done = program("run", path, "--log-level", "debug", "--log-file", "log.txt", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "(hidden)" in (tmp_path / "stories.run.json").read_text(), "what extra_body has of that kind is hidden too"
    assert all(request.headers["authorization"] == f"Bearer {CANARY}" for request in server.seen)
    assert CANARY not in done.stdout + done.stderr
    assert leaks(tmp_path) == ["c.yaml"], "where this test wrote it"


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_key_that_is_not_there_is_found_before_anything_starts(tmp_path: Path, command: str) -> None:
    with Faulty() as server:
        done = program(command, write_config(tmp_path, server, api_key_env="NOT_SET"), cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert "c.yaml:2: backend.api_key_env: the environment variable NOT_SET is not set" in done.stderr
        assert not server.seen
    assert sorted(each.name for each in tmp_path.iterdir()) == ["c.yaml"]


@pytest.mark.parametrize("value", ["", " ", "two words", "schlüssel", "line\nbreak", "tab\tbed"])
def test_what_is_no_key_is_not_shown(tmp_path: Path, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", value)
    with pytest.raises(asyncgen.ConfigError, match="THE_KEY") as caught:
        api_key(config_for(Faulty(), tmp_path, api_key_env="THE_KEY"))
    assert not value.strip() or value not in str(caught.value)
    monkeypatch.setenv("THE_KEY", f" {CANARY}\n")
    assert api_key(config_for(Faulty(), tmp_path, api_key_env="THE_KEY")) == CANARY


def test_check_and_preview_ask_nobody(tmp_path: Path) -> None:
    server = Faulty()
    server.start()
    server.stop()
    env = without_torch(tmp_path) | {"THE_KEY": CANARY}
    path = write_config(tmp_path, server, {"model_name": "./some/where:x"}, api_key_env="THE_KEY")
    done = program("check", path, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "model     ./some/where:x (openai)\n" in done.stdout
    assert f"at {server.url}, with the key in THE_KEY; not asked" in done.stdout
    assert "tokens    about " in done.stdout
    assert CANARY not in done.stdout + done.stderr
    assert program("preview", path, "-n", "1", cwd=tmp_path, env=env).returncode == 0
    far = ("--set", "backend.base_url=http://example.com/v1")
    assert "unencrypted" in program("check", path, *far, cwd=tmp_path, env=env).stdout
    local = program("check", path, "--set", "backend.base_url=https://example.com/v1", cwd=tmp_path, env=env)
    assert "unencrypted" not in local.stdout


@pytest.mark.parametrize("command", ["run", "check"])
def test_without_the_package_it_says_how_to_get_it(tmp_path: Path, command: str) -> None:
    without = """
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
            [sys.executable, "-c", without, command, path],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2, done.stderr
    assert "the backend openai needs the package openai" in done.stderr
    assert "'.[openai]'" in done.stderr


@pytest.mark.parametrize("name", [MODEL, "./x/y", "/models/llama", "bedtime-tiny"])
def test_a_name_at_a_server_is_never_a_path(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if a folder of that name is there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / MODEL).mkdir()
    with Faulty(models=json.dumps({"data": [{"id": name}]}).encode()) as server:
        path = write_config(tmp_path, server, {"num_stories": 2, "model_name": "somebody's"})
        config = load_config(path, [f"model_name={name}"])
        assert config.model_name == name
        assert anyio.run(asyncgen.run, config).complete
        assert anyio.run(_in_an_engine_of_its_own, config.model_copy(update={"num_stories": 3})).complete
    assert {request.body["model"] for request in server.seen} == {name}
    manifest = json.loads((tmp_path / "stories.run.json").read_text())
    assert manifest["fingerprint"]["model_name"] == name


async def _in_an_engine_of_its_own(config: asyncgen.Config) -> asyncgen.Report:
    async with asyncgen.Engine(config) as engine:
        return await asyncgen.run(config, engine=engine)


def test_a_name_is_a_path_again_where_no_server_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / MODEL).mkdir()
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / MODEL).mkdir()
    path = tmp_path / "below" / "c.yaml"
    path.write_text(f"model_name: {MODEL}\nbackend: {{kind: openai, base_url: 'http://h/v1'}}\n")
    assert load_config(path).model_name == MODEL
    assert load_config(path, ["backend={kind: slots}"]).model_name == str(tmp_path / "below" / MODEL)
    typed = load_config(path, ["backend={kind: slots}", f"model_name={MODEL}"])
    assert typed.model_name == str(tmp_path / MODEL)


def test_another_kind_is_refused_and_another_place_is_noted(tmp_path: Path) -> None:
    with Faulty() as server, Faulty() as other:
        settings = settings_for(server) | {"num_stories": 3, "output_path": tmp_path / "stories.jsonl"}
        assert anyio.run(asyncgen.run, asyncgen.Config.model_validate(settings)).complete
        settings["num_stories"] = 4
        with pytest.raises(asyncgen.ResumeRefused, match=r'backend\.kind: was "openai", now "echo"'):
            anyio.run(asyncgen.run, asyncgen.Config.model_validate(settings | {"backend": {"kind": "echo"}}))
        moved = asyncgen.Config.model_validate(settings | {"backend": settings["backend"] | {"base_url": other.url}})
        report = anyio.run(asyncgen.run, moved)
        assert report.complete
        assert any("backend.base_url: was " in notice for notice in report.notices)


def test_importing_the_backends_does_not_import_the_client() -> None:
    program = (
        "import sys, asyncgen.backends, asyncgen.cli; sys.exit('openai' in sys.modules or 'httpx2' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment(), check=False).returncode == 0

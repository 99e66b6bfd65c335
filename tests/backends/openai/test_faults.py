"""Whatever a server does wrong, a run has the stories that it has without, or it stops, says why, and goes on later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import asyncgen
from asyncgen.backends.openai import client as connection
from asyncgen.backends.openai import running
from asyncgen.errors import CompletionFailed, ModelError, ServerFailed
from asyncgen.report import Report
from tests.backends.openai.faulty import FAULTS, PASSING, Faulty, Request
from tests.backends.openai.helpers import config_for
from tests.programs import records

Chooser = Callable[[Request], str]


def made(folder: Path) -> list[dict[str, object]]:
    return records(folder / "stories.jsonl") + records(folder / "stories.rejected.jsonl")


def go(server: Faulty, folder: Path, changes: dict[str, object] | None = None, **backend: object) -> Report:
    config = config_for(server, folder, **backend).model_copy(update=changes or {})
    return anyio.run(asyncgen.run, config)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with Faulty() as server:
        assert go(server, folder).complete
    found = made(folder)
    assert len(found) == 30
    return found


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_changes_no_story(tmp_path: Path, undisturbed: list[dict[str, object]], fault: str) -> None:
    """Every third request fails so, at its first try."""
    with Faulty(lambda request: fault if request.number % 3 == 0 and not request.tries else "ok") as server:
        report = go(server, tmp_path)
    assert report.complete
    assert made(tmp_path) == undisturbed
    assert report.snapshot.tries == len(server.seen)
    assert report.snapshot.tried_again == len(server.seen) - 30 > 0
    assert report.snapshot.prompt_tokens == 7 * 30
    assert report.snapshot.rows_running == 0


def test_a_server_that_hangs_is_asked_again(tmp_path: Path, undisturbed: list[dict[str, object]]) -> None:
    with Faulty(lambda request: "hang" if request.number in (2, 9) else "ok") as server:
        report = go(server, tmp_path, timeout=0.5)
        server.release.set()
    assert report.complete
    assert made(tmp_path) == undisturbed
    assert report.snapshot.tried_again >= 2
    assert server.left >= 2, "it was told that nobody waits"


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(FAULTS), min_size=1, max_size=60))
def test_a_random_script_of_faults_changes_no_story(undisturbed: list[dict[str, object]], script: list[str]) -> None:
    """In the order in which requests come in, whichever they are; enough tries to outlast it."""
    usage = "no usage" in script

    def choose(request: Request) -> str:
        return script[request.number - 1] if request.number <= len(script) else "ok"

    with TemporaryDirectory() as folder, Faulty(choose) as server:
        assert go(server, Path(folder), max_retries=len(script)).complete
        found = made(Path(folder))
    for record, expected in zip(found, undisturbed, strict=True):
        if usage and record["tokens_generated"] == 0:
            record["tokens_generated"] = expected["tokens_generated"]
        assert record == expected


def test_a_server_that_is_away_for_a_while_is_waited_for_and_somebody_told(
    tmp_path: Path, undisturbed: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "WORRIED", 0.05)
    told: list[str] = []
    server = Faulty()

    def choose(request: Request) -> str:
        if request.number == 11:
            down.set()
        return "ok"

    async def away() -> None:
        await anyio.to_thread.run_sync(down.wait)
        await anyio.to_thread.run_sync(server.stop)
        await anyio.sleep(0.2)
        await anyio.to_thread.run_sync(server.start)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(away)
            report = await asyncgen.run(config_for(server, tmp_path), notice=told.append)
            assert report.complete

    import threading

    down = threading.Event()
    server.choose = choose
    with server:
        anyio.run(main)
    assert made(tmp_path) == undisturbed
    worries = [line for line in told if "does not answer (" in line]
    assert worries
    assert told.count(f"{server.url} answers again") == len(worries)


@pytest.mark.parametrize("before", [0, 12])
@pytest.mark.parametrize("fault", ["429", "503", "500", "hang", "cut at once"])
def test_without_an_answer_it_stops_says_the_last_error_and_goes_on(
    tmp_path: Path, undisturbed: list[dict[str, object]], fault: str, before: int
) -> None:
    """Nor does it mistake prompts for bad ones while the server says that it is not well."""
    with Faulty(lambda request: "ok" if request.number <= before else fault, models=200) as server:
        server.models = 500 if not before else b"{}"
        quick: dict[str, Any] = {"timeout": 0.15, "patience": 0.4, "max_retries": 1000}
        with pytest.raises(ServerFailed, match=r"no answer from http://127.0.0.1:\d+/v1 for 0.4 s; the last error: "):
            go(server, tmp_path, **quick)
        server.release.set()
        assert not records(tmp_path / "stories.rejected.jsonl")
        assert len(records(tmp_path / "stories.jsonl")) <= before
        server.choose = lambda _: "ok"
        assert go(server, tmp_path).complete
    assert made(tmp_path) == undisturbed


@pytest.mark.parametrize(("status", "said"), [("401", "api_key_env"), ("404", "/v1"), ("307", "redirects")])
def test_what_no_retry_mends_ends_the_run_at_once(
    tmp_path: Path, undisturbed: list[dict[str, object]], status: str, said: str
) -> None:
    with Faulty(lambda request: "ok" if request.number <= 9 else status) as server:
        with pytest.raises(ServerFailed) as caught:
            go(server, tmp_path)
        assert f"status {status}" in caught.value.message
        assert said in str(caught.value).lower() or said == "redirects"
        assert len(server.seen) <= 9 + 8, "those in flight, and no more"
        assert not records(tmp_path / "stories.rejected.jsonl")
        server.choose = lambda _: "ok"
        assert go(server, tmp_path).complete
    assert made(tmp_path) == undisturbed


def test_a_quota_that_is_used_up_ends_it_too(tmp_path: Path) -> None:
    with Faulty(lambda _: "429", finish="quota") as server, pytest.raises(ServerFailed, match="status 429"):
        go(server, tmp_path)


def test_a_server_that_asks_for_more_patience_than_there_is(tmp_path: Path) -> None:
    with Faulty(lambda _: "429 after 3600") as server:
        with pytest.raises(ServerFailed, match="it asks to wait 3,600 s"):
            go(server, tmp_path)
        assert len(server.seen) <= 8


def test_all_wait_when_a_server_asks_for_it(tmp_path: Path, undisturbed: list[dict[str, object]]) -> None:
    """In the second that it asks for it sees none but those that were on their way."""
    from time import monotonic

    at: list[float] = []

    def choose(request: Request) -> str:
        at.append(monotonic())
        return "503 after 1" if request.number == 10 else "ok"

    with Faulty(choose) as server:
        assert go(server, tmp_path).complete
    early = [when for when in at[10:] if when < at[9] + 0.9]
    assert len(early) <= 8, "those in flight"
    assert made(tmp_path) == undisturbed


@pytest.mark.parametrize("status", ["400", "413", "422"])
def test_a_prompt_that_the_server_refuses_is_rejected_alone(tmp_path: Path, status: str) -> None:
    with Faulty(lambda request: status if request.number == 5 else "ok") as server:
        assert go(server, tmp_path).complete
    (rejection,) = records(tmp_path / "stories.rejected.jsonl")
    (reason,) = rejection["reasons"][0]
    assert reason.startswith(f"refused: status {status}")
    assert len(rejection["reasons"]) == 1, "another attempt would not differ"
    assert len(records(tmp_path / "stories.jsonl")) == 30


def test_what_may_be_the_prompts_own_fault_is_tried_only_so_often(tmp_path: Path) -> None:
    """All that is asked about one prompt fails with 500: its attempts are errors, and nobody else notices."""
    first: list[str] = []

    def choose(request: Request) -> str:
        asked = request.body["messages"][-1]["content"]
        first.append(asked)
        return "500" if asked == first[0] else "ok"

    with Faulty(choose) as server:
        report = go(server, tmp_path, max_retries=2)
    assert report.complete
    (rejection,) = records(tmp_path / "stories.rejected.jsonl")
    assert [len(reasons) for reasons in rejection["reasons"]] == [1, 1, 1]
    assert rejection["reasons"][0][0] == "server: 3 tries, the last one: status 500 (Internal Server Error): no: "[:-2]
    assert sum(asked == first[0] for asked in first) == 9, "three tries of three attempts"


@pytest.mark.parametrize("status", ["500", "403"])
def test_one_prompt_that_always_fails_stops_nobody(tmp_path: Path, status: str) -> None:
    """Not even where it is the last that is asked."""
    last: list[str] = []

    def choose(request: Request) -> str:
        if request.number == 30:
            last.append(request.body["messages"][-1]["content"])
        return status if last and request.body["messages"][-1]["content"] == last[0] else "ok"

    with Faulty(choose) as server:
        report = go(server, tmp_path, {"num_stories": 29, "window": 30}, max_retries=1)
    assert report.complete


@pytest.mark.parametrize("status", ["500", "502", "403"])
def test_a_server_that_fails_at_everything_and_says_that_it_is_well(
    tmp_path: Path, undisturbed: list[dict[str, object]], status: str
) -> None:
    """As a gateway does whose model is away: nothing is rejected for it."""
    with Faulty(lambda request: "ok" if request.number <= 5 else status) as server:
        with pytest.raises(ServerFailed, match=f"the last error: status {status}"):
            go(server, tmp_path, max_retries=0, timeout=1, patience=1.5)
        assert not records(tmp_path / "stories.rejected.jsonl")
        server.choose = lambda _: "ok"
        assert go(server, tmp_path).complete
    assert made(tmp_path) == undisturbed


def test_refusals_that_differ_in_their_words_end_a_run_with_one_of_them(tmp_path: Path) -> None:
    server = Faulty(lambda request: "ok" if request.number <= 9 else "401")
    with server, pytest.raises(ServerFailed, match=r"status 401 .*request \d+"):
        go(server, tmp_path)
    assert not records(tmp_path / "stories.rejected.jsonl")


@pytest.mark.parametrize("finish", ["content_filter", "tool_calls"])
def test_other_ends_are_errors_of_that_attempt(tmp_path: Path, finish: str) -> None:
    with Faulty(lambda request: finish if request.number % 5 == 0 else "ok") as server:
        report = go(server, tmp_path)
    assert report.complete
    assert report.snapshot.reasons["server"] >= 6
    assert report.snapshot.tried_again == 0


def test_an_answer_without_end_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MOST_BYTES", 1 << 20)
    with Faulty(lambda request: "endless" if request.number in (3, 4) else "ok") as server:
        report = go(server, tmp_path)
    assert report.complete
    assert report.snapshot.tried_again == 2


def test_tokens_that_nobody_counted_are_none(tmp_path: Path) -> None:
    with Faulty(lambda _: "no usage") as server:
        told: list[str] = []
        config = config_for(server, tmp_path)
        report = anyio.run(lambda: asyncgen.run(config, notice=told.append))
    assert sum("how many tokens" in each for each in told) == 1
    assert report.snapshot.tokens == report.snapshot.generated == 0
    assert {record["tokens_generated"] for record in records(tmp_path / "stories.jsonl")} == {0}


def test_there_are_as_many_requests_as_the_server_stands(tmp_path: Path, undisturbed: list[dict[str, object]]) -> None:
    def choose(request: Request) -> str:
        return "together" if request.number > 4 else "ok"

    with Faulty(choose, most=5) as server:
        report = go(server, tmp_path, max_retries=0)
    assert report.complete
    assert made(tmp_path) == undisturbed
    assert server.most_in_flight == 5, "as many as it takes, and 429 is no prompt's fault"
    assert 1 <= report.snapshot.in_flight_limit <= 8
    with Faulty(choose) as server, TemporaryDirectory() as folder:
        go(server, Path(folder))
        assert 4 < server.most_in_flight <= 8, "and never more than the rows"


def test_what_is_found_out_before_anything_is_asked(tmp_path: Path) -> None:
    server = Faulty()
    server.start()
    server.stop()
    with pytest.raises(ServerFailed, match="no connection: Connection refused"):
        go(server, tmp_path)
    for status in (401, 403):
        with Faulty(models=status) as server, pytest.raises(ServerFailed, match=f"status {status}"):
            go(server, tmp_path)
    with Faulty(models=b'{"data": [{"id": "story-tell"}]}') as server, pytest.raises(ModelError, match="story-tell"):
        go(server, tmp_path)
    assert not records(tmp_path / "stories.jsonl")
    for nothing_said in (404, 405, 500, 503, 429):
        with Faulty(models=nothing_said) as server, TemporaryDirectory() as folder:
            assert go(server, Path(folder), {"num_stories": 2}).complete


def test_an_engine_that_is_asked_to_wait_for_an_hour_says_so_and_tries_again(tmp_path: Path) -> None:
    """Nobody waits for the hour, and nobody hangs; the server is left alone for as long as our patience."""

    async def main(server: Faulty) -> None:
        async with asyncgen.Engine(config_for(server, tmp_path, timeout=0.5, patience=2)) as engine:
            for _ in range(3):
                with pytest.raises(CompletionFailed, match=r"it asks to wait 3,600 s"):
                    await engine.generate("Tell me", timeout=60)
            assert len(server.seen) == 1
            with anyio.fail_after(60):
                while True:
                    try:
                        assert (await engine.generate("Tell me", timeout=60)).text
                    except CompletionFailed:
                        await anyio.sleep(0.2)
                    else:
                        break
            assert len(server.seen) == 2

    with Faulty(lambda request: "429 after 3600" if request.number == 1 else "ok") as server:
        anyio.run(main, server)


@pytest.mark.parametrize("fault", ["401", "403", "404", "hang", "500", "429"])
def test_an_engine_outlives_what_ends_a_run(tmp_path: Path, fault: str) -> None:
    """Who asked is told; others are answered, then and later."""

    async def main(server: Faulty) -> None:
        quick = {"timeout": 0.3, "patience": 0.8, "max_retries": 1000}
        async with asyncgen.Engine(config_for(server, tmp_path, **quick)) as engine:
            for _ in range(2):
                with pytest.raises(CompletionFailed, match="server: "):
                    await engine.generate("Tell me")
            server.choose = lambda _: "ok"
            server.release.set()
            assert (await engine.generate("Tell me")).text

    with Faulty(lambda _: fault) as server:
        anyio.run(main, server)

"""Functions of the user's as sources: called at an item, checked, fetched ahead, closed where they ran."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

from asyncgen.config import Config
from asyncgen.errors import ConfigError, DataError
from asyncgen.functions import find_function
from asyncgen.prompts import Sources, check_inputs, input_files, open_source
from asyncgen.prompts.ahead import AHEAD

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_thread_of_ours_is_left")]

FUNCTIONS = """
import asyncio

log = []
gate = asyncio.Event()
closes = None  # what happens when a function is closed


async def count(start: int, words=("a", "b")):
    log.append(start)
    while True:
        log.append("made")
        yield f"{words[start % len(words)]} {start}"
        start += 1


async def replayed():
    for k in range(200):
        yield {"prompt": f"item {k}", "selected_words": ["moon"], "more": object()}


async def gated(start: int):
    yield "first"
    yield "second"
    await gate.wait()
    yield "third"


async def odd(start: int, at: int, kind: str):
    items = {"number": 7, "empty": " ", "bytes": {"prompt": b"x"}, "neither": {"text": "x"}, "nan": {"prompt": float}}
    for k in range(start, 100):
        if k == at and kind == "cancelled":
            raise asyncio.CancelledError
        if k == at and kind not in items:
            raise ValueError(kind)
        yield items[kind] if k == at else "x"


async def closing(start: int, wait: bool = False):
    log.append(asyncio.current_task())
    try:
        for k in range(start, 300):
            if wait and k == 5:
                await gate.wait()
            yield f"item {k}"
    finally:
        await asyncio.sleep(0)
        log.append(asyncio.current_task())
        if closes:
            raise RuntimeError(closes)


async def hanging(start: int):
    try:
        while True:
            yield "x"
    finally:
        await asyncio.Event().wait()


def plain(start: int):
    yield "x"


async def coroutine(start: int):
    return "x"


async def strict(start: int, *, kind: str):
    yield kind


class Class:
    pass
"""

Make = Callable[..., Config]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def make(tmp_path: Path) -> Make:
    (tmp_path / "prompts.py").write_text(FUNCTIONS)

    def make(function: str, _more: tuple[dict[str, Any], ...] = (), **parameters: Any) -> Config:
        source = {"kind": "python", "function": f"{tmp_path}/prompts.py:{function}", "parameters": parameters}
        return Config.model_validate({"sources": [source, *_more]})

    return make


def inside(config: Config) -> dict[str, Any]:
    """The globals of the function's module."""
    assert config.sources is not None
    assert config.sources[0].kind == "python"
    return find_function(config.sources[0].function, "where").__globals__


async def texts(source: Sources, start: int, end: int) -> list[str]:
    got: list[str] = []
    while start + len(got) < end:
        prompts = await source.take(start + len(got), end - start - len(got))
        if not prompts:
            break
        assert [prompt.index for prompt in prompts] == [prompt.position for prompt in prompts]
        got += [str(prompt.messages[-1]["content"]) for prompt in prompts]
    return got


async def test_it_begins_at_an_item_and_gets_its_parameters(make: Make) -> None:
    config = make("count", words=["c", "d", "e"])
    async with open_source(config) as source:
        assert source.count is None
        assert await texts(source, 7, 200) == [f"{'cde'[k % 3]} {k}" for k in range(7, 200)]
        assert await texts(source, 3, 5) == ["c 3", "d 4"]
    assert [each for each in inside(config)["log"] if each != "made"] == [7, 3]


async def test_without_start_it_is_replayed_with_a_notice(make: Make) -> None:
    told: list[str] = []
    async with open_source(make("replayed"), told.append) as source:
        assert await texts(source, 150, 500) == [f"item {k}" for k in range(150, 200)]
        assert await source.take(200, 1) == ()
        assert await source.take(200, 1) == ()
    assert len(told) == 1
    assert told[0].endswith("has no parameter `start`, its first 150 items are made again and let go")
    async with open_source(make("replayed"), told.append) as source:
        (prompt,) = await source.take(0, 1)
    assert (prompt.selected_words, prompt.source, len(told)) == ({"word1": "moon"}, "python", 1)


async def test_no_more_is_fetched_ahead_than_the_buffer_holds(make: Make) -> None:
    config = make("count")
    async with open_source(config) as source:
        before = 0
        for taken in (1, 2, 40, 300):
            await texts(source, before, taken)
            before = taken
            await wait_all_tasks_blocked()
            assert inside(config)["log"].count("made") == taken + AHEAD


async def test_what_is_there_is_given_without_waiting_for_more(make: Make) -> None:
    config = make("gated")
    async with open_source(config) as source:
        with anyio.fail_after(10):
            assert await texts(source, 0, 2) == ["first", "second"]
            assert source.waited["python"] < 10
            async with anyio.create_task_group() as group:
                group.start_soon(source.take, 2, 32)
                await wait_all_tasks_blocked()
                before = source.waited["python"]
                while source.waited["python"] == before:  # it counts while it goes on
                    await checkpoint()
                inside(config)["gate"].set()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("number", 'found a number; an item is a text, or a mapping with "prompt" or "messages"'),
        ("empty", "prompt is an empty text; it must be a text"),
        ("bytes", "not JSON: TypeError: Object of type bytes is not JSON serializable"),
        ("neither", 'found the keys "text"; exactly one of "prompt" and "messages" is allowed'),
        ("nan", "not JSON: TypeError: Object of type type is not JSON serializable"),
        ("raised", "the function raised ValueError: raised"),
        ("cancelled", "the function raised CancelledError"),
    ],
)
async def test_a_failure_names_its_item_when_those_before_it_are_taken(make: Make, kind: str, message: str) -> None:
    config = make("odd", at=70, kind=kind)
    async with open_source(config) as source:
        assert len(await texts(source, 3, 70)) == 67
        for _ in range(2):
            with anyio.fail_after(10), pytest.raises(DataError) as caught:
                await source.take(70, 5)
            assert "sources[0].function: " in str(caught.value)
            assert "item 70: " in str(caught.value)
            assert message in str(caught.value)
        assert source.to_mend == "code of sources[0]"
        assert (caught.value.__cause__ is None) == ("found" in message or "prompt is" in message)


@pytest.mark.parametrize("way", ["ended", "left", "raised", "cancelled", "cancelled while it waits", "jumped"])
async def test_it_is_closed_in_its_own_task_however_it_is_left(make: Make, way: str) -> None:
    config = make("closing", wait=way.endswith("waits"))
    log = inside(config)["log"]

    async def leave(source: Sources) -> None:
        await source.take(0, 1)
        if way == "ended":
            assert len(await texts(source, 1, 400)) == 299
        elif way == "raised":
            raise KeyError("mine")
        elif way == "jumped":
            assert await texts(source, 200, 202) == ["item 200", "item 201"]
        elif way.startswith("cancelled"):
            await wait_all_tasks_blocked()
            scope.cancel()
            await checkpoint()

    with anyio.CancelScope() as scope, pytest.raises(KeyError, match="mine") if way == "raised" else nullcontext():
        async with open_source(config) as source:
            await leave(source)
    assert len(log) == (4 if way == "jumped" else 2)
    assert log[0] is log[1] is not asyncio.current_task()
    assert log[-1] is log[-2]


async def test_a_cleaning_up_without_end_is_cut_short(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncgen.prompts.ahead.CLOSING_SECONDS", 0.05)
    with anyio.fail_after(30):
        async with open_source(make("hanging"), str) as source:
            await source.take(0, 1)
            await wait_all_tasks_blocked()
            await texts(source, 0, 1)  # going back closes the one and opens another


async def test_a_cleaning_up_that_fails_is_told(make: Make) -> None:
    config = make("closing")
    inside(config)["closes"] = "no mop"
    told: list[str] = []
    async with open_source(config, told.append) as source:
        await source.take(0, 1)
    assert len(told) == 1
    assert told[0].endswith("prompts.py:closing: cleaning up failed: RuntimeError: no mop")


@pytest.mark.parametrize(
    ("function", "parameters", "message"),
    [
        ("plain", {}, "is a plain generator function; expected is `async def function(start: int, ...)` with `yield`"),
        ("coroutine", {}, "is a coroutine function, which returns; expected is"),
        ("Class", {}, "is a class; expected is"),
        ("strict", {}, "does not take the configured parameters (none): missing a required argument: 'kind'"),
        ("strict", {"kind": "x", "n": 1}, "(kind, n): got an unexpected keyword argument 'n'; its signature is (start"),
        ("count", {"start": 1}, "`start` is given by asyncgen; it must not be among the parameters"),
        ("missing", {}, "there is no 'missing' in "),
    ],
)
async def test_refusals_come_before_anything_is_called(
    make: Make, function: str, parameters: dict[str, Any], message: str
) -> None:
    config = make(function, **parameters)
    with pytest.raises(ConfigError) as caught:
        check_inputs(config)
    assert str(caught.value).startswith("sources[0].function: ")
    assert message in str(caught.value)
    with pytest.raises(ConfigError) as again:
        async with open_source(config):
            raise AssertionError("nothing may be handed out")
    assert str(again.value) == str(caught.value)


def test_what_check_inputs_says_of_several(make: Make, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n' * 3)
    more = ({"kind": "jsonl", "path": tmp_path / "p.jsonl", "weight": 4}, {"kind": "template", "name": "own"})
    function, lines, template = check_inputs(make("replayed", more))
    assert (function.kind, function.name, function.weight, function.takes_start) == ("python", "python", 1, False)
    assert function.function.endswith("prompts.py:replayed")
    assert (lines.kind, lines.name, lines.weight, lines.prompts) == ("jsonl", "jsonl", 4, 3)
    assert (template.kind, template.name, template.prompts) == ("template", "own", None)
    assert template.words > 3


def test_the_code_is_an_input_and_its_place_is_not(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prompts.py"
    assert input_files(make("count")) == {"function of sources[0]": "count", "code of sources[0]": file}
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "prompts", raising=False)
    named = Config.model_validate({"sources": [{"kind": "python", "function": "prompts:count"}]})
    assert input_files(named) == {"function of sources[0]": "prompts:count", "code of sources[0]": file}

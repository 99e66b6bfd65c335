"""Code of the user's that ends the program, or raises what nobody catches: one message, and never a wait for ever."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.programs import asyncgen

pytestmark = pytest.mark.timeout(300)

LONG = "x" * 300

SOURCE = """
import asyncio, sys

class Mute(BaseException):
    def __str__(self): raise SystemExit

class Odd(dict):
    def items(self): raise KeyboardInterrupt

class Text(str):
    def strip(self): raise SystemExit
    encode = __str__ = __format__ = strip

async def items(start: int):
    while True:
        if start == 7:
            {body}
        yield "a moon" if start != 8 else "never"
        start += 1
"""


def config(folder: Path, more: str = "") -> None:
    source = "{kind: python, function: 'mine.py:items'}"
    (folder / "c.yaml").write_text(f"backend: {{kind: echo}}\nnum_stories: 20\nsources: [{source}]\n{more}")


@pytest.mark.parametrize(
    "code", ["import sys; sys.exit(0)", "raise KeyboardInterrupt", "class E(BaseException): 0\nraise E"]
)
@pytest.mark.parametrize("command", [["run"], ["check", "--json"], ["preview"]])
def test_a_module_that_raises_anything_is_one_error(tmp_path: Path, code: str, command: list[str]) -> None:
    config(tmp_path)
    (tmp_path / "mine.py").write_text(code)
    done = asyncgen(*command, "c.yaml", cwd=tmp_path, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "importing" in done.stdout + done.stderr
    assert "sources[0].function" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("sys.exit('enough')", "the function raised SystemExit: enough"),
        ("raise KeyboardInterrupt", "the function raised KeyboardInterrupt"),
        ("raise GeneratorExit", "the function raised GeneratorExit"),
        ("raise Mute", "the function raised Mute"),
        ("raise BaseExceptionGroup('two', [SystemExit(1), KeyError()])", "the function raised BaseExceptionGroup: two"),
        ("yield Odd(prompt='x')", "reading it raised KeyboardInterrupt"),
    ],
)
def test_a_source_that_raises_anything_is_an_error_at_its_item(tmp_path: Path, body: str, said: str) -> None:
    config(tmp_path)
    (tmp_path / "mine.py").write_text(SOURCE.format(body=body))
    for command in ("run", "preview"):
        done = asyncgen(command, "c.yaml", *(["-n", "12"] if command == "preview" else []), cwd=tmp_path, timeout=60)
        assert done.returncode == 2, done.stderr
        assert "item 7: " in done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert len((tmp_path / "stories.jsonl").read_text().splitlines()) == 7


def test_texts_with_methods_of_their_own_are_texts(tmp_path: Path) -> None:
    config(tmp_path)
    (tmp_path / "mine.py").write_text(SOURCE.format(body="yield Text('a sun'); start += 1"))
    done = asyncgen("run", "c.yaml", cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_check_that_exits_fails_that_text(tmp_path: Path) -> None:
    config(tmp_path, "validation: {functions: [{function: 'checks.py:check'}]}\nmax_attempts: 1\n")
    (tmp_path / "mine.py").write_text(SOURCE.format(body="pass"))
    (tmp_path / "checks.py").write_text("import sys\ndef check(c):\n    c.prompt.index == 3 and sys.exit(1)\n")
    done = asyncgen("run", "c.yaml", cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    (record,) = map(json.loads, (tmp_path / "stories.rejected.jsonl").read_text().splitlines())
    assert "SystemExit: 1" in str(record)


STUCK = """
import anyio, asyncio, threading, time

async def forever(start: int):
    while True:
        try:
            yield f"a moon {start}"
            start += 1
            if start > 30:
                await asyncio.sleep(3600)
        except BaseException:
            while True:
                try:
                    await asyncio.sleep(3600)
                except BaseException:
                    pass

async def in_thread(start: int):
    while start < 25:
        yield f"a moon {start}"
        start += 1
    await anyio.to_thread.run_sync(time.sleep, 3600)

async def with_thread(start: int):
    threading.Thread(target=time.sleep, args=[3600], name="mine").start()
    while True:
        yield f"a moon {start}"
        start += 1

async def check(c):
    while c.prompt.index == 19:
        try:
            await asyncio.sleep(3600)
        except BaseException:
            pass
"""


@pytest.mark.parametrize("function", ["forever", "in_thread", "with_thread"])
def test_a_finished_run_leaves_behind_what_does_not_end(tmp_path: Path, function: str) -> None:
    source = f"{{kind: python, function: 'mine.py:{function}'}}"
    (tmp_path / "c.yaml").write_text(f"backend: {{kind: echo}}\nnum_stories: 20\nsources: [{source}]\n")
    (tmp_path / "mine.py").write_text(STUCK)
    done = asyncgen("run", "c.yaml", cwd=tmp_path, timeout=90)
    assert done.returncode == 0, done.stderr
    assert "left behind: t" in done.stderr
    assert "Traceback" not in done.stderr
    assert asyncgen("verify", "c.yaml", cwd=tmp_path).returncode == 0


def test_a_check_that_swallows_its_end_is_left_behind(tmp_path: Path) -> None:
    config(tmp_path, "validation: {functions: [{function: 'mine.py:check', timeout: 1}]}\nmax_attempts: 1\n")
    (tmp_path / "mine.py").write_text(STUCK + SOURCE.format(body="pass"))
    done = asyncgen("run", "c.yaml", cwd=tmp_path, timeout=90)
    assert done.returncode == 0, done.stderr
    assert "left behind: t" in done.stderr
    assert "check: took longer than 1 s" in (tmp_path / "stories.rejected.jsonl").read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        (LONG,),
        ("verify", LONG),
        ("init", f"{LONG}.yaml"),
        ("run", "--set", "backend.kind=echo", "--log-file", LONG),
        ("run", "--set", f"model_name={LONG}"),
        ("run", "--set", "backend.kind=echo", "--set", f"vocabulary_path={LONG}"),
        ("run", "--set", "backend.kind=echo", "--set", f"validation.functions=[{{function: '{LONG}.py:f'}}]"),
    ],
)
def test_a_name_that_is_too_long_for_any_file_is_an_ordinary_mistake(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    done = asyncgen(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert LONG in done.stderr
    assert "Traceback" not in done.stderr

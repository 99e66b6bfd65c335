"""What a person sees: bars in a terminal, plain lines elsewhere, nothing torn."""

from __future__ import annotations

import fcntl
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from asyncgen.dashboard import bars, choose_view, plain_lines, tell
from asyncgen.dashboard.figures import figures
from asyncgen.metrics import Snapshot
from tests.programs import asyncgen, environment
from tests.terminal import Terminal
from tests.test_figures import SNAPSHOT

pytestmark = pytest.mark.anyio

RUN = """
import logging, sys
from contextlib import nullcontext
from pathlib import Path
import anyio, asyncgen
from asyncgen import logs
from asyncgen.dashboard import choose_view, tell

settings = ["backend={kind: echo, seconds_per_batch: 0.03, bad_share: 0.2}", "generation.batch_size=8"]
config = asyncgen.load_config(None, [*settings, *sys.argv[2:]])
tell("the beginning")
with nullcontext() if sys.argv[1] == "silent" else logs.configure(sys.argv[1], Path("run.log")):
    report = anyio.run(lambda: asyncgen.run(config, watch=choose_view(), notice=tell))
tell(report.summary())
"""
"""A run with the view that its terminal gets, and log records of a level between the bars."""

BAR = re.compile(r"^ *\d+%\|.*\| \d+/200( stories \[\d\d:\d\d(, (about .* left|nearly done))?\])?$")
FIGURE = re.compile(r"^(generator|limit|waiting|accepted|refused|memory) {2,}\S")


class Flow:
    def snapshot(self) -> Snapshot:
        return SNAPSHOT


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def run_in_terminal(cwd: Path, level: str = "silent", **options: object) -> Terminal:
    return Terminal(["-c", RUN, level, "num_stories=200"], cwd, **options)  # type: ignore[arg-type]


async def test_plain_lines_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    with anyio.move_on_after(0.2):
        await plain_lines(out, every=0.05)(Flow())
    line = out.getvalue().splitlines()[0]
    assert line.startswith("60 of 200 stories, about 5 min 1 s left | generator busy 97%, starved 0%, 80 tokens/s now")
    assert "refused missing words 20, too short 10 | memory " in line


async def test_a_view_whose_terminal_is_gone_ends_in_peace() -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(5, "Input/output error")

    with anyio.fail_after(30):
        await choose_view(Gone(), every=0.01)(Flow())
    tell("nobody hears this", Gone())


async def test_bars_show_the_goal_the_figures_and_clean_up() -> None:
    out = io.StringIO()
    with anyio.move_on_after(0.4):
        await bars(out)(Flow())
    shown = out.getvalue()
    assert "60/200" in shown
    for figure in figures(SNAPSHOT):
        assert figure.items[0] in shown


@pytest.mark.parametrize("columns", [20, 60, 100, 200])
def test_bars_fit_their_terminal_and_log_records_do_not_tear_them(tmp_path: Path, columns: int) -> None:
    terminal = run_in_terminal(tmp_path, "debug", columns=columns, rows=40)
    most_lines = 0

    def look() -> None:
        nonlocal most_lines
        if not terminal.raw.endswith(b"\r"):
            return  # in the middle of a redraw, when some lines are new and some are not yet
        shown = [line for line in terminal.lines if FIGURE.match(line)]
        most_lines = max(most_lines, len(shown))
        assert len({line.split()[0] for line in shown}) == len(shown), "\n".join(terminal.lines)
        assert sum("%|" in line for line in terminal.lines) <= 1, "\n".join(terminal.lines)

    terminal.follow(each=look)
    assert terminal.wait() == 0
    assert most_lines >= (3 if columns == 200 else 5)
    everything = terminal.raw.decode()
    assert "committed" in everything.replace("\r\n", "")
    bar = [at for at, line in enumerate(terminal.lines) if BAR.match(line)]
    assert len(bar) == 1
    assert "200/200" in terminal.lines[bar[0]]
    assert not [line for line in terminal.lines if FIGURE.match(line) and not line.startswith("accepted  ")]
    assert terminal.lines[bar[0] + 1].startswith(("complete: 200 of 200", "INFO ", "DEBUG "))
    kept = (tmp_path / "run.log").read_text(encoding="utf-8")
    for line in terminal.lines:  # each record stands there as it was written, without remnants of a bar
        if line.startswith(("INFO ", "DEBUG ")):
            assert any(line in record for record in kept.splitlines()), line
    assert re.search(
        r"^\d{4}-\d\d-\d\d .* INFO asyncgen.session: .*stories.jsonl begins at index 0", kept, re.MULTILINE
    )
    assert "DEBUG asyncgen.packing: index" in kept


def test_a_terminal_may_change_its_size(tmp_path: Path) -> None:
    settings = ["backend={kind: echo, seconds_per_batch: 0.03}", "generation.batch_size=8", "num_stories=1000000"]
    arguments = ["-m", "asyncgen", "run", *(part for each in settings for part in ("--set", each))]
    terminal = Terminal(arguments, tmp_path, columns=120, rows=30)  # it runs until somebody has seen enough

    def drawn(columns: int) -> bool:
        labels = [line.split()[0] for line in terminal.lines if FIGURE.match(line)]
        bar = [line for line in terminal.lines if "%|" in line]
        return [len(line) for line in bar] == [columns - 1] and labels.count("generator") == 1

    terminal.follow(lambda: drawn(120))
    for columns, rows in ((60, 30), (30, 12), (140, 40)):
        terminal.resize(columns, rows)
        terminal.follow(lambda columns=columns: drawn(columns))  # type: ignore[misc]
        assert drawn(columns), "\n".join(terminal.lines)
        assert max(map(len, terminal.lines)) < columns
    terminal.process.send_signal(signal.SIGINT)
    terminal.follow()
    assert terminal.wait() == 130
    assert len([line for line in terminal.lines if "/1000000" in line]) == 1
    assert not [line for line in terminal.lines if line.startswith(("generator", "waiting", "memory"))]


def test_few_rows_take_few_lines(tmp_path: Path) -> None:
    terminal = run_in_terminal(tmp_path, columns=60, rows=6)
    seen: set[str] = set()
    terminal.follow(each=lambda: seen.update(line.split()[0] for line in terminal.lines if FIGURE.match(line)))
    assert terminal.wait() == 0
    assert {"generator", "limit", "waiting"} <= seen
    assert "complete: 200 of 200" in terminal.raw.decode()


@pytest.mark.parametrize(("columns", "env"), [(0, {}), (12, {}), (90, {"CI": "true"}), (90, {"TERM": "dumb"})])
def test_bars_are_for_terminals_that_take_them(tmp_path: Path, columns: int, env: dict[str, str]) -> None:
    terminal = run_in_terminal(tmp_path, columns=columns, env=env)
    terminal.follow()
    assert terminal.wait() == 0
    assert b"\x1b" not in terminal.raw
    assert b"%|" not in terminal.raw
    assert b"complete: 200 of 200 stories" in terminal.raw


@pytest.mark.parametrize(("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)])
def test_colour_is_an_accent_that_can_be_switched_off(tmp_path: Path, env: dict[str, str], coloured: bool) -> None:
    terminal = run_in_terminal(tmp_path, env=env)
    terminal.follow()
    assert terminal.wait() == 0
    assert "200/200" in terminal.raw.decode()
    assert (re.search(rb"\x1b\[[\d;]*m", terminal.raw) is not None) == coloured


def test_a_terminal_without_unicode_gets_ascii(tmp_path: Path) -> None:
    terminal = run_in_terminal(tmp_path, env={"PYTHONIOENCODING": "ascii", "NO_COLOR": "1"})
    terminal.follow()
    assert terminal.wait() == 0
    assert "|####" in terminal.raw.decode("ascii")


def test_a_run_outlives_its_terminal(tmp_path: Path) -> None:
    terminal = run_in_terminal(tmp_path)
    terminal.follow(lambda: any(line.startswith("memory") for line in terminal.lines))
    terminal.vanish()
    assert terminal.process.wait(60) == 0
    assert len((tmp_path / "stories.jsonl").read_bytes().splitlines()) == 200


def run_held(cwd: Path, *more: str) -> Terminal:
    """A run that writes more than a terminal takes which nobody reads, as if it was held with Ctrl-S."""
    settings = ["backend={kind: echo, seconds_per_batch: 0.03, bad_share: 0.2}", "generation.batch_size=8", *more]
    sets = [part for each in settings for part in ("--set", each)]
    return Terminal(["-m", "asyncgen", "run", *sets, "--num-stories", "400", "--log-level", "debug"], cwd)


def is_complete(cwd: Path) -> bool:
    manifest = cwd / "stories.run.json"
    return manifest.exists() and '"state": "complete"' in manifest.read_text()


def test_a_terminal_that_is_held_holds_up_only_the_last_words(tmp_path: Path) -> None:
    terminal = run_held(tmp_path)
    wait_until(lambda: is_complete(tmp_path))
    assert len((tmp_path / "stories.jsonl").read_bytes().splitlines()) == 400
    assert terminal.process.poll() is None
    terminal.follow()
    assert terminal.wait() == 0
    assert len(terminal.raw) > 100_000, "more than the kernel keeps"
    bar = [at for at, line in enumerate(terminal.lines) if "400/400" in line]
    assert len(bar) == 1
    assert [line for line in terminal.lines[bar[0] :] if line.startswith("complete: 400 of 400")]


def test_last_words_that_wait_for_a_terminal_are_no_standstill(tmp_path: Path) -> None:
    terminal = run_held(tmp_path, "watchdog=1")
    wait_until(lambda: is_complete(tmp_path))
    time.sleep(4)  # that of the watchdog, and of a process that is to end
    assert terminal.process.poll() is None
    terminal.follow()
    assert terminal.wait() == 0


def test_a_pipe_that_nobody_reads_holds_up_nothing(tmp_path: Path) -> None:
    """Not even the end of the process, for more than a few seconds."""
    ours, theirs = os.pipe()
    fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 4096)
    settings = ("--set", "backend={kind: echo, bad_share: 0.2}", "--num-stories", "400", "--log-level", "debug")
    command = [sys.executable, "-m", "asyncgen", "run", *settings, "--set", "watchdog=20"]
    run = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=theirs)
    try:
        os.close(theirs)
        wait_until(lambda: is_complete(tmp_path) or run.poll() is not None)
        assert run.wait(60) == 0
        assert len((tmp_path / "stories.jsonl").read_bytes().splitlines()) == 400
        assert b"complete: 400" not in os.read(ours, 8192), "nobody read it, and it was full"
    finally:
        run.kill()
        run.wait()
        os.close(ours)


async def test_what_is_told_through_a_pipe_comes_whole_and_in_order() -> None:
    ours, theirs = os.pipe()
    told = [f"{number} {'x' * 100}" for number in range(5000)]
    with os.fdopen(theirs, "w") as out, os.fdopen(ours) as reader:
        for text in told:
            tell(text, out)  # on the loop, and nobody reads
        assert [reader.readline().rstrip() for _ in told] == told


@pytest.mark.parametrize("done", [False, True])
def test_a_run_whose_terminal_is_held_can_be_interrupted(tmp_path: Path, done: bool) -> None:
    terminal = run_held(tmp_path)
    stories = tmp_path / "stories.jsonl"
    wait_until(lambda: is_complete(tmp_path) if done else stories.exists() and stories.read_bytes().count(b"\n") > 100)

    def interrupted() -> bool:
        with suppress(ProcessLookupError):
            terminal.process.send_signal(signal.SIGINT)
        return terminal.process.poll() is not None

    wait_until(interrupted)
    assert terminal.wait() in ((0, 130) if done else (130,))  # complete, whoever knew it first


async def test_quiet_is_quiet_and_plain_is_plain() -> None:
    out = io.StringIO()
    with anyio.fail_after(30):
        await choose_view(out, quiet=True)(Flow())
    assert out.getvalue() == ""
    main, end = os.openpty()
    with os.fdopen(end, "w") as terminal, anyio.move_on_after(0.2):
        await choose_view(terminal, plain=True, every=0.05)(Flow())
    shown = os.read(main, 4096).decode()
    os.close(main)
    assert shown.startswith("60 of 200 stories, about")


def test_in_a_pipe_there_are_lines(tmp_path: Path) -> None:
    done = asyncgen(
        "run", "--set", "backend={kind: echo}", "--num-stories", "20", cwd=tmp_path, env=environment(NO_COLOR="")
    )
    assert done.returncode == 0
    assert "\x1b" not in done.stderr
    assert "\r" not in done.stderr

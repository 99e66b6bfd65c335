"""What a person sees: bars in a terminal, plain lines elsewhere, a summary. Views only read snapshots."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path
from types import MappingProxyType

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncgen.dashboard import bars, choose_view, plain_lines, tell
from asyncgen.dashboard.views import figures
from asyncgen.metrics import Snapshot, duration
from asyncgen.report import Report
from tests.programs import environment

pytestmark = pytest.mark.anyio

SNAPSHOT = Snapshot(
    goal=200,
    accepted=60,
    rejected=3,
    accepted_before=10,
    attempts=80,
    accepted_attempts=50,
    first_attempts=60,
    accepted_first=45,
    tokens=8000,
    seconds=100.0,
    busy_seconds=97.0,
    reasons=MappingProxyType({"missing words": 20, "too short": 10}),
    depths=MappingProxyType({"prompts": 5, "in order": 2, "undecided": 7, "window": 256}),
)


class Flow:
    def snapshot(self) -> Snapshot:
        return SNAPSHOT


def test_rates_leave_out_what_earlier_sessions_made() -> None:
    assert SNAPSHOT.new == 50
    assert SNAPSHOT.stories_per_second == 0.5
    assert SNAPSHOT.eta_seconds == 280.0
    assert SNAPSHOT.busy == 0.97
    assert Snapshot().eta_seconds is None
    assert Snapshot(goal=5).tokens_per_second == 0.0


@given(st.integers(0, 99), st.integers(0, 99), st.sampled_from(["a", "b"]), st.sampled_from(["b", "c"]))
def test_snapshots_add_up(one: int, other: int, first: str, second: str) -> None:
    total = Snapshot(goal=one, tokens=one, reasons={first: one}) + Snapshot(
        goal=other, tokens=other, reasons={second: other}
    )
    assert (total.goal, total.tokens) == (one + other, one + other)
    assert sum(total.reasons.values()) == one + other
    assert (Snapshot(goal=None) + Snapshot(goal=3)).goal is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.21, "3.2 s"), (42.4, "42 s"), (200, "3 min 20 s"), (3600, "1 h 00 min"), (18_420, "5 h 07 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


async def test_plain_lines_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    with anyio.move_on_after(0.2):
        await plain_lines(out, every=0.05)(Flow())
    line = out.getvalue().splitlines()[0]
    assert line.startswith("60 of 200 stories, about 4 min 40 s left | generator busy 97%, 80 tokens/s")
    assert "missing words 20, too short 10" in line


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
    for text in figures(SNAPSHOT):
        assert text[:30] in shown


def test_the_summary_says_what_was_made_and_where() -> None:
    text = Report("complete", SNAPSHOT, Path("/x/s.jsonl"), Path("/x/s.rejected.jsonl")).summary()
    assert text.startswith("complete: 60 of 200 stories, 50 of them made now in 1 min 40 s")
    assert "75% of the prompts were accepted at the first attempt" in text
    assert "/x/s.rejected.jsonl (3 failed all attempts)" in text


@pytest.mark.parametrize("columns", [90, 0])
def test_in_a_real_terminal_bars_are_drawn_if_they_fit(tmp_path: Path, columns: int) -> None:
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    settings = ["--set", "backend={kind: echo, seconds_per_batch: 0.1}", "--num-stories", "60"]
    run = subprocess.Popen(
        [sys.executable, "-m", "asyncgen", "run", *settings],
        cwd=tmp_path,
        env=environment(TERM="xterm"),
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:  # the other end is closed
            break
        shown += part
    os.close(main)
    assert run.wait(60) == 0
    text = shown.decode()
    assert ("generator busy" in text) == ("60/60" in text) == (columns == 90)
    assert "complete: 60 of 60 stories" in text

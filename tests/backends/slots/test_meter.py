"""The counters of slots: what is time at work, what is a share of it, and the pace of now."""

from __future__ import annotations

import pytest

from asyncgen.backends.slots import meter
from asyncgen.backends.slots.meter import LATELY, SlotMeter


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meter, "perf_counter", clock)
    return clock


def test_time_at_work_and_how_much_of_it_slots_were_in_use(clock: Clock) -> None:
    counts = SlotMeter(8)
    assert (counts.snapshot().slots, counts.snapshot().busy_seconds, counts.snapshot().fill) == (8, 0.0, 0.0)
    counts.preparing()
    clock.now += 3
    assert (counts.snapshot().busy_seconds, counts.snapshot().slot_seconds) == (3.0, 0.0)
    counts.running(0)
    clock.now += 50  # nothing to do
    counts.admitted(8, 400)
    counts.prefixes(7, 1)
    counts.running(8)
    clock.now += 2
    now = counts.snapshot()
    assert (now.busy_seconds, now.fill, now.rows_running, now.rows_filled, now.cells) == (5.0, 1.0, 8, 8, 400)
    assert now.prefix_share == 7 / 8
    counts.running(4, 8)
    clock.now += 2
    counts.running(0)
    now = counts.snapshot()
    assert (now.busy_seconds, now.slot_seconds, now.row_seconds, now.fill) == (7.0, 32.0, 24.0, 0.75)
    assert (now.generated, now.rows_running) == (8, 0)


def test_the_pace_of_now_follows_the_steps(clock: Clock) -> None:
    counts = SlotMeter(4)
    counts.running(4)
    clock.now += 2.0
    counts.running(2, 4)
    assert counts.snapshot().seconds_per_token == 2.0
    for _ in range(20 * LATELY):
        clock.now += 0.5
        counts.running(2, 2)
    assert counts.snapshot().seconds_per_token == pytest.approx(0.5)

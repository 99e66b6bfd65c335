"""The budget learnt from running out of memory, the estimates, and the counters: plain arithmetic."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncgen.backends.base import BackendSnapshot
from asyncgen.backends.memory import TokenBudget, kv_bytes_per_token, rows_that_fit
from asyncgen.backends.meter import Meter
from tests.programs import environment


def test_a_budget_is_unknown_until_a_batch_did_not_fit() -> None:
    budget = TokenBudget()
    budget.fitted(10_000)
    assert budget.rows(16, 1000) == 16
    budget.failed(16_000)
    assert budget.limit == 8000
    assert budget.rows(16, 1000) == 8
    assert budget.rows(16, 1001) == 4
    assert budget.rows(16, 9000) == 1


def test_a_failure_never_raises_the_budget() -> None:
    budget = TokenBudget()
    budget.failed(1000)
    budget.failed(50_000)
    assert budget.limit == 250


def test_it_regrows_slowly_and_only_by_batches_that_prove_something() -> None:
    budget = TokenBudget()
    budget.failed(1600)
    for _ in range(100):
        budget.fitted(399)
    assert budget.limit == 800
    for _ in range(15):
        budget.fitted(400)
    assert budget.limit == 800
    budget.fitted(800)
    assert budget.limit == 900


@given(st.integers(1, 4096), st.integers(1, 100_000), st.integers(0, 10**9))
def test_halving_comes_to_an_end_after_log2_steps(rows: int, cells: int, room: int) -> None:
    """Against a memory of fixed size, from a batch that does not fit to one that does, or to a single row."""
    budget = TokenBudget()
    steps = 0
    while (now := budget.rows(rows, cells)) * cells > room and now > 1:
        budget.failed(now * cells)
        assert budget.rows(rows, cells) < now
        steps += 1
    assert steps <= rows.bit_length()


@pytest.mark.parametrize(("free", "row", "rows"), [(0, 10, 1), (1000, 10, 32), (10**12, 10, 256), (100, 0, 32)])
def test_rows_that_fit_are_a_power_of_two(free: int, row: int, rows: int) -> None:
    assert rows_that_fit(free, row) == rows


def test_kv_bytes_of_a_known_model() -> None:
    # Qwen2.5-3B: 36 layers, 2 key-value heads of 128, bfloat16.
    assert kv_bytes_per_token(layers=36, kv_heads=2, head_size=128, item_bytes=2) == 36_864


def test_the_meter_counts_what_happens_within_a_batch() -> None:
    meter = Meter()
    with meter.batch(filled=3, offered=4, cells=40, padded_cells=7):
        meter.progress(5, finished=1)
        meter.out_of_memory()
        inside = meter.snapshot()
        assert (inside.rows_running, inside.generated, inside.batches) == (2, 5, 1)
        while meter.snapshot().busy_seconds <= inside.busy_seconds:
            pass
    after = meter.snapshot()
    assert after == meter.snapshot(), "time stands still between batches"
    assert after.busy_seconds > inside.busy_seconds
    assert (after.rows_running, after.rows_filled, after.rows_offered) == (0, 3, 4)
    assert (after.cells, after.padded_cells, after.out_of_memory) == (40, 7, 1)


def test_the_meter_stops_when_a_batch_fails() -> None:
    meter = Meter()
    with pytest.raises(KeyError), meter.batch(filled=3, offered=4):
        raise KeyError
    assert meter.snapshot() == meter.snapshot()
    assert meter.snapshot().rows_running == 0


def test_snapshots_add_up() -> None:
    one = BackendSnapshot(1.0, 2, 3, 4, 5, 6, 7, 8, 9)
    assert one + one == BackendSnapshot(2.0, 4, 6, 8, 10, 12, 14, 16, 18)
    assert one + BackendSnapshot() == one


def test_a_limit_of_the_process_is_a_limit_of_the_free_memory() -> None:
    code = (
        "import resource, torch; from asyncgen.backends.memory import free_bytes; cpu = torch.device('cpu');"
        "before = free_bytes(cpu); used = psutil.Process().memory_info().vms;"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY)); print(before, free_bytes(cpu))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import psutil; {code}"], env=environment(), capture_output=True, text=True, check=True
    )
    before, after = map(int, done.stdout.split())
    assert 0 < after <= 2**28 < before

"""``benchmarks.serving`` in small: many clients of a real server, every answer right, nothing blocked, rows freed."""

from __future__ import annotations

import anyio
import pytest

from benchmarks.serving import alone, measure


@pytest.mark.parametrize(("model", "clients"), [("echo", 200), ("bedtime-tiny", 32)])
def test_every_answer_is_right_and_whoever_hangs_up_frees_a_row(model: str, clients: int) -> None:
    expected = anyio.run(alone, model, clients)
    seen = measure(model, clients, 1, expected)
    assert seen.stories == clients
    assert seen.wrong == 0
    assert seen.blocking == []
    assert seen.freed == seen.hung_up == clients
    assert seen.exit_code == 0
    assert seen.lag_p99 > 0, "the loop was looked at"

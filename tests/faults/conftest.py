"""How often a fault is injected: a share of it in ``make test``, all of it in ``make faults``."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

FULL = "ASYNCGEN_FAULTS"
"""Set by ``make faults``."""

Trials = Callable[[int, int], int]
"""The number of trials of a test, of (here, in ``make faults``)."""


@pytest.fixture
def trials(record_property: Callable[[str, object], None]) -> Trials:
    """Chooses, and notes it for the table."""

    def choose(quick: int, full: int) -> int:
        count = full if os.environ.get(FULL) else quick
        record_property("trials", count)
        return count

    return choose

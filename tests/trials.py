"""How often a thing is tried, at random or by hundreds: a share in ``make test``, all of it in ``make faults``."""

from __future__ import annotations

import os
from collections.abc import Callable

FULL = "ASYNCGEN_FAULTS"
"""Set by ``make faults``."""

Trials = Callable[[int, int], int]
"""The number of trials of a test, of (here, in ``make faults``)."""


def is_full() -> bool:
    """Whether all of it is wanted."""
    return bool(os.environ.get(FULL))

"""What is tried again is tried again soon."""

from __future__ import annotations

import pytest

from asyncgen.backends.openai import opening, running


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "SHORTEST", 0.005)
    monkeypatch.setattr(running, "LONGEST", 0.05)
    monkeypatch.setattr(opening, "_PAUSES", (0.01, 0.01))

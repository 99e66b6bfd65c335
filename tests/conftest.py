"""Shared by all tests: asyncio as anyio's backend, and no test may touch the network."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads slow each other down when tests run in parallel


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"

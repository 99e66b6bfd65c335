"""What the rows of the fault matrix share. How often a fault is injected: ``trials``, which all tests may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.trials import FULL, Trials

__all__ = ["FULL", "Trials"]


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny model, for tests that run on one torch thread: it is too small to share work."""
    import torch  # most rows do without

    from tests.backends.helpers import make_model  # the same

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield make_model(tmp_path_factory.mktemp("llama"), "llama", seed=1)
    torch.set_num_threads(threads)


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A folder like ``tmp_path``, in memory where the system has that: for trials by hundreds, of which a real disk's
    fsyncs would be most of the time.
    """
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)

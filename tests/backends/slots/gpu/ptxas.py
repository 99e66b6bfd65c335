"""What ptxas says of kernels that are compiled in a process of their own, for a GPU that need not be there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

__all__ = ["compiled"]


def compiled(
    what: str, cases: Sequence[dict[str, Any]], cache: Path
) -> Iterator[tuple[dict[str, Any], dict[str, dict[str, int]]]]:
    """Each case, and what became of each kernel by its name (``compiling``). Quickly tried, the first case alone."""
    triton = pytest.importorskip("triton", reason="triton is not installed")
    if not (Path(triton.__file__).parent / "backends/nvidia/bin/ptxas").exists():
        pytest.skip("this triton comes without ptxas")
    cases = cases[: None if os.environ.get("ASYNCGEN_FAULTS") == "full" else 1]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.backends.slots.gpu.compiling", what, json.dumps(cases)],
        env={**environment, "TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    yield from zip(cases, json.loads(ran.stdout), strict=True)

"""Where a benchmark ran: hardware, versions, workload and commit, printed with every result."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def describe(workload: str) -> dict[str, Any]:
    """The facts a number means nothing without."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _git("rev-parse", "--short", "HEAD")
        + ("+changes" if _git("status", "--porcelain", "--", ".", ":!benchmarks/results") else ""),
        "workload": workload,
        "hardware": {"cpu": _cpu(), "cores": os.cpu_count(), "memory_gib": _memory()},
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("asyncgen", "torch", "transformers", "anyio", "pydantic")},
    }


def save(name: str, environment: dict[str, Any], results: dict[str, Any]) -> Path:
    """Writes ``benchmarks/results/NAME-DATE-COMMIT.json``, so that no session overwrites another commit's."""
    path = ROOT / "benchmarks" / "results" / f"{name}-{environment['date']}-{environment['commit']}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"environment": environment, "results": results}, indent=2) + "\n", encoding="utf-8")
    return path.relative_to(ROOT)


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() or ""


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)

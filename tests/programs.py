"""Runs the real program in a real process, as a person would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ECHO = ("--set", "backend.kind=echo")


def environment(**changes: str) -> dict[str, str]:
    """The present environment, offline, with the checkout importable from any folder."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    return os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)} | changes


def asyncgen(
    *arguments: str | Path, cwd: Path, env: dict[str, str] | None = None, timeout: float = 100
) -> subprocess.CompletedProcess[str]:
    """``python -m asyncgen ARGUMENTS`` in ``cwd``."""
    return subprocess.run(
        [sys.executable, "-m", "asyncgen", *map(str, arguments)],
        cwd=cwd,
        env=env or environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def shell(script: str, *, cwd: Path, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """What bash makes of ``script``, behind the program ``before`` if there is one."""
    return subprocess.run(
        [*before, "bash", "-c", script],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def start(*arguments: str | Path, cwd: Path, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """The same, left running; its output is in ``communicate()``."""
    return subprocess.Popen(
        [sys.executable, "-m", "asyncgen", *map(str, arguments)],
        cwd=cwd,
        env=env or environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def without_torch(folder: Path) -> dict[str, str]:
    """An environment in which importing torch or transformers ends the program with exit code 99."""
    poison = folder / "poison"
    poison.mkdir(exist_ok=True)
    for name in ("torch", "transformers"):
        (poison / f"{name}.py").write_text("import os\nos.write(2, b'torch was imported')\nos._exit(99)\n")
    return environment(PYTHONPATH=os.pathsep.join([str(poison), str(ROOT)]))


def records(path: Path, *, timings: bool = False) -> list[dict[str, Any]]:
    """The records of a file; without what varies from run to run unless ``timings``."""
    found = [json.loads(line) for line in path.read_bytes().splitlines()]
    if not timings:
        for record in found:
            for name in ("generation_time", "tokens_per_second"):
                del record[name]
    return found

"""The other end of worker.py: starts an engine's process, asks it for blocks, and ends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer
from types import TracebackType
from typing import IO, Any, Self

from benchmarks.environment import ROOT

__all__ = ["PASSIVE", "Child", "busy_core", "environment", "measure_machine"]

PASSIVE = "@passive"
"""Behind an engine's name: its OpenMP threads sleep while they wait, instead of spinning."""
_LEAVING_SECONDS = 20.0
_THREADING = ("OMP_", "GOMP_", "KMP_", "MKL_")


def environment(threads: int, *, passive: bool) -> dict[str, str]:
    """What an engine's process gets: OpenMP as it comes, but for the number of threads, or with passive waiting."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(_THREADING)}
    ours |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    ours["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), ours.get("PYTHONPATH")]))
    return ours | ({"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"} if passive else {})


class Child:
    """An engine's process. What it prints is in ``log``."""

    def __init__(self, name: str, setting: dict[str, Any], folder: Path, limit: float) -> None:
        """``setting`` is a ``Setting`` as JSON; ``limit`` the seconds that any answer may take."""
        self.name = name
        self.log = folder / f"{name}.log"
        self._limit = limit
        self.cannot = ""
        """Why it does not take part, once that is known."""
        self.settings: dict[str, Any] = {}
        self.rows = 0
        engine, mark, _ = name.partition(PASSIVE)
        self._stderr = self.log.open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.generation.worker"],
            env=environment(setting["threads"], passive=bool(mark)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        ready = self._ask(setting | {"engine": engine})
        self.settings, self.rows = ready.get("ready", {}), ready.get("rows", 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def run(self, first: int, count: int) -> tuple[float, list[int]] | None:
        """Seconds for a block of requests and the tokens that each got; None if it ``cannot``."""
        answer = self._ask({"first": first, "count": count})
        return None if self.cannot else (answer["seconds"], answer["tokens"])

    def close(self) -> None:
        """Ends the process: by the end of its input, and if that does not help, by force."""
        with suppress(BrokenPipeError):
            self._stdin.close()
        try:
            self._process.wait(_LEAVING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._stderr.close()

    @property
    def _stdin(self) -> IO[str]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer; whoever takes longer than is allowed is ended, and cannot."""
        assert self._process.stdout is not None
        line = ""
        ended = Timer(self._limit, self._process.kill)
        ended.start()
        try:
            self._stdin.write(json.dumps(question) + "\n")
            self._stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            pass
        finally:
            late = not ended.is_alive()
            ended.cancel()
            ended.join()
        answer: dict[str, Any] = json.loads(line) if line else {"cannot": self._died(late=late)}
        self.cannot = answer.get("cannot", "")
        return answer

    def _died(self, *, late: bool) -> str:
        if late:
            return f"it took longer than {self._limit:g} s and was ended"
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"its process ended: {lines[-1] if lines else 'without a word'}"


def measure_machine(threads: int, seconds: float) -> dict[str, float]:
    """The machine's matrix rate and bandwidth, measured in a process like the engines', for so long each."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.generation.machine", str(seconds)],
        env=environment(threads, passive=False),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


@contextmanager
def busy_core(*, wanted: bool) -> Iterator[None]:
    """Another process keeps one core busy meanwhile; it ends by itself when nobody is left to end it."""
    if not wanted:
        yield
        return
    code = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    sum(range(100_000))"
    spinner = subprocess.Popen([sys.executable, "-c", code, str(os.getpid())])
    time.sleep(0.5)
    try:
        yield
    finally:
        spinner.kill()
        spinner.wait()

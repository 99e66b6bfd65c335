"""One engine in a process of its own: ``python -m benchmarks.generation.worker``, spoken to in lines of JSON.

First line in: the setting. First line out: ``{"ready": settings, "rows": n}`` or ``{"cannot": reason}``. Then, for
every ``{"first": i, "count": n}``, ``{"seconds": s, "tokens": [...]}`` or ``{"cannot": reason}``. It ends when its
input does. What libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

from benchmarks.generation import workload
from benchmarks.generation.engine import Cannot, Engine, Setting, open_engine
from benchmarks.generation.workload import Request


def main() -> None:
    """Reads, does and answers."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    asked = json.loads(sys.stdin.readline())
    engine: Engine | None = None
    try:
        engine = _start(asked)
        _answer(answers, {"ready": engine.settings, "rows": engine.rows})
        requests = workload.load(Path(asked["workload"])).requests
        for line in sys.stdin:
            block = json.loads(line)
            _answer(answers, _run(engine, _block(requests, **block)))
    except Exception as error:  # noqa: BLE001  # whatever engines raise is the answer to why they cannot
        if not isinstance(error, Cannot):
            traceback.print_exc()
        _answer(answers, {"cannot": _said(error)})
    finally:
        if engine is not None:
            engine.close()


def _start(asked: dict[str, Any]) -> Engine:
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers is typed in parts
    torch.set_num_threads(asked["threads"])
    torch.manual_seed(asked["seed"])
    changes = {"model": Path(asked["model"]), "workload": workload.load(Path(asked["workload"]))}
    return open_engine(asked["engine"], Setting(**{name: asked[name] for name in asked if name != "engine"} | changes))


def _block(requests: Sequence[Request], first: int, count: int) -> list[Request]:
    """``count`` requests from ``first`` on, beginning again at the end."""
    return [requests[place % len(requests)] for place in range(first, first + count)]


def _run(engine: Engine, requests: Sequence[Request]) -> dict[str, Any]:
    began = perf_counter()
    tokens = engine.run(requests)
    return {"seconds": perf_counter() - began, "tokens": tokens}


def _answer(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _said(error: BaseException) -> str:
    """The error in one line; the only one of a group stands for it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return " ".join(str(error).split()) if isinstance(error, Cannot) else f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()

"""What an engine is to the benchmark, how it finds its best settings, and which engines there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, TypeVar

from benchmarks.generation.workload import Request, Workload

__all__ = ["ENGINES", "PEERS", "Cannot", "Engine", "Setting", "best_of", "fitting", "open_engine"]

ENGINES = {
    "brief": "huggingface:Brief",
    "one_by_one": "huggingface:OneByOne",
    "pipeline": "huggingface:Pipeline",
    "generate_batch": "continuous:GenerateBatch",
    "ctranslate2": "ct2:CTranslate2",
    "ctranslate2_static": "ct2:StaticPrompt",
    "static": "ours:Static",
    "slots": "ours:Slots",
}
"""Name -> module and class, made with a ``Setting``. A further backend of ours is one more line here and in ours.py."""
PEERS = tuple(name for name, place in ENGINES.items() if not place.startswith("ours:"))
"""Those that are not ours."""

_Choice = TypeVar("_Choice")


class Cannot(Exception):
    """The engine cannot do this workload here; the message says why."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What an engine is started with."""

    model: Path
    workload: Workload
    threads: int
    seed: int
    temperature: float
    top_k: int
    """0 keeps all."""
    top_p: float
    rows: int | None
    """Rows at once, if they are given; None: the engine finds its best by trial."""
    trial: int
    """Requests of the workload that a trial may use."""
    eos: int | None
    """End-of-text token; None where lengths were drawn."""

    @property
    def sample(self) -> tuple[Request, ...]:
        """What trials run on."""
        return self.workload.requests[: self.trial]


class Engine(Protocol):
    """An engine, its model loaded and its settings chosen."""

    rows: int
    """Requests generated at once; what the floor assumes for ours."""
    settings: dict[str, Any]
    """What was chosen, for the results."""

    def run(self, requests: Sequence[Request]) -> list[int]:
        """Generates for all of them and says how many tokens each got."""

    def close(self) -> None:
        """Frees what it holds."""


def open_engine(name: str, setting: Setting) -> Engine:
    """The engine ``name``. Raises Cannot."""
    module, _, kind = ENGINES[name].partition(":")
    engine: Engine = getattr(import_module(f"benchmarks.generation.{module}"), kind)(setting)
    return engine


def fitting(sizes: Sequence[int], sample: Sequence[Request]) -> list[int]:
    """The batch sizes that ``sample`` fills; the first one if it fills none."""
    return [size for size in sizes if size <= len(sample)] or [sizes[0]]


def best_of(
    choices: Sequence[_Choice],
    run: Callable[[_Choice, Sequence[Request]], list[int]],
    sample: Sequence[Request],
    *,
    prepare: Callable[[_Choice], object] = lambda _: None,
) -> tuple[_Choice, dict[str, float]]:
    """The choice that gave most tokens a second on ``sample``, and what each gave. What comes before, ``prepare`` and
    two requests to warm up, is not timed.

    A single choice is taken without a trial.
    """
    if len(choices) == 1:
        return choices[0], {}
    rates: dict[str, float] = {}
    for choice in choices:
        prepare(choice)
        run(choice, sample[:2])
        began = perf_counter()
        tokens = run(choice, sample)
        rates[str(choice)] = round(sum(tokens) / (perf_counter() - began), 1)
    return max(choices, key=lambda choice: rates[str(choice)]), rates

"""Engines of generation against each other: the same weights, prompts, output lengths, precision and threads.

    python -m benchmarks.engines                           # workload A on the 6M model: about a quarter of an hour
    python -m benchmarks.engines --model 30m --workload C  # a, b, c: see generation/workload.py
    python -m benchmarks.engines --full --write            # slots and brief get every request; into benchmarks/results/
    python -m benchmarks.engines --busy                    # A beside a process that keeps one core busy
    python -m benchmarks.engines --quick                   # a smoke run of seconds: the numbers mean nothing

Each engine lives in a process of its own through all rounds and one works at a time. It finds its best settings by a
short trial, is warmed up, and then does a block of requests in every round, in rotating order. Ratios are of tokens a
second in the same round, to ``brief`` (FIFO batches through ``generate``), as medians with the least and the most.
Output lengths are drawn beforehand and are every request's own limit; an engine that delivers other lengths is out.
Slow engines get a smaller block of the same stream (``--block NAME=N``). ``NAME@passive`` is an engine whose OpenMP
threads sleep while they wait: beside a busy process spinning ones slow each other down forty-fold, so ``--busy``
compares with ``brief@passive``. The floor is explained in generation/floor.py.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from contextlib import ExitStack
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.environment import describe, save
from benchmarks.generation import models, workload
from benchmarks.generation.child import PASSIVE, Child, busy_core, environment, measure_machine
from benchmarks.generation.engine import ENGINES
from benchmarks.generation.floor import Machine
from benchmarks.generation.rounds import baseline, best_peer, play, summary, table

BLOCKS = {
    "brief": 128,
    "one_by_one": 8,
    "pipeline": 64,
    "generate_batch": 96,
    "ctranslate2": 256,
    "ctranslate2_static": 256,
    "static": 96,
}
"""Requests of a round; engines that are not named get all. Those that refill rows or sort requests need several times
their rows: with a single batch they would be measured at their tail."""
BUSY = ("brief@passive", "slots")
SEED = 0
MACHINE_SECONDS, QUICK_SECONDS = 0.4, 0.02
"""For each thing that the machine can do."""
QUICK = {
    "model": "tiny",
    "workload": "tiny",
    "requests": 12,
    "rounds": 1,
    "trial": 8,
    "engines": "brief@passive,static@passive",
}


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", choices=models.MODELS, default="6m")
    add("--workload", type=str, choices=tuple(workload.WORKLOADS), default="A")
    add("--requests", type=int, default=1000, help="length of the stream of requests (1000)")
    add("--rounds", type=int, default=3)
    add("--engines", default=None, help=f"separated by commas, of {', '.join(ENGINES)}, each with or without {PASSIVE}")
    add("--block", action="append", default=[], metavar="NAME=N", help=f"requests a round; otherwise {BLOCKS}, or all")
    add("--full", action="store_true", help="brief gets all requests in every round too")
    add("--rows", action="append", default=[], metavar="NAME=N", help="requests at once: no trial")
    add("--trial", type=int, default=64, help="requests that a trial may use (64); larger batches are not tried")
    add("--threads", type=int, default=2)
    add("--temperature", type=float, default=0.8)
    add("--top-k", type=int, default=0, help="0 keeps all")
    add("--top-p", type=float, default=1.0)
    add("--limit", type=float, default=1800, help="seconds that a block, or the start with its trials, may take")
    add("--busy", action="store_true", help="another process keeps one core busy")
    add("--quick", action="store_true", help="a smoke run of seconds")
    add("--write", action="store_true", help="keep the results in benchmarks/results/")
    quick = parser.parse_known_args()[0].quick
    if quick:
        parser.set_defaults(**QUICK)
    chosen = parser.parse_args()
    names = chosen.engines.split(",") if chosen.engines else BUSY if chosen.busy else ENGINES
    chosen.names = list(names)
    if unknown := [name for name in chosen.names if name.removesuffix(PASSIVE) not in ENGINES]:
        parser.error(f"--engines: {', '.join(unknown)}: there are {', '.join(ENGINES)}")
    chosen.block, chosen.rows = _numbers(parser, chosen.block), _numbers(parser, chosen.rows)
    return chosen


def measure(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything that was asked for: what was measured, and under which conditions."""
    model = models.build(chosen.model, folder, SEED)
    stream = workload.make(chosen.workload, model.folder, chosen.requests, natural=model.natural, seed=SEED)
    workload.save(stream, folder / "workload.json")
    conditions = {
        "model": model.describe(),
        "workload": stream.describe(),
        "sampling": {"temperature": chosen.temperature, "top_k": chosen.top_k, "top_p": chosen.top_p},
        "ctranslate2": metadata.version("ctranslate2") if find_spec("ctranslate2") else "not installed",
        "threads": chosen.threads,
        "OpenMP": {name: _threading(chosen.threads, name) for name in chosen.names},
        "rounds": chosen.rounds,
        "busy core": chosen.busy,
        "load before": [round(load, 2) for load in os.getloadavg()],
    }
    print(json.dumps(conditions, indent=2), flush=True)
    setting = {
        "model": str(model.folder),
        "workload": str(folder / "workload.json"),
        "threads": chosen.threads,
        "seed": SEED,
        "temperature": chosen.temperature,
        "top_k": chosen.top_k,
        "top_p": chosen.top_p,
        "trial": chosen.trial,
        "eos": model.end,
    }
    blocks = {name: _block(chosen, name) for name in chosen.names}
    with ExitStack() as open_ones, busy_core(wanted=chosen.busy):
        children: list[Child] = []
        for name in chosen.names:
            rows = chosen.rows.get(name) or _as_found(name, children)
            child = open_ones.enter_context(Child(name, setting | {"rows": rows}, folder, chosen.limit))
            print(f"{name}: {child.cannot or json.dumps(child.settings)}; {blocks[name]} requests a round", flush=True)
            children.append(child)
        seconds = QUICK_SECONDS if chosen.quick else MACHINE_SECONDS
        found = play(
            children, blocks, stream, chosen.rounds, lambda: Machine(**measure_machine(chosen.threads, seconds))
        )
    base, peer = baseline(found), best_peer(found)
    results = {each.name: summary(each, base, model.shape) for each in found}
    print("\n" + table(results, base.name if base else ""))
    if peer is not None:
        against = {each.name: summary(each, peer, model.shape).get("ratio") for each in found if each.name != peer.name}
        conditions |= {"best peer": peer.name, "times the best peer": against}
        print(f"\nbest peer: {peer.name}, {peer.rate:,.0f} tokens/s")
    return {"conditions": conditions, "engines": results}


def _block(chosen: argparse.Namespace, name: str) -> int:
    """Requests that an engine gets in a round."""
    engine = name.removesuffix(PASSIVE)
    if chosen.full and engine == "brief":
        return int(chosen.requests)
    size = chosen.block.get(name) or chosen.block.get(engine) or BLOCKS.get(engine, chosen.requests)
    return int(min(size, chosen.requests))


def _as_found(name: str, children: list[Child]) -> int | None:
    """A pipeline batches as ``brief`` does, so what that found best is taken over instead of tried again."""
    if name.removesuffix(PASSIVE) != "pipeline":
        return None
    return next((child.rows for child in children if child.name.startswith("brief") and child.rows), None)


def _numbers(parser: argparse.ArgumentParser, given: list[str]) -> dict[str, int]:
    pairs = [each.partition("=") for each in given]
    if wrong := [
        name for name, _, number in pairs if name.removesuffix(PASSIVE) not in ENGINES or not number.isdigit()
    ]:
        parser.error(f"expected ENGINE=NUMBER with an engine of {', '.join(ENGINES)}, not {', '.join(wrong)}")
    return {name: int(number) for name, _, number in pairs}


def _threading(threads: int, name: str) -> dict[str, str]:
    settings = environment(threads, passive=name.endswith(PASSIVE))
    return {key: value for key, value in sorted(settings.items()) if key.startswith(("OMP_", "GOMP_", "MKL_"))}


def main() -> None:
    """Measures, prints, and with ``--write`` keeps."""
    chosen = options()
    facts = describe(f"model {chosen.model}, workload {chosen.workload}, {chosen.requests:,} requests")
    print(json.dumps(facts, indent=2))
    with tempfile.TemporaryDirectory() as name:
        results = measure(chosen, Path(name))
    if chosen.write:
        title = f"engines-{chosen.model}-{chosen.workload}" + ("-busy" if chosen.busy else "")
        print(f"kept in {save(title, facts, results)}")


if __name__ == "__main__":
    main()
